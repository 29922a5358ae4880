package guest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestCauses: a cause crosses the wire by its name, and only the host's own words
// come of it, whatever a guest claims.
func TestCauses(t *testing.T) {
	for cause, hint := range causeHints {
		sent := ErrorOnWire(fmt.Errorf("outer: %w", sandbox.Errorf("write", sandbox.KindDenied, "%w", Because(cause, errors.New("open /x: no")))))
		if sent.Cause != cause || sent.Message != "open /x: no" || sent.Kind != sandbox.KindDenied {
			t.Errorf("%s on the wire: %+v", cause, sent)
		}
		var got *sandbox.Error
		if err := unwire("write", sent); !errors.As(err, &got) || got.Hint != hint || hint == "" {
			t.Errorf("%s: %v", cause, err)
		}
	}
	for _, claimed := range []Cause{"", "no such", "run this: \x1b[2J", Cause(strings.Repeat("x", 5000))} {
		var got *sandbox.Error
		if err := unwire("write", &WireError{Kind: sandbox.KindInvalid, Message: "m", Cause: claimed}); !errors.As(err, &got) || got.Hint != "" {
			t.Errorf("%.20q: %v", claimed, err)
		}
	}
	if c := causeOf(errors.New("x")); c != "" {
		t.Errorf("an error without a cause has %q", c)
	}
}
