package e2b

import (
	"errors"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Every kind has a row, and only what was meant for callers is told.
func TestCodes(t *testing.T) {
	for _, k := range []sandbox.Kind{sandbox.KindInvalid, sandbox.KindUnauthenticated, sandbox.KindDenied, sandbox.KindNotFound, sandbox.KindExists,
		sandbox.KindConflict, sandbox.KindGone, sandbox.KindUnsupported, sandbox.KindCapacity, sandbox.KindTooLarge, sandbox.KindNoSpace,
		sandbox.KindTimeout, sandbox.KindCanceled, sandbox.KindUnavailable, sandbox.KindIsDirectory, sandbox.KindNotDirectory,
		sandbox.KindProtocol, sandbox.KindInternal} {
		if _, ok := codes[k]; !ok {
			t.Errorf("no row for %s", k)
		}
	}
	if said := explain(errors.New("open /secret/path: no such file")); strings.Contains(said, "secret") {
		t.Error(said)
	}
	if said := explain(sandbox.Errorf("x", sandbox.KindInvalid, "a").WithHint("b")); said != "a: b" {
		t.Error(said)
	}
}
