package sim

import (
	"bytes"
	"io"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// terminal models a terminal in its usual mode: lines, echo, ^C and ^D.
type terminal struct {
	in, out *queue
	group   *group

	mu   sync.Mutex
	size guest.Size // guarded by mu
	line []byte     // guarded by mu; typed and not yet entered
}

// Write is what is typed.
func (t *terminal) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, c := range b {
		var err error
		switch c {
		case 3: // ^C
			t.line = nil
			t.group.kill(syscall.SIGINT)
			_, err = t.out.write([]byte("^C"), nil, nil)
		case 4: // ^D
			t.in.close()
		case '\r', '\n':
			if _, err = t.out.write([]byte("\r\n"), nil, nil); err == nil {
				_, err = t.in.write(append(t.line, '\n'), nil, nil)
				t.line = nil
			}
		default:
			t.line = append(t.line, c)
			_, err = t.out.write([]byte{c}, nil, nil)
		}
		if err != nil {
			return i, err
		}
	}
	return len(b), nil
}

// Close implements io.Closer: it hangs up.
func (t *terminal) Close() error {
	t.group.kill(syscall.SIGHUP)
	return nil
}

func (t *terminal) resize(size guest.Size) {
	t.mu.Lock()
	t.size = size
	t.mu.Unlock()
	t.group.kill(sigWinch)
}

// screen is a program's output to a terminal.
type screen struct{ w io.Writer }

func (s screen) Write(b []byte) (int, error) {
	if _, err := s.w.Write(bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// stty is the part of it that says how large the terminal is.
func stty(p *proc, args []string) int {
	if len(args) != 2 || args[1] != "size" {
		return refuse(p, "stty knows size only")
	}
	if p.tty == nil {
		p.fail("standard input: Inappropriate ioctl for device")
	}
	p.tty.mu.Lock()
	size := p.tty.size
	p.tty.mu.Unlock()
	p.printf("%d %d\n", size.Rows, size.Cols)
	return 0
}

// terminalVerb is the probe's.
func terminalVerb(p *proc, args []string) int {
	times := 0
	if len(args) > 1 {
		times, _ = strconv.Atoi(args[1])
	}
	var seen guest.Size
	for left := times + 1; left > 0; {
		if p.tty == nil {
			p.fail("not a terminal")
		}
		p.tty.mu.Lock()
		size := p.tty.size
		p.tty.mu.Unlock()
		if size == seen {
			p.sleep(time.Millisecond)
			continue
		}
		seen = size
		left--
		p.printf("%dx%d %s\n", size.Cols, size.Rows, p.getenv("TERM"))
	}
	return 0
}

// Resize implements agent.Process.
func (x *process) Resize(size guest.Size) error {
	if x.p.tty == nil {
		return sandbox.Errorf("resize", sandbox.KindConflict, "the process has no terminal")
	}
	x.p.tty.resize(size)
	return nil
}
