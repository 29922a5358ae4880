package backendtest

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

func testCreate(t *testing.T, s *suite) {
	s.sub(t, "Invalid", s.testInvalid)
	if s.Root(t).Dir != "" {
		s.sub(t, "MissingRoot", s.testMissingRoot)
	}
	s.sub(t, "Exists", s.testExists)
	s.sub(t, "SameIDAtOnce", s.testSameIDAtOnce)
	s.sub(t, "Unsupported", s.testUnsupported)
	s.sub(t, "Enforced", s.testEnforced)
	s.sub(t, "ExecRightAfter", s.testExecRightAfter)
	s.sub(t, "AtOnce", s.testCreateAtOnce)
	s.sub(t, "Canceled", s.testCanceled)
	s.sub(t, "DeadlinePassed", s.testDeadlinePassed)
	s.sub(t, "AgentFrozen", s.testAgentFrozen)
}

// refused asserts that Create of spec fails with one of kinds, quickly enough
// to have been refused before a boot, and leaves nothing.
func (s *suite) refused(t *testing.T, spec sandbox.Spec, kinds ...sandbox.Kind) error {
	t.Helper()
	inst, err := s.b.Create(deadline(t), spec)
	if err == nil {
		checkDestroy(t, s, inst)
		t.Errorf("Create succeeded, want kind %v", kinds)
		return nil
	}
	wantKind(t, "Create", err, kinds...)
	if spec.Instance.Valid() {
		s.checkGone(t, spec.Instance)
	}
	return err
}

func (s *suite) testInvalid(t *testing.T) {
	for name, change := range map[string]func(*sandbox.Spec){
		"NoID":           func(sp *sandbox.Spec) { sp.Instance = "" },
		"ShortID":        func(sp *sandbox.Spec) { sp.Instance = "in1" },
		"SandboxID":      func(sp *sandbox.Spec) { sp.Instance = sandbox.InstanceID(sandbox.NewID()) },
		"PathInID":       func(sp *sandbox.Spec) { sp.Instance = "in/../../../../../../etc/x" },
		"DotsInID":       func(sp *sandbox.Spec) { sp.Instance = "in.................." },
		"UpperCaseID":    func(sp *sandbox.Spec) { sp.Instance = "inABCDEFGHIJKLMNOPQR" },
		"LongID":         func(sp *sandbox.Spec) { sp.Instance = sandbox.InstanceID("in" + strings.Repeat("a", 300)) },
		"NewlineInID":    func(sp *sandbox.Spec) { sp.Instance += "\n" },
		"TinyMemory":     func(sp *sandbox.Spec) { sp.Limits.Memory = 1 },
		"HugeMemory":     func(sp *sandbox.Spec) { sp.Limits.Memory = math.MaxInt64 },
		"NegativeMemory": func(sp *sandbox.Spec) { sp.Limits.Memory = -1 },
		"NaNCPUs":        func(sp *sandbox.Spec) { sp.Limits.CPUs = math.NaN() },
		"InfiniteCPUs":   func(sp *sandbox.Spec) { sp.Limits.CPUs = math.Inf(1) },
		"NegativePIDs":   func(sp *sandbox.Spec) { sp.Limits.PIDs = -5 },
		"HugePIDs":       func(sp *sandbox.Spec) { sp.Limits.PIDs = math.MaxInt32 },
		"TinyDisk":       func(sp *sandbox.Spec) { sp.Limits.Disk = 512 },
		"HugeDisk":       func(sp *sandbox.Spec) { sp.Limits.Disk = math.MaxInt64 },
	} {
		s.sub(t, name, func(t *testing.T) {
			spec := s.spec(t)
			change(&spec)
			s.refused(t, spec, sandbox.KindInvalid)
		})
	}
}

func (s *suite) testMissingRoot(t *testing.T) {
	spec := s.spec(t)
	spec.Root.Dir = filepath.Join(t.TempDir(), "missing")
	s.refused(t, spec, sandbox.KindInvalid, sandbox.KindNotFound)
}

func (s *suite) testExists(t *testing.T) {
	x := s.open(t)
	_, err := s.b.Create(deadline(t), x.spec)
	wantKind(t, "Create of an id in use", err, sandbox.KindExists)
	x.alive() // the failure undid nothing of the first
	if !s.listed(t, x.spec.Instance) {
		t.Error("the first instance is no longer listed")
	}
}

func (s *suite) testSameIDAtOnce(t *testing.T) {
	spec := s.spec(t)
	const n = 4
	insts, errs := make([]sandbox.Instance, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { insts[i], errs[i] = s.b.Create(deadline(t), spec) })
	}
	wg.Wait()
	live := 0
	for i := range n {
		if errs[i] == nil {
			live++
			defer checkDestroy(t, s, insts[i])
			continue
		}
		wantKind(t, "Create of an id being made", errs[i], sandbox.KindExists)
	}
	if live != 1 {
		t.Errorf("%d of %d creations of one id succeeded, want 1", live, n)
	}
}

func (s *suite) testUnsupported(t *testing.T) {
	hinted := func(t *testing.T, err error) {
		t.Helper()
		if e, ok := err.(*sandbox.Error); ok && e.Hint == "" {
			t.Errorf("%v: no hint tells what to do", err)
		}
	}
	s.sub(t, "Isolation", func(t *testing.T) { // beyond the strongest class too
		spec := s.spec(t)
		spec.MinIsolation, spec.AcceptWeaker = s.info.Isolation+1, true // never waived
		hinted(t, s.refused(t, spec, sandbox.KindUnsupported))
	})
	if !s.info.Capabilities.Wire {
		s.sub(t, "Wire", func(t *testing.T) {
			spec := s.spec(t)
			spec.Wire = &sandbox.Wire{NetNS: "/nonexistent", Link: "none0"}
			hinted(t, s.refused(t, spec, sandbox.KindUnsupported))
		})
	}
	s.sub(t, "Boot", func(t *testing.T) { // a kernel of one's own, which is not there: never waived, and never another
		spec := s.spec(t)
		spec.AcceptWeaker = true
		spec.Root.Boot = &sandbox.Boot{Kernel: sandbox.File{Path: "/nonexistent/kernel", Digest: "sha256:" + strings.Repeat("0", 64)}}
		want := sandbox.KindUnsupported
		if s.info.Capabilities.Boot {
			want = sandbox.KindUnavailable
		}
		hinted(t, s.refused(t, spec, want))
	})
	miss := sandbox.AllLimits &^ s.info.Capabilities.Limits
	if miss == 0 {
		return
	}
	s.sub(t, "Limits", func(t *testing.T) {
		for bit := sandbox.LimitSet(1); bit&sandbox.AllLimits != 0; bit <<= 1 {
			if miss&bit == 0 {
				continue
			}
			spec := s.spec(t)
			spec.Limits.CPUs, spec.Explicit = 1, bit
			hinted(t, s.refused(t, spec, sandbox.KindUnsupported))
			x := s.open(t, func(sp *sandbox.Spec) {
				sp.Limits.CPUs, sp.Explicit, sp.AcceptWeaker = 1, bit, true
			})
			if st := x.status(); st.Enforced&bit != 0 {
				t.Errorf("%s was accepted weaker, yet Status says it is enforced", bit)
			}
		}
	})
}

func (s *suite) testEnforced(t *testing.T) {
	x := s.open(t, func(sp *sandbox.Spec) {
		sp.Limits.CPUs = 1
		sp.Explicit = s.info.Capabilities.Limits
	})
	st := x.status()
	if st.Enforced != s.info.Capabilities.Limits {
		t.Errorf("Status.Enforced = %s, Info promises %s", st.Enforced, s.info.Capabilities.Limits)
	}
	if !st.Alive || st.Instance != x.spec.Instance {
		t.Errorf("Status = %+v of a live instance", st)
	}
	if age := time.Since(st.Created); age < 0 || age > 2*patience {
		t.Errorf("Status.Created = %s, %s ago", st.Created, age)
	}
}

// testExecRightAfter is the promise that an exec cannot race the boot.
func (s *suite) testExecRightAfter(t *testing.T) {
	n := min(20, max(3, int(3*time.Second/s.bootTime(t))))
	if testing.Short() || race {
		n = min(n, 5)
	}
	for range n {
		spec := s.spec(t)
		inst, err := s.b.Create(deadline(t), spec)
		if err != nil {
			t.Fatal(err)
		}
		x := &box{T: t, s: s, b: s.b, inst: inst, spec: spec}
		x.Session = x.dial()
		if o, err := x.try(guest.Command{Argv: x.argv("exit", "7")}, ""); err != nil || o.Code != 7 {
			t.Errorf("exec right after create: %+v, %v", o, err)
		}
		x.Session.Close()
		x.destroy(t)
	}
}

func (s *suite) testCreateAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	insts, errs := make([]sandbox.Instance, s.Parallel), make([]error, s.Parallel)
	for i := range s.Parallel {
		spec := s.spec(t)
		wg.Go(func() { insts[i], errs[i] = s.b.Create(deadline(t), spec) })
	}
	wg.Wait()
	for i, inst := range insts {
		if errs[i] != nil {
			t.Errorf("creation %d: %v", i, errs[i])
			continue
		}
		if !s.listed(t, inst.ID()) {
			t.Errorf("%s is not listed", inst.ID())
		}
	}
	for i, inst := range insts {
		if errs[i] == nil {
			wg.Go(func() { checkDestroy(t, s, inst) })
		}
	}
	wg.Wait()
}

// testCanceled ends the context at many moments of the boot.
func (s *suite) testCanceled(t *testing.T) {
	boot := s.bootTime(t)
	steps := 16
	if testing.Short() || race {
		steps = 6
	}
	made := 0
	for i := range steps {
		at := time.Duration(float64(boot) * 1.2 * float64(i) / float64(steps-1))
		spec := s.spec(t)
		ctx, cancel := context.WithCancel(context.Background())
		if i == 0 {
			cancel()
		} else {
			time.AfterFunc(at, cancel)
		}
		inst, err := s.b.Create(ctx, spec)
		ended := time.Now()
		cancel()
		if err == nil {
			made++
			x := &box{T: t, s: s, b: s.b, inst: inst, spec: spec}
			x.Session = x.dial()
			x.alive()
			x.Session.Close()
			x.destroy(t)
			continue
		}
		wantKind(t, "Create, canceled after "+at.String(), err, sandbox.KindCanceled)
		s.checkGone(t, spec.Instance)
		within(t, "cleaning up after a cancellation", time.Since(ended), residue.Settle)
	}
	t.Logf("boot %s: %d of %d were made before the cancellation", boot.Round(time.Microsecond), made, steps)
}

func (s *suite) testDeadlinePassed(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), -time.Second)
	defer cancel()
	spec := s.spec(t)
	_, err := s.b.Create(ctx, spec)
	wantKind(t, "Create after its deadline", err, sandbox.KindTimeout)
	s.checkGone(t, spec.Instance)
}

// testAgentFrozen boots an agent that never answers.
func (s *suite) testAgentFrozen(t *testing.T) {
	if s.Frozen == nil {
		t.Skip("not run: no Config.Frozen")
	}
	d := max(500*time.Millisecond, 3*s.bootTime(t))
	dir := s.Config.Dir(t)
	b, root := s.Frozen(t, dir)
	base, err := residue.Take(s.Scope(dir))
	if err != nil {
		t.Fatal(err)
	}
	spec := s.spec(t)
	spec.Root = root
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	began := time.Now()
	inst, err := b.Create(ctx, spec)
	took := time.Since(began)
	if err == nil {
		inst.Destroy(deadline(t))
		t.Fatal("Create succeeded although the agent never answers")
	}
	wantKind(t, "Create with a frozen agent", err, sandbox.KindTimeout)
	if took < d-50*time.Millisecond {
		t.Errorf("gave up after %s, before the deadline of %s", took, d)
	}
	within(t, "giving up on a frozen agent", took, d)
	for _, f := range residue.Of(s.Scope(dir), string(spec.Instance)) {
		t.Errorf("left behind: %s", f)
	}
	if all, err := b.List(deadline(t)); err != nil || len(all) != 0 {
		t.Errorf("List = %v, %v; want nothing", all, err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for _, f := range base.Diff() {
		if strings.Contains(f.Name, dir) { // others run beside this one
			t.Errorf("left behind: %s", f)
		}
	}
}
