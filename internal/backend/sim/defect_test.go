package sim_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest"
)

// The suite is the contract, so it is tested too: each defect below is a way to
// break the contract, and the suite must fail in the tests named. A suite that
// stays green over one of these is worth nothing.
var defects = []struct {
	name string
	run  string // what of the suite to run
	fail string // what must fail, separated by blanks; or what must be said, with a colon at the end
	make func(*broken)
}{
	{"CreateLeaksWhenCanceled", "Create/Canceled", "Create/Canceled", func(b *broken) {
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			inst, err := b.Backend.Create(context.Background(), spec)
			if err == nil && ctx.Err() != nil {
				return nil, sandbox.Wrap("create", "", ctx.Err())
			}
			return inst, err
		}
	}},
	{"CreateIgnoresDeadline", "Create/DeadlinePassed", "Create/DeadlinePassed", func(b *broken) {
		b.create = func(_ context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			return b.Backend.Create(context.Background(), spec)
		}
	}},
	{"CreateGivesUpLate", "Create/AgentFrozen", "Create/AgentFrozen", func(b *broken) {
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			inst, err := b.Backend.Create(ctx, spec)
			if err != nil {
				time.Sleep(4 * time.Second)
			}
			return inst, err
		}
	}},
	{"CreateReplaces", "Create/Exists", "Create/Exists", func(b *broken) {
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			if old, err := b.Backend.Attach(ctx, spec.Instance); err == nil {
				old.Destroy(ctx)
			}
			return b.Backend.Create(ctx, spec)
		}
	}},
	{"UntypedErrors", "Create/Invalid", "Create/Invalid/NoID", func(b *broken) {
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			inst, err := b.Backend.Create(ctx, spec)
			if err != nil {
				return nil, errors.New("no")
			}
			return inst, nil
		}
	}},
	{"WeakensSilently", "Create/Unsupported", "Create/Unsupported/Isolation", func(b *broken) {
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			spec.MinIsolation = 0
			return b.Backend.Create(ctx, spec)
		}
	}},
	{"ClaimsLimits", "Limits", "Limits/Memory Limits/PIDs Limits/Disk Limits/CPU", func(b *broken) {
		b.cfg.Unenforced = sandbox.AllLimits
		b.info = func(i *sandbox.Info) { i.Capabilities.Limits = sandbox.AllLimits }
	}},
	{"ClaimsCapability", "Info", "Info/OptionalInterfaces", func(b *broken) {
		b.info = func(i *sandbox.Info) { i.Capabilities.Pause = true }
	}},
	{"IgnoresReadonlyRoot", "Isolation/ReadonlyRoot", "Isolation/ReadonlyRoot", func(b *broken) {
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			spec.ReadonlyRoot = false
			return b.Backend.Create(ctx, spec)
		}
	}},
	{"DestroyPretends", "Destroy/Canceled", "Destroy/Canceled", func(b *broken) {
		b.destroy = func(_ context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			return sandbox.Receipt{Instance: i.ID(), Objects: []sandbox.Object{{Kind: "x", Name: "x", Gone: true}}}.Seal(), nil
		}
	}},
	{"DestroyLeavesFile", "Destroy/WakesWait", "Destroy/WakesWait", func(b *broken) {
		b.destroy = func(ctx context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			if err := os.WriteFile(filepath.Join(b.dir, string(i.ID())), nil, 0o600); err != nil {
				return sandbox.Receipt{}, err
			}
			return i.Destroy(ctx)
		}
	}},
	{"DestroyLeavesUnnamedFile", "Destroy/WakesWait", "left on the host:", func(b *broken) {
		b.destroy = func(ctx context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			if err := os.WriteFile(filepath.Join(b.dir, "forgotten"), nil, 0o600); err != nil {
				return sandbox.Receipt{}, err
			}
			return i.Destroy(ctx)
		}
	}},
	{"DestroyForgetsReceipt", "Destroy/Twice", "Destroy/Twice", func(b *broken) {
		b.destroy = func(ctx context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			r, err := i.Destroy(ctx)
			return r.Seal(), err
		}
	}},
	{"EmptyReceipt", "Destroy/Twice", "Destroy/Twice", func(b *broken) {
		b.destroy = func(ctx context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			r, err := i.Destroy(ctx)
			r.Objects = nil
			return r, err
		}
	}},
	{"ReceiptLeavesOut", "Destroy/ReceiptIsComplete", "Destroy/ReceiptIsComplete", func(b *broken) {
		file := func(id sandbox.InstanceID) string { return filepath.Join(b.dir, string(id)) }
		b.create = func(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
			if err := os.WriteFile(file(spec.Instance), nil, 0o600); err != nil {
				return nil, err
			}
			return b.Backend.Create(ctx, spec)
		}
		b.destroy = func(ctx context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			os.Remove(file(i.ID()))
			return i.Destroy(ctx)
		}
	}},
	{"ReceiptWithoutChecks", "Destroy/Twice", "Destroy/Twice", func(b *broken) {
		b.destroy = func(ctx context.Context, i sandbox.Instance) (sandbox.Receipt, error) {
			r, err := i.Destroy(ctx)
			for k := range r.Objects {
				r.Objects[k].Check = ""
			}
			return r, err
		}
	}},
	{"WaitHangs", "Lifecycle/WaitHonoursContext", "Lifecycle/WaitHonoursContext", func(b *broken) {
		b.wait = func(_ context.Context, i sandbox.Instance) (sandbox.Exit, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			return i.Wait(ctx)
		}
	}},
	{"WaitMisreports", "Lifecycle/Killed", "Lifecycle/KilledFromOutside", func(b *broken) {
		b.wait = func(ctx context.Context, i sandbox.Instance) (sandbox.Exit, error) {
			e, err := i.Wait(ctx)
			e.Reason = sandbox.ReasonDone
			return e, err
		}
	}},
	{"ListForgets", "Create/AtOnce", "Create/AtOnce", func(b *broken) {
		b.list = func([]sandbox.Status) []sandbox.Status { return nil }
	}},
	{"LeaksGoroutines", "Info/Stable", "goroutines are left:", func(b *broken) { go func() { select {} }() }},
}

// broken is a model with a defect. Nil fields are sound.
type broken struct {
	*sim.Backend
	cfg     sim.Config
	dir     string
	info    func(*sandbox.Info)
	create  func(context.Context, sandbox.Spec) (sandbox.Instance, error)
	list    func([]sandbox.Status) []sandbox.Status
	destroy func(context.Context, sandbox.Instance) (sandbox.Receipt, error)
	wait    func(context.Context, sandbox.Instance) (sandbox.Exit, error)
}

func (b *broken) Info(ctx context.Context) (sandbox.Info, error) {
	i, err := b.Backend.Info(ctx)
	if b.info != nil {
		b.info(&i)
	}
	return i, err
}

func (b *broken) Create(ctx context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	f := b.create
	if f == nil {
		f = b.Backend.Create
	}
	inst, err := f(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &brokenInstance{inst, b}, nil
}

func (b *broken) List(ctx context.Context) ([]sandbox.Status, error) {
	l, err := b.Backend.List(ctx)
	if b.list != nil {
		l = b.list(l)
	}
	return l, err
}

type brokenInstance struct {
	sandbox.Instance
	b *broken
}

func (i *brokenInstance) Destroy(ctx context.Context) (sandbox.Receipt, error) {
	if i.b.destroy != nil {
		return i.b.destroy(ctx, i.Instance)
	}
	return i.Instance.Destroy(ctx)
}

func (i *brokenInstance) Wait(ctx context.Context) (sandbox.Exit, error) {
	if i.b.wait != nil {
		return i.b.wait(ctx, i.Instance)
	}
	return i.Instance.Wait(ctx)
}

const defectEnv = "FIREBREAK_TEST_DEFECT"

// TestDefective runs the suite over one defect, in a process of its own.
func TestDefective(t *testing.T) {
	name := os.Getenv(defectEnv)
	if name == "" {
		return // only TestSuiteFindsDefects runs it
	}
	cfg := config()
	for _, d := range defects {
		if d.name != name {
			continue
		}
		open := func(dir string, c sim.Config) sandbox.Backend {
			b := &broken{cfg: c, dir: dir}
			d.make(b)
			b.cfg.Dir = dir
			b.Backend = sim.New(b.cfg)
			return b
		}
		cfg.New = func(_ *testing.T, dir string) sandbox.Backend {
			return open(dir, sim.Config{Boot: 5 * time.Millisecond})
		}
		cfg.Frozen = func(_ *testing.T, dir string) (sandbox.Backend, sandbox.Root) {
			return open(dir, sim.Config{Frozen: true}), sandbox.Root{}
		}
		cfg.Kill = func(t *testing.T, b sandbox.Backend, id sandbox.InstanceID) {
			if err := b.(*broken).Crash(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	backendtest.Run(t, cfg)
}

func TestSuiteFindsDefects(t *testing.T) {
	if testing.Short() {
		t.Skip("not run: -short")
	}
	self, err := os.Executable()
	if err != nil {
		t.Skipf("not run: %v", err)
	}
	for _, d := range defects {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			run := "^TestDefective$/^Suite$"
			for _, part := range strings.Split(d.run, "/") {
				run += "/" + part
			}
			cmd := exec.CommandContext(ctx, self, "-test.v", "-test.short", "-test.run="+run)
			cmd.Env = append(os.Environ(), defectEnv+"="+d.name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("the suite passes:\n%s", out)
			}
			wants := strings.Fields(d.fail)
			if strings.HasSuffix(d.fail, ":") {
				wants = []string{d.fail}
			}
			for _, want := range wants {
				if !strings.HasSuffix(want, ":") {
					want = "--- FAIL: TestDefective/Suite/" + want + " "
				}
				if !strings.Contains(string(out), want) {
					t.Errorf("no %q in:\n%s", want, out)
				}
			}
		})
	}
}
