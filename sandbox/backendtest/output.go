package backendtest

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/probe"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testOutput(t *testing.T, s *suite) {
	s.sub(t, "NoLoss", s.testNoLoss)
	s.sub(t, "NoNewline", s.testNoNewline)
	s.sub(t, "StalledReader", s.testStalledReader)
	s.sub(t, "Abandoned", s.testAbandoned)
}

// volume scales an amount of data to how the test runs.
func (s *suite) volume(n int64) int64 {
	if testing.Short() || race {
		return n / max(16, s.Volume)
	}
	return n / s.Volume
}

// drain hashes r and counts what came.
type drain struct {
	h hash.Hash
	n atomic.Int64
}

func (d *drain) Write(p []byte) (int, error) {
	d.n.Add(int64(len(p)))
	if d.h != nil {
		d.h.Write(p)
	}
	return len(p), nil
}

func (s *suite) testNoLoss(t *testing.T) {
	x := s.open(t)
	n := s.volume(100_000_000)
	for _, channel := range []string{"stdout", "stderr"} {
		p := x.start("out", fmt.Sprint(n), channel)
		main, other := &drain{h: sha256.New()}, &drain{}
		a, b := p.Stdout(), p.Stderr()
		if channel == "stderr" {
			a, b = b, a
		}
		done := make(chan error, 2)
		go func() { _, err := io.Copy(main, a); done <- err }()
		go func() { _, err := io.Copy(other, b); done <- err }()
		for range 2 {
			select {
			case err := <-done:
				if err != nil {
					t.Fatalf("%s: %v", channel, err)
				}
			case <-deadline(t).Done():
				t.Fatalf("%s: stalled after %d of %d bytes", channel, main.n.Load(), n)
			}
		}
		if e := x.wait(p); e.Code != 0 {
			t.Fatalf("out ended with %+v", e)
		}
		if got := main.n.Load(); got != n || fmt.Sprintf("%x", main.h.Sum(nil)) != probe.PatternHash(n, true) {
			t.Errorf("%s: %d bytes came, want %d, or they differ", channel, got, n)
		}
		if other.n.Load() != 0 {
			t.Errorf("%d bytes came on the other channel than %s", other.n.Load(), channel)
		}
	}
}

// testNoNewline: output without a line end must not gather anywhere in this
// process.
func (s *suite) testNoNewline(t *testing.T) {
	x := s.open(t)
	n := s.volume(1 << 30)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	runtime.GC()
	before, peak := heap(), int64(0)
	p := x.start("noline", fmt.Sprint(n))
	got := &drain{}
	copied := make(chan error, 1)
	go func() { _, err := io.Copy(got, p.Stdout()); copied <- err }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(5 * patience)
	for running := true; running; {
		select {
		case err := <-copied:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-tick.C:
			peak = max(peak, heap()-before)
		case <-end:
			t.Fatalf("stalled after %d of %d bytes", got.n.Load(), n)
		}
	}
	p.Stderr().Close()
	if e := x.wait(p); e.Code != 0 || got.n.Load() != n {
		t.Errorf("%d of %d bytes came, exit %+v", got.n.Load(), n, e)
	}
	const bound = 48 << 20
	if peak > bound {
		t.Errorf("the host's heap grew by %s, want at most %s", sandbox.FormatSize(peak), sandbox.FormatSize(bound))
	}
	t.Logf("%s came, the heap grew by %s", sandbox.FormatSize(n), sandbox.FormatSize(peak))
}

// testStalledReader: who does not read stalls his own program, nobody else's.
func (s *suite) testStalledReader(t *testing.T) {
	x := s.open(t)
	n := s.volume(32 << 20)
	p := x.start("out", fmt.Sprint(n))
	for i := range 8 {
		if o := x.probe("echo", fmt.Sprint(i)); o.out != fmt.Sprintf("%d\n", i) {
			t.Errorf("exec beside a stalled one: %+v", o)
		}
	}
	if o := x.exec(guest.Command{Argv: x.argv("cat")}, strings.Repeat("y", 1<<20)); len(o.out) != 1<<20 {
		t.Errorf("1 MiB through cat beside a stalled exec: %d bytes", len(o.out))
	}
	if _, err := x.Stat(deadline(t), "/tmp", ""); err != nil {
		t.Errorf("a file operation beside a stalled exec: %v", err)
	}
	got := &drain{h: sha256.New()}
	if _, err := io.Copy(got, p.Stdout()); err != nil {
		t.Fatal(err)
	}
	p.Stderr().Close()
	if e := x.wait(p); e.Code != 0 || fmt.Sprintf("%x", got.h.Sum(nil)) != probe.PatternHash(n, true) {
		t.Errorf("read late: %d of %d bytes, exit %+v", got.n.Load(), n, e)
	}
}

// testAbandoned: a stream that is closed unread does not block its program.
func (s *suite) testAbandoned(t *testing.T) {
	x := s.open(t)
	p := x.start("out", fmt.Sprint(s.volume(32<<20)))
	p.Stdout().Close()
	p.Stderr().Close()
	if e := x.wait(p); e.Code != 0 && e.Signal != 13 {
		t.Errorf("a program whose output nobody wants ended with %+v", e)
	}
	x.alive()
}
