package backendtest

import (
	"reflect"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func testInfo(t *testing.T, s *suite) {
	s.sub(t, "Stable", func(t *testing.T) {
		again, err := s.b.Info(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if again.Name != s.info.Name || again.Isolation != s.info.Isolation || again.Capabilities != s.info.Capabilities {
			t.Errorf("Info changed from %+v to %+v", s.info, again)
		}
	})
	s.sub(t, "Complete", func(t *testing.T) {
		i := s.info
		if i.Name == "" || i.Version == "" {
			t.Errorf("name %q, version %q: want both", i.Name, i.Version)
		}
		if i.Isolation.String() == "unknown" {
			t.Errorf("isolation class %d is unknown", i.Isolation)
		}
		if extra := i.Capabilities.Limits &^ sandbox.AllLimits; extra != 0 {
			t.Errorf("claims unknown limits %b", extra)
		}
		if miss := sandbox.AllLimits &^ i.Capabilities.Limits; miss != 0 && len(i.Notes) == 0 {
			t.Errorf("does not enforce %s and no note says why", miss)
		}
	})
	s.sub(t, "OptionalInterfaces", func(t *testing.T) {
		x := s.open(t)
		has := func(method string) bool {
			for _, v := range []any{s.b, x.inst} {
				if _, ok := reflect.TypeOf(v).MethodByName(method); ok {
					return true
				}
			}
			return false
		}
		c := s.info.Capabilities
		if c.Pause && !c.Snapshot {
			t.Error("it claims to pause and not to save: what is paused is restored")
		}
		for method, claimed := range map[string]bool{"Snapshot": c.Snapshot, "Restore": c.Snapshot, "Attest": c.Attest} {
			if method != "Attest" && !claimed {
				continue // it may be there and refuse, see group Snapshot
			}
			if has(method) != claimed {
				t.Errorf("capability %s is %v, the method is there: %v", method, claimed, has(method))
			}
		}
	})
}
