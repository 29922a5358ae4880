package backendtest

import (
	"context"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

func testDestroy(t *testing.T, s *suite) {
	s.par(t, "Twice", s.testDestroyTwice)
	s.par(t, "Ended", s.testDestroyed)
	s.par(t, "WakesWait", s.testDestroyWakesWait)
	s.par(t, "AtOnce", s.testDestroyAtOnce)
	s.par(t, "Canceled", s.testDestroyCanceled)
	s.par(t, "DuringExec", s.testDestroyDuringExec)
	s.par(t, "Daemons", s.testDestroyDaemons)
	s.par(t, "ByAnotherBackend", s.testDestroyByAnother)
	s.par(t, "ReceiptIsComplete", s.testReceiptIsComplete)
}

func (s *suite) testDestroyTwice(t *testing.T) {
	x := s.open(t)
	first := checkDestroy(t, s, x.inst)
	again, err := x.inst.Destroy(deadline(t))
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("the second Destroy returned %+v, %v; the first %+v", again, err, first)
	}
}

func (s *suite) testDestroyed(t *testing.T) {
	x := s.open(t)
	checkDestroy(t, s, x.inst)
	exit, err := x.inst.Wait(deadline(t))
	if err != nil || exit.Reason != sandbox.ReasonOperator {
		t.Errorf("Wait after Destroy: %+v, %v; want reason operator", exit, err)
	}
	st, err := x.inst.Status(deadline(t))
	if k := sandbox.KindOf(err); st.Alive || k != "" && k != sandbox.KindGone && k != sandbox.KindNotFound {
		t.Errorf("Status after Destroy: %+v, %v", st, err)
	}
	_, err = x.inst.Dial(deadline(t))
	wantKind(t, "Dial after Destroy", err, sandbox.KindGone)
}

func (s *suite) testDestroyWakesWait(t *testing.T) {
	x := s.open(t)
	got := make(chan error, 1)
	go func() {
		_, err := x.inst.Wait(deadline(t))
		got <- err
	}()
	x.destroy(t)
	select {
	case err := <-got:
		if err != nil {
			t.Errorf("Wait: %v", err)
		}
	case <-deadline(t).Done():
		t.Error("Wait hangs after Destroy")
	}
}

func (s *suite) testDestroyAtOnce(t *testing.T) {
	x := s.open(t)
	const n = 8
	var wg sync.WaitGroup
	receipts, errs := make([]sandbox.Receipt, n), make([]error, n)
	for i := range n {
		wg.Go(func() { receipts[i], errs[i] = x.inst.Destroy(deadline(t)) })
	}
	wg.Wait()
	for i := range n {
		if errs[i] != nil || !reflect.DeepEqual(receipts[i], receipts[0]) {
			t.Errorf("call %d: %+v, %v; want %+v", i, receipts[i], errs[i], receipts[0])
		}
	}
	checkReceipt(t, x.inst.ID(), receipts[0])
	s.checkGone(t, x.inst.ID())
}

func (s *suite) testDestroyCanceled(t *testing.T) {
	x := s.open(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// It finishes its work even so; what it answers is its own affair.
	if r, err := x.inst.Destroy(ctx); err == nil {
		checkReceipt(t, x.inst.ID(), r)
	}
	s.checkGone(t, x.inst.ID())
}

func (s *suite) testDestroyDuringExec(t *testing.T) {
	x := s.open(t)
	p := x.start("cat")
	if _, err := io.WriteString(p.Stdin(), "up\n"); err != nil {
		t.Fatal(err)
	}
	until(t, p, "up\n")
	x.start("spin")
	x.start("ignore-term")
	x.destroy(t)
	_, err := p.Wait(deadline(t))
	wantKind(t, "an exec in flight", err, sandbox.KindUnavailable, sandbox.KindGone, sandbox.KindCanceled)
}

func (s *suite) testDestroyDaemons(t *testing.T) {
	x := s.open(t)
	if o := x.probe("daemon"); o.Code != 0 {
		t.Errorf("daemon: %+v", o)
	}
	x.alive()
	x.destroy(t)
}

func (s *suite) testDestroyByAnother(t *testing.T) {
	x := s.open(t)
	next := s.New(t, s.dir)
	defer next.Close()
	inst, err := next.Attach(deadline(t), x.spec.Instance)
	if err != nil {
		t.Fatal(err)
	}
	r, err := inst.Destroy(deadline(t))
	if err != nil {
		t.Errorf("Destroy: %v", err)
	}
	checkReceipt(t, x.spec.Instance, r)
	s.checkGone(t, x.spec.Instance)
	exit, err := x.inst.Wait(deadline(t))
	if err != nil || !oneOf(exit.Reason, sandbox.ReasonOperator, sandbox.ReasonLost, sandbox.ReasonCrashed) {
		t.Errorf("the first backend's Wait says %+v, %v", exit, err)
	}
}

// testReceiptIsComplete: what the oracle sees of a live instance, twice, so
// that it is there to stay, is in the receipt of its end.
func (s *suite) testReceiptIsComplete(t *testing.T) {
	x := s.open(t)
	p := x.start("cat")
	if _, err := io.WriteString(p.Stdin(), "up\n"); err != nil {
		t.Fatal(err)
	}
	until(t, p, "up\n")
	saw := residue.Seen(s.Scope(s.dir), string(x.spec.Instance))
	again := residue.Seen(s.Scope(s.dir), string(x.spec.Instance))
	r := checkDestroy(t, s, x.inst)
	for _, f := range saw {
		if slices.Contains(again, f) && !covered(f, r.Objects) {
			t.Errorf("the receipt leaves out %s", f)
		}
	}
}

// covered reports whether objects account for f: by itself, or by what it goes
// with.
func covered(f residue.Finding, objects []sandbox.Object) bool {
	path := func(o sandbox.Object, in bool) bool {
		return o.Name == f.Name || in && strings.HasPrefix(f.Name, o.Name+string(filepath.Separator))
	}
	return slices.ContainsFunc(objects, func(o sandbox.Object) bool {
		switch f.Kind {
		case "descriptor": // of this process, which is no part of an instance
			return true
		case "process":
			pid, _, _ := strings.Cut(f.Name, " ")
			return o.Kind == f.Kind && strings.HasPrefix(o.Name, pid+"@")
		case "netns":
			return o.Kind == "namespace" && o.Name == f.Name
		case "mount": // one in a namespace of its own ends with that
			_, ns, inside := strings.Cut(f.Name, " in ")
			ns, _, _ = strings.Cut(ns, " ")
			return o.Kind == f.Kind && path(o, false) || inside && o.Kind == "namespace" && o.Name == ns
		case "cgroup":
			return o.Kind == f.Kind && path(o, true)
		case "file":
			return path(o, o.Kind == "directory")
		case "socket": // bound by a relative path, perhaps
			return o.Kind == f.Kind && strings.HasSuffix(o.Name, f.Name)
		}
		return o.Kind == f.Kind && o.Name == f.Name
	})
}
