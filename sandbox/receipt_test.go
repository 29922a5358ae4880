package sandbox_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

var at = time.Date(2026, 3, 4, 5, 6, 7, 890_000_000, time.FixedZone("", 3600))

// What another program makes of the same object must be the same bytes.
var receipt = sandbox.Receipt{Instance: "inabc", Clean: true, Time: at, Objects: []sandbox.Object{
	{Kind: "process", Name: "7@99", Gone: true, Check: "looked", Checked: at},
	{Kind: "mount", Name: "/a \"b\"\\\b\t\n\f\r\x01\x7fü\u2028<&>\xff", Detail: "busy"},
}}

const canonical = `{"clean":true,"instance":"inabc","objects":[` +
	`{"check":"looked","checked_at":"2026-03-04T04:06:07.89Z","detail":"","gone":true,"kind":"process","name":"7@99"},` +
	`{"check":"","detail":"busy","gone":false,"kind":"mount","name":"/a \"b\"\\\b\t\n\f\r\u0001` + "\x7fü\u2028<&>\uFFFD" + `"}],` +
	`"time":"2026-03-04T04:06:07.89Z"}`

func TestCanonicalReceipt(t *testing.T) {
	if got := string(receipt.Canonical()); got != canonical {
		t.Errorf("canonical form\n%s\nwant\n%s", got, canonical)
	}
	var v any
	if err := json.Unmarshal(receipt.Canonical(), &v); err != nil {
		t.Error(err)
	}
	if got := string(sandbox.Receipt{}.Canonical()); got != `{"clean":false,"instance":"","objects":[]}` {
		t.Errorf("the empty receipt: %s", got)
	}
}

// TestCanonicalByOthers: python's encoder, given the same object in another
// order, writes what Canonical writes.
func TestCanonicalByOthers(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("not run: no python3")
	}
	cmd := exec.Command(python, "-c", `import json,sys
sys.stdout.buffer.write(json.dumps(json.load(sys.stdin), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())`)
	cmd.Stdin = bytes.NewReader(receipt.Canonical())
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, receipt.Canonical()) {
		t.Errorf("python makes\n%s\nof\n%s\n(%v)", out, receipt.Canonical(), err)
	}
}
