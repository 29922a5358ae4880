package agent_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	verbs "github.com/firebreak-dev/firebreak/internal/guest/probe"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// mortal is a connection whose owner is killed after some bytes, in the middle
// of whatever it was doing.
type mortal struct {
	net.Conn
	mu    sync.Mutex
	read  int
	write int
}

var errKilled = errors.New("killed")

func (m *mortal) Read(p []byte) (int, error) {
	m.mu.Lock()
	left := m.read
	m.mu.Unlock()
	if left == 0 {
		m.Close()
		return 0, errKilled
	}
	n, err := m.Conn.Read(p[:min(len(p), left)])
	m.mu.Lock()
	m.read -= n
	m.mu.Unlock()
	return n, err
}

func (m *mortal) Write(p []byte) (int, error) {
	m.mu.Lock()
	n := min(len(p), m.write)
	m.write -= n
	m.mu.Unlock()
	n, err := m.Conn.Write(p[:n])
	if err == nil && n < len(p) {
		m.Close()
		err = errKilled
	}
	return n, err
}

// TestReattach kills the host at random points, over and over: not one byte of
// output or input is lost or repeated, and the exit is not missed.
func TestReattach(t *testing.T) {
	b := newBox(t)
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	s := b.open(guest.Config{})
	const size = 12 << 20
	out := probe(t, s, guest.Command{}, "out", strconv.Itoa(size))
	in := probe(t, s, guest.Command{Stdin: true}, "sha")
	outID, inID := out.ID(), in.ID()
	s.Close()

	h := sha256.New()
	var got, lives int
	var sum bytes.Buffer
	outDone, inDone := false, false
	for lives = 0; (!outDone || !inDone) && lives < 3000; lives++ {
		m := &mortal{Conn: b.dial(), read: 100 + rnd.IntN(300_000), write: 300_000 + rnd.IntN(400_000)}
		if lives%50 == 49 { // let one live, so that the end is reached
			m.read, m.write = 1<<40, 1<<40
		}
		c, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		s, err := guest.Open(c, m, guest.Config{})
		if err != nil {
			if sandbox.KindOf(err) == sandbox.KindProtocol || sandbox.KindOf(err) == sandbox.KindTimeout {
				t.Fatalf("life %d: %v", lives, err)
			}
			cancel()
			continue
		}
		var wg sync.WaitGroup
		wg.Go(func() { // also break calls to the guest in the middle
			_, _ = s.WriteFile(c, "junk", pattern(t, 400_000), guest.WriteOptions{})
		})
		if !outDone {
			wg.Go(func() {
				p, err := s.Reattach(c, outID, guest.Position{Stdout: int64(got)})
				if err != nil {
					return
				}
				if p.Stdout().Offset() != int64(got) {
					t.Errorf("resumed at %d, want %d", p.Stdout().Offset(), got)
				}
				n, err := io.Copy(h, p.Stdout())
				got += int(n)
				if err == nil {
					e, err := p.Wait(c)
					outDone = err == nil && e.Code == 0
				}
			})
		}
		if !inDone {
			wg.Go(func() {
				p, err := s.Reattach(c, inID, guest.Position{Stdout: int64(sum.Len())})
				if err != nil {
					return
				}
				go func() { // from where the guest is
					buf := make([]byte, 40_000)
					for at := p.StdinOffset(); at < size; {
						n := min(len(buf), int(size-at))
						verbs.Pattern(at, buf[:n], true)
						if _, err := p.Stdin().Write(buf[:n]); err != nil {
							return
						}
						at += int64(n)
					}
					p.Stdin().Close()
				}()
				_, err = io.Copy(&sum, p.Stdout())
				if err == nil {
					_, err := p.Wait(c)
					inDone = err == nil
				}
			})
		}
		wg.Wait()
		s.Close()
		cancel()
		if t.Failed() {
			break
		}
	}
	t.Logf("%d lives", lives)
	if got != size || hex.EncodeToString(h.Sum(nil)) != verbs.PatternHash(size, true) {
		t.Errorf("output: %d of %d bytes, or not the right ones", got, size)
	}
	if want := verbs.PatternHash(size, true) + " " + strconv.Itoa(size) + "\n"; sum.String() != want {
		t.Errorf("input: %q, want %q", sum.String(), want)
	}
	if lives < 10 {
		t.Errorf("only %d lives: the test shows nothing", lives)
	}
}

// TestEndedWhileAway: a program that ended without a host is still reported,
// with its output; once acknowledged it is forgotten.
func TestEndedWhileAway(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{}, "out", "1000")
	id := p.ID()
	must(t, p.Close())
	s.Close()
	time.Sleep(100 * time.Millisecond)
	s = b.open(guest.Config{})
	all, err := s.Processes(ctx(t))
	must(t, err)
	if len(all) != 1 || all[0].ID != id || all[0].Exit == nil || all[0].Exit.Code != 0 || all[0].Argv[2] != "out" {
		t.Fatalf("%+v", all)
	}
	p, err = s.Reattach(ctx(t), id, guest.Position{})
	must(t, err)
	if _, err := s.Reattach(ctx(t), id, guest.Position{}); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("twice: %v", err)
	}
	out, _, e := finish(t, p)
	if len(out) != 1000 || e.Code != 0 {
		t.Errorf("%d bytes, %+v", len(out), e)
	}
	must(t, s.Ping(ctx(t)))
	if _, err := s.Reattach(ctx(t), id, guest.Position{}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("after the acknowledgement: %v", err)
	}
	if _, err := s.Reattach(ctx(t), 9999, guest.Position{}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("unknown: %v", err)
	}
}

// TestFrozenAgent: typed errors, in time.
func TestFrozenAgent(t *testing.T) {
	b := newBox(t, "-freeze")
	c, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := guest.Open(c, b.dial(), guest.Config{})
	if sandbox.KindOf(err) != sandbox.KindTimeout || time.Since(start) > time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

// TestFreezesLater: a session notices an agent that stops answering.
func TestFreezesLater(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{Liveness: 400 * time.Millisecond})
	p := probe(t, s, guest.Command{}, "sleep", "1h")
	time.Sleep(600 * time.Millisecond) // silence alone is no fault: it is pinged
	must(t, s.Ping(ctx(t)))
	must(t, b.cmd.Process.Signal(stop))
	defer b.cmd.Process.Signal(cont)
	start := time.Now()
	_, err := p.Wait(ctx(t))
	if sandbox.KindOf(err) != sandbox.KindTimeout || time.Since(start) > 2*time.Second {
		t.Errorf("wait: %v after %s", err, time.Since(start))
	}
	if _, err := s.Exec(ctx(t), guest.Command{Argv: []string{"x"}}); sandbox.KindOf(err) != sandbox.KindTimeout {
		t.Errorf("exec: %v", err)
	}
	if _, err := io.ReadAll(p.Stdout()); sandbox.KindOf(err) != sandbox.KindTimeout {
		t.Errorf("read: %v", err)
	}
}

// TestHostDeadline: the guest does not enforce a deadline, the host does.
func TestHostDeadline(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{Liveness: time.Minute})
	p := probe(t, s, guest.Command{Timeout: 200 * time.Millisecond}, "sleep", "1h")
	must(t, b.cmd.Process.Signal(stop))
	defer b.cmd.Process.Signal(cont)
	start := time.Now()
	e, err := p.Wait(ctx(t))
	if d := time.Since(start); sandbox.KindOf(err) != sandbox.KindTimeout || e.Reason != sandbox.ReasonTimeout || d > 3*time.Second {
		t.Errorf("%+v %v after %s", e, err, d)
	}
}

// TestCancel: calls end with their context, whatever the agent does.
func TestCancel(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	must(t, b.cmd.Process.Signal(stop))
	c, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := s.WriteFile(c, "f", pattern(t, 50<<20), guest.WriteOptions{})
	want(t, "write", err, sandbox.KindTimeout)
	_, err = s.Exec(c, guest.Command{Argv: []string{guest.AgentPath, "probe", "sleep", "1h"}})
	want(t, "exec", err, sandbox.KindTimeout)
	want(t, "ping", s.Ping(c), sandbox.KindTimeout)
	must(t, b.cmd.Process.Signal(cont))
	must(t, s.Ping(ctx(t)))
	onlyAgent(t, s) // the exec that was given up does not run
}

// TestHold: a process that is held is there for another session until it is
// released, whatever has been read of it; bytes only peeked at come again.
func TestHold(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{Hold: true}, "out", "100000")
	id := p.ID()
	data, err := p.Stdout().Peek(0, 1000)
	if err != nil || len(data) == 0 || len(data) > 1000 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	p.Stdout().Discard(10)
	if more, err := p.Stdout().Peek(len(data)-10, 1000); err != nil || len(more) <= len(data)-10 || string(more[:len(data)-10]) != string(data[10:]) {
		t.Errorf("%d bytes, %v", len(more), err)
	}
	s.Close()
	if rest, err := p.Stdout().Peek(1<<20, 1<<20); sandbox.KindOf(err) != sandbox.KindCanceled && (err != io.EOF || len(rest) != 99_990) || len(rest) == 0 { // all may have come by then
		t.Errorf("after the end of the session: %d bytes, %v", len(rest), err)
	}
	for range 2 {
		s = b.open(guest.Config{})
		p, err = s.Reattach(ctx(t), id, guest.Position{Stdout: 10, Hold: true})
		must(t, err)
		var got []byte
		for {
			data, err := p.Stdout().Peek(0, 7000)
			got = append(got, data...)
			p.Stdout().Discard(min(len(data), 1)) // the rest is acknowledged by nobody
			if err == io.EOF || len(got) > 0 {
				break
			}
		}
		if string(got[:100]) != string(all(pattern(t, 200))[10:110]) {
			t.Errorf("resumed with %q", got[:20])
		}
		s.Close()
	}
	s = b.open(guest.Config{})
	p, err = s.Reattach(ctx(t), id, guest.Position{Stdout: 10, Hold: true})
	must(t, err)
	if _, err := io.Copy(io.Discard, p.Stdout()); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, p.Stderr()); err != nil {
		t.Error(err)
	}
	if e, err := p.Wait(ctx(t)); err != nil || e.Code != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	known := func() bool {
		list, err := s.Processes(ctx(t))
		must(t, err)
		for _, i := range list {
			if i.ID == id {
				return true
			}
		}
		return false
	}
	if !known() {
		t.Error("the guest forgot a process that is held")
	}
	p.Release()
	p.Release()
	for range 100 {
		if !known() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the guest does not forget a process that was released")
}

func all(r io.Reader) []byte {
	b, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return b
}
