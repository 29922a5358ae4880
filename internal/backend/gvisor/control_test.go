//go:build linux

package gvisor

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestCalls: what is sent to a sentry is what is kept in testdata, which
// cmd/firebreak-runsc compares with what its version of gVisor expects.
func TestCalls(t *testing.T) {
	got, err := json.MarshalIndent([]controlCall{{callSave, whole}, {callNetwork, alone(true)}, {callRestore, restoreCall{true}}, {callStart, sandbox.InstanceID("in")}}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const name = "testdata/calls.json"
	if want, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what is sent (%v), which is:\n%s", name, err, got)
	}
}
