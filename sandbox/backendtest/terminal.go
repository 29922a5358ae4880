package backendtest

import (
	"io"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// terminal starts a probe with a terminal.
func (x *box) terminal(verb ...string) *guest.Process {
	x.Helper()
	p, err := x.Exec(deadline(x.T), guest.Command{Argv: x.argv(verb...), PTY: &guest.Size{Cols: 80, Rows: 24}})
	if err != nil {
		x.Fatalf("start %q with a terminal: %v", verb, err)
	}
	return p
}

func (x *box) typed(p *guest.Process, keys string) {
	x.Helper()
	if _, err := io.WriteString(p.Stdin(), keys); err != nil {
		x.Fatalf("typing %q: %v", keys, err)
	}
}

func (s *suite) testTerminal(t *testing.T) {
	x := s.open(t)
	p := x.terminal("terminal", "1")
	until(t, p, "80x24 xterm-256color\r\n")
	if err := x.Resize(deadline(t), p.ID(), guest.Size{Cols: 132, Rows: 43}); err != nil {
		t.Fatalf("resize: %v", err)
	}
	until(t, p, "132x43 xterm-256color\r\n")
	if e := x.wait(p); e.Code != 0 {
		t.Errorf("terminal: %+v", e)
	}

	p = x.terminal("cat")
	x.typed(p, "hello\r")
	until(t, p, "hello\r\nhello\r\n") // the echo, and what it prints
	x.typed(p, "\x04")
	if e := x.wait(p); e.Code != 0 {
		t.Errorf("^D: %+v, want end of file", e)
	}
	if b, err := io.ReadAll(p.Stderr()); err != nil || len(b) > 0 {
		t.Errorf("a terminal is one stream, and stderr has %q, %v", b, err)
	}

	p = x.terminal("sleep", "1h")
	x.typed(p, "ahead\r")
	until(t, p, "ahead\r\n")
	x.typed(p, "\x03") // behind a line that nobody reads
	if e := x.wait(p); e.Signal != 2 {
		t.Errorf("^C: %+v, want death by SIGINT", e)
	}

	p = x.terminal("sleep", "1h")
	if err := p.Stdin().Close(); err != nil {
		t.Fatal(err)
	}
	if e := x.wait(p); e.Signal != 1 {
		t.Errorf("closed: %+v, want death by SIGHUP", e)
	}
	wantKind(t, "resize of a program that has ended", x.Resize(deadline(t), p.ID(), guest.Size{Cols: 1, Rows: 1}), sandbox.KindNotFound)

	for _, size := range []guest.Size{{}, {Cols: 80, Rows: -1}, {Cols: guest.MaxSide + 1, Rows: 1}} {
		_, err := x.Exec(deadline(t), guest.Command{Argv: x.argv("echo"), PTY: &size})
		wantKind(t, "a terminal of impossible size", err, sandbox.KindInvalid)
	}
	x.alive()
}
