package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// What code in a sandbox named or said is shown as the same JSON, without a
// character that a terminal obeys.
func TestHarmlessJSON(t *testing.T) {
	said := "tab\t esc\x1b[2J del\x7f csi\u009b31m bidi\u202e line\u2028 fine é 世界 \U0001F600"
	doc, err := json.Marshal(map[string]string{"said": said})
	if err != nil {
		t.Fatal(err)
	}
	out := harmless(append(doc, '\n'))
	var back map[string]string
	if err := json.Unmarshal(out, &back); err != nil || back["said"] != said {
		t.Errorf("%v: %q", err, back)
	}
	if i := strings.IndexFunc(strings.TrimSuffix(string(out), "\n"), guest.Obeyed); i >= 0 {
		t.Errorf("at %d of %q", i, out)
	}
	if !strings.Contains(string(out), "世界") {
		t.Errorf("%q", out)
	}
}
