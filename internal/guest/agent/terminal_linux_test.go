package agent_test

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var vt = &guest.Size{Cols: 80, Rows: 24}

// screen reads what a terminal shows until that has the text.
func screen(t testing.TB, p *guest.Process, text string) string {
	t.Helper()
	var b strings.Builder
	one := make([]byte, 1)
	for !strings.HasSuffix(b.String(), text) {
		if _, err := p.Stdout().Read(one); err != nil {
			t.Fatalf("%v after %q, before %q", err, b.String(), text)
		}
		b.Write(one)
	}
	return b.String()
}

func typed(t testing.TB, p *guest.Process, text string) {
	t.Helper()
	_, err := io.WriteString(p.Stdin(), text)
	must(t, err)
}

// A program with a terminal has one terminal three times over, that controls its
// session, has a size that can be changed, and a name.
func TestTerminal(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{PTY: vt}, "terminal", "2")
	screen(t, p, "80x24 xterm-256color\r\n")
	must(t, s.Resize(ctx(t), p.ID(), guest.Size{Cols: 132, Rows: 43}))
	screen(t, p, "132x43 xterm-256color\r\n")
	must(t, s.Resize(ctx(t), p.ID(), guest.Size{Cols: guest.MaxSide, Rows: 1}))
	out, errs, e := finish(t, p)
	if out != "4096x1 xterm-256color\r\n" || errs != "" || e.Code != 0 {
		t.Errorf("%q %q %+v", out, errs, e)
	}
	for _, user := range []string{"root", "other"} {
		out, _, e := run(t, s, guest.Command{PTY: vt, User: user, Env: []string{"TERM=dumb"}}, "terminal")
		if out != "80x24 dumb\r\n" || e.Code != 0 {
			t.Errorf("%s: %q %+v", user, out, e)
		}
	}
	for _, size := range []guest.Size{{}, {Cols: 80}, {Rows: 24}, {Cols: -1, Rows: 24}, {Cols: guest.MaxSide + 1, Rows: 24}} {
		_, err := s.Exec(ctx(t), guest.Command{Argv: []string{guest.AgentPath}, PTY: &size})
		if sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%+v: %v", size, err)
		}
		if err := s.Resize(ctx(t), 1, size); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("resize to %+v: %v", size, err)
		}
	}
	if err := s.Resize(ctx(t), p.ID(), *vt); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("resize of one that has ended: %v", err)
	}
	plain := probe(t, s, guest.Command{Stdin: true}, "cat")
	if err := s.Resize(ctx(t), plain.ID(), *vt); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("resize without a terminal: %v", err)
	}
	plain.Stdin().Close()
	finish(t, plain)
}

// What is typed is echoed, edited and turned into signals by the terminal, as at
// any other one.
func TestTerminalTyping(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{PTY: vt}, "cat")
	typed(t, p, "hellp\x7fo\r")
	screen(t, p, "hello\r\n")
	typed(t, p, "bye\r\x04")
	out, errs, e := finish(t, p)
	if !strings.HasSuffix(out, "bye\r\n") || errs != "" || e.Code != 0 {
		t.Errorf("^D: %q %q %+v", out, errs, e)
	}
	for key, sig := range map[string]int{"\x03": 2, "\x1c": 3} {
		p := probe(t, s, guest.Command{PTY: vt}, "sleep", "1h")
		// Also behind lines that the program has not read, which the signal discards.
		typed(t, p, "typed ahead\r")
		screen(t, p, "typed ahead\r\n")
		typed(t, p, "more\r"+key)
		if _, _, e := finish(t, p); e.Signal != sig && e.Code == 0 {
			t.Errorf("%q: %+v", key, e)
		}
	}
}

// Closing the input hangs up: SIGHUP. What the program prints after that is read;
// one that does not mind goes on to its end or its deadline.
func TestTerminalHangup(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{PTY: vt}, "sleep", "1h")
	must(t, p.Stdin().Close())
	if _, _, e := finish(t, p); e.Signal != 1 {
		t.Errorf("%+v", e)
	}
	p = probe(t, s, guest.Command{PTY: vt, Timeout: time.Minute}, "ignore-hup")
	screen(t, p, "ready\r\n")
	must(t, p.Stdin().Close())
	screen(t, p, "SIGHUP\r\n")
	must(t, p.Signal(ctx(t), 9))
	if _, _, e := finish(t, p); e.Signal != 9 {
		t.Errorf("%+v", e)
	}
}

// A terminal is reattached to like anything else: not a byte of what it shows is
// lost or repeated, and what is typed over the new session arrives.
func TestTerminalReattach(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	p := probe(t, s, guest.Command{PTY: vt, Hold: true}, "cat")
	typed(t, p, "one\r")
	got := screen(t, p, "one\r\none\r\n")
	id := p.ID()
	s.Close()
	s = b.open(guest.Config{})
	p, err := s.Reattach(ctx(t), id, guest.Position{Stdout: int64(len(got))})
	must(t, err)
	if p.StdinOffset() != 4 {
		t.Errorf("input is expected from %d on", p.StdinOffset())
	}
	typed(t, p, "two\r")
	if got := screen(t, p, "two\r\ntwo\r\n"); got != "two\r\ntwo\r\n" {
		t.Errorf("%q", got)
	}
	must(t, s.Resize(ctx(t), id, guest.Size{Cols: 1, Rows: 1}))
	typed(t, p, "\x04")
	if _, _, e := finish(t, p); e.Code != 0 {
		t.Errorf("%+v", e)
	}
}

// TestTerminalVolume: what a program prints to a terminal is all there, also when
// nobody reads for a while, and resizes in any number do not disturb it.
func TestTerminalVolume(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	const size = 4 << 20
	p := probe(t, s, guest.Command{PTY: vt}, "noline", strconv.Itoa(size))
	other := probe(t, s, guest.Command{PTY: vt}, "cat")
	for i := range 300 {
		must(t, s.Resize(ctx(t), p.ID(), guest.Size{Cols: 1 + i%100, Rows: 1 + i%50}))
	}
	typed(t, other, "alive\r") // beside one that nobody reads
	screen(t, other, "alive\r\nalive\r\n")
	typed(t, other, "\x04")
	finish(t, other)
	var want, got bytes.Buffer
	plain := probe(t, s, guest.Command{}, "noline", strconv.Itoa(size))
	_, err := io.Copy(&want, plain.Stdout())
	must(t, err)
	_, err = io.Copy(&got, p.Stdout())
	must(t, err)
	if got.Len() != size || !bytes.Equal(want.Bytes(), got.Bytes()) {
		t.Errorf("%d bytes of %d, or other ones", got.Len(), size)
	}
	finish(t, p)
	finish(t, plain)
}

// A guest that takes every terminal there is takes them from itself: the agent
// answers, and programs without a terminal start.
func TestTerminalsExhausted(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	hogs := []*guest.Process{probe(t, s, guest.Command{}, "ptmx"), probe(t, s, guest.Command{}, "ptmx")}
	for _, hog := range hogs {
		if l := line(t, hog.Stdout()); !strings.HasPrefix(l, "full ") {
			t.Fatal(l)
		}
	}
	if out, _, e := run(t, s, guest.Command{}, "echo", "fine"); out != "fine\n" || e.Code != 0 {
		t.Errorf("%q %+v", out, e)
	}
	p, err := s.Exec(ctx(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "terminal"}, PTY: vt})
	if err == nil {
		finish(t, p) // the kernel had more than they may open
	} else if sandbox.KindOf(err) != sandbox.KindCapacity {
		t.Errorf("%v", err)
	}
	for _, hog := range hogs {
		must(t, hog.Signal(ctx(t), 9))
		finish(t, hog)
	}
	if out, _, e := run(t, s, guest.Command{PTY: vt}, "terminal"); out != "80x24 xterm-256color\r\n" {
		t.Errorf("afterwards: %q %+v", out, e)
	}
}

// Many terminals leave no descriptor behind.
func TestTerminalsAreClosed(t *testing.T) {
	b := newBox(t)
	s := b.open(guest.Config{})
	run(t, s, guest.Command{PTY: vt}, "exit", "0")
	before := b.descriptors()
	for range 30 {
		run(t, s, guest.Command{PTY: vt}, "hold-output")
		_, err := s.Exec(ctx(t), guest.Command{Argv: []string{"/etc/passwd"}, PTY: vt})
		if sandbox.KindOf(err) != sandbox.KindDenied {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(time.Minute)
	for b.descriptors() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", b.descriptors(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// descriptors counts what the agent has open.
func (b *box) descriptors() int {
	b.t.Helper()
	all, err := os.ReadDir("/proc/" + strconv.Itoa(b.cmd.Process.Pid) + "/fd")
	must(b.t, err)
	return len(all)
}
