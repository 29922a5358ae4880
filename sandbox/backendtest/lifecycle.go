package backendtest

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testLifecycle(t *testing.T, s *suite) {
	s.par(t, "DialTwice", s.testDialTwice)
	s.par(t, "ReattachProcess", s.testReattachProcess)
	s.par(t, "CloseStream", s.testCloseStream)
	s.par(t, "GarbageOnStream", s.testGarbage)
	s.par(t, "Attach", s.testAttach)
	s.par(t, "AttachUnknown", func(t *testing.T) {
		_, err := s.b.Attach(deadline(t), sandbox.NewInstanceID())
		wantKind(t, "Attach to an unknown id", err, sandbox.KindNotFound)
		_, err = s.b.Attach(deadline(t), "in/../../../../../../../..")
		wantKind(t, "Attach to a path", err, sandbox.KindNotFound, sandbox.KindInvalid)
	})
	s.par(t, "WaitHonoursContext", s.testWaitContext)
	s.par(t, "KilledFromOutside", s.testKilled)
	s.par(t, "KilledBeforeAttach", s.testKilledBeforeAttach)
}

// testDialTwice: a new stream invalidates the one before.
func (s *suite) testDialTwice(t *testing.T) {
	x := s.open(t)
	first := x.Session
	p := x.start("cat")
	x.Session = x.dial()
	select {
	case <-first.Done():
	case <-deadline(t).Done():
		t.Fatal("the first session lives on beside the second")
	}
	wantKind(t, "a call on the old session", first.Ping(deadline(t)), sandbox.KindUnavailable, sandbox.KindProtocol)
	_, err := p.Wait(deadline(t))
	wantKind(t, "waiting on the old session", err, sandbox.KindUnavailable, sandbox.KindProtocol)
	x.alive()

	// The raw streams too: a read on the old one does not hang.
	old, err := x.inst.Dial(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	read := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, old)
		read <- err
	}()
	x.Session = x.dial()
	select {
	case <-read:
	case <-deadline(t).Done():
		t.Fatal("a read on the old stream hangs")
	}
	if _, err := old.Write([]byte("x")); err == nil {
		t.Error("a write on the old stream succeeded")
	}
	x.alive()
}

// testReattachProcess: programs survive the stream, and no byte is lost.
func (s *suite) testReattachProcess(t *testing.T) {
	x := s.open(t)
	p := x.start("cat")
	if _, err := io.WriteString(p.Stdin(), "before\n"); err != nil {
		t.Fatal(err)
	}
	until(t, p, "before\n")
	x.Session.Close()

	x.Session = x.dial()
	p, err := x.Reattach(deadline(t), p.ID(), guest.Position{Stdout: int64(len("before\n"))})
	if err != nil {
		t.Fatalf("Reattach: %v", err)
	}
	if _, err := io.WriteString(p.Stdin(), "after\n"); err != nil {
		t.Fatal(err)
	}
	p.Stdin().Close()
	out, err := io.ReadAll(p.Stdout())
	if err != nil || string(out) != "after\n" {
		t.Errorf("after reattaching: %q, %v; want %q", out, err, "after\n")
	}
	go p.Stderr().Close()
	if e := x.wait(p); e.Code != 0 || e.Reason != sandbox.ReasonDone {
		t.Errorf("exit %+v, want 0, done", e)
	}
}

// testCloseStream: closing the stream does not end the instance.
func (s *suite) testCloseStream(t *testing.T) {
	x := s.open(t)
	for range 3 {
		x.Session.Close()
		if st := x.status(); !st.Alive {
			t.Fatal("the instance ended with its stream")
		}
		x.Session = x.dial()
		x.alive()
	}
}

// testGarbage: a host that died in the middle of a frame leaves a stream the
// next one can use.
func (s *suite) testGarbage(t *testing.T) {
	x := s.open(t)
	for _, junk := range [][]byte{
		{0xfb},
		guest.AppendFrame(nil, guest.TypeCall, 9, make([]byte, 5000))[:2000],
		make([]byte, 3000),
		[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		x.Session.Close()
		conn, err := x.inst.Dial(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(junk); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		x.Session = x.dial()
		x.alive()
	}
}

// testAttach: another backend over the same directory, as after a restart.
func (s *suite) testAttach(t *testing.T) {
	x := s.open(t)
	p := x.start("cat")
	x.Session.Close()
	_ = p

	next := s.New(t, s.dir)
	defer func() {
		if err := next.Close(); err != nil {
			t.Errorf("Close of the second backend: %v", err)
		}
		// The instance outlives it.
		if st := x.status(); !st.Alive {
			t.Error("the instance ended with a backend that was closed")
		}
	}()
	all, err := next.List(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, st := range all {
		if st.Instance == x.spec.Instance {
			found = st.Alive
		}
	}
	if !found {
		t.Fatalf("the second backend lists %v, want %s alive", all, x.spec.Instance)
	}
	inst, err := next.Attach(deadline(t), x.spec.Instance)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	y := &box{T: t, s: s, b: next, inst: inst, spec: x.spec}
	y.Session = y.dial()
	y.alive()
	if a, b := y.status(), x.status(); !a.Created.Equal(b.Created) || a.Enforced != b.Enforced {
		t.Errorf("after attaching: created %s, enforced %s; before: %s, %s", a.Created, a.Enforced, b.Created, b.Enforced)
	}
	ps, err := y.Processes(deadline(t))
	if err != nil || len(ps) == 0 {
		t.Errorf("the program started before is gone: %v, %v", ps, err)
	}
	_, err = next.Create(deadline(t), x.spec)
	wantKind(t, "Create of an id of the first backend", err, sandbox.KindExists)
}

func (s *suite) testWaitContext(t *testing.T) {
	x := s.open(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := x.inst.Wait(ctx)
	wantKind(t, "Wait on a live instance", err, sandbox.KindTimeout)
	within(t, "Wait", time.Since(began), 50*time.Millisecond)
	x.alive()
}

// ended asserts what holds for every instance that has ended but was not
// destroyed.
func (x *box) ended(want ...sandbox.Reason) {
	x.Helper()
	exit, err := x.inst.Wait(deadline(x.T))
	if err != nil {
		x.Fatalf("Wait: %v", err)
	}
	if !oneOf(exit.Reason, want...) {
		x.Errorf("Wait says %q (%s), want one of %q", exit.Reason, exit.Detail, want)
	}
	if exit.Time.IsZero() {
		x.Error("Wait does not say when")
	}
	again, err := x.inst.Wait(deadline(x.T))
	if err != nil || again.Reason != exit.Reason {
		x.Errorf("the second Wait says %q, %v; the first %q", again.Reason, err, exit.Reason)
	}
	st := x.status()
	if st.Alive || st.Exit.Reason != exit.Reason {
		x.Errorf("Status says alive=%v, reason %q; Wait said %q", st.Alive, st.Exit.Reason, exit.Reason)
	}
	_, err = x.inst.Dial(deadline(x.T))
	wantKind(x.T, "Dial of an ended instance", err, sandbox.KindGone)
}

func oneOf(r sandbox.Reason, set ...sandbox.Reason) bool {
	for _, s := range set {
		if r == s {
			return true
		}
	}
	return false
}

// testKilled: the boundary dies under running programs.
func (s *suite) testKilled(t *testing.T) {
	if s.Kill == nil {
		t.Skip("not run: no Config.Kill")
	}
	x := s.open(t)
	p := x.start("cat")
	if _, err := io.WriteString(p.Stdin(), "up\n"); err != nil {
		t.Fatal(err)
	}
	until(t, p, "up\n")
	s.Kill(t, s.b, x.spec.Instance)
	x.ended(sandbox.ReasonCrashed, sandbox.ReasonLost)
	if _, err := p.Wait(deadline(t)); err == nil {
		t.Error("an exec in flight ended as if nothing had happened")
	} else {
		wantKind(t, "an exec in flight", err, sandbox.KindUnavailable, sandbox.KindGone, sandbox.KindTimeout)
	}
	if _, err := x.Exec(deadline(t), guest.Command{Argv: x.argv("exit", "0")}); err == nil {
		t.Error("an exec after the end succeeded")
	}
	if !s.listed(t, x.spec.Instance) {
		t.Error("a dead instance is not listed: the reaper would never find it")
	}
}

// testKilledBeforeAttach: the boundary died while nobody watched.
func (s *suite) testKilledBeforeAttach(t *testing.T) {
	if s.Kill == nil {
		t.Skip("not run: no Config.Kill")
	}
	x := s.open(t)
	s.Kill(t, s.b, x.spec.Instance)
	if _, err := x.inst.Wait(deadline(t)); err != nil {
		t.Fatal(err)
	}
	next := s.New(t, s.dir)
	defer next.Close()
	inst, err := next.Attach(deadline(t), x.spec.Instance)
	if err != nil {
		t.Fatalf("Attach to a dead instance: %v", err)
	}
	y := &box{T: t, s: s, b: next, inst: inst, spec: x.spec}
	y.ended(sandbox.ReasonCrashed, sandbox.ReasonLost)
	y.destroy(t) // and x's own Destroy, later, must find that fine
}
