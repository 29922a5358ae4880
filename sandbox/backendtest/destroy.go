package backendtest

import (
	"context"
	"io"
	"reflect"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
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
