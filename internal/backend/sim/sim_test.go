package sim_test

import (
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest"
)

func config() backendtest.Config {
	open := func(c sim.Config) func(*testing.T, string) sandbox.Backend {
		return func(_ *testing.T, dir string) sandbox.Backend {
			c.Dir = dir
			return sim.New(c)
		}
	}
	return backendtest.Config{
		New:    open(sim.Config{Boot: 5 * time.Millisecond}),
		Volume: 8, // nothing in a model depends on it
		Frozen: func(t *testing.T, dir string) (sandbox.Backend, sandbox.Root) {
			return open(sim.Config{Frozen: true})(t, dir), sandbox.Root{}
		},
		Kill: func(t *testing.T, b sandbox.Backend, id sandbox.InstanceID) {
			if err := b.(*sim.Backend).Crash(id); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestConformance(t *testing.T) { backendtest.Run(t, config()) }

// TestConformanceWithoutLimits runs the suite against a model that claims to
// enforce nothing, so that the refusals are tested too.
func TestConformanceWithoutLimits(t *testing.T) {
	cfg := config()
	cfg.New = func(_ *testing.T, dir string) sandbox.Backend {
		return sim.New(sim.Config{Dir: dir, Unenforced: sandbox.AllLimits})
	}
	cfg.Groups = []string{"Info", "Create"}
	backendtest.Run(t, cfg)
}
