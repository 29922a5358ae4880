package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// console is the terminal that we run in, lent to a program in a sandbox.
type console struct {
	in, out *os.File
	keys    chan []byte // what is typed

	mu    sync.Mutex
	state *term.State // guarded by mu; to be restored; nil when it is
}

// console returns ours, or nil where standard input and output are not both one.
func (a *App) console() *console {
	in, _ := a.In.(*os.File)
	out, _ := a.Out.(*os.File)
	if in == nil || out == nil || !terminal(in) || !terminal(out) {
		return nil
	}
	return &console{in: in, out: out}
}

// size is its size in characters, within what a sandbox's terminal may have.
func (c *console) size() client.Size {
	cols, rows, err := term.GetSize(int(c.out.Fd()))
	if err != nil || cols < 1 || rows < 1 {
		return client.Size{Cols: 80, Rows: 24} // a serial line, say
	}
	return client.Size{Cols: min(cols, 4096), Rows: min(rows, 4096)}
}

// raw hands every key on as it is, until restore.
func (c *console) raw(a *App) error {
	state, err := term.MakeRaw(int(c.in.Fd()))
	if err != nil {
		return sandbox.Wrap("terminal", "", err)
	}
	c.mu.Lock()
	if c.state == nil {
		c.state = state
	}
	c.mu.Unlock()
	a.lent.Store(c)
	return nil
}

// restore gives the terminal back to our caller. What has been typed and not been
// read is discarded: see settle. Idempotent.
func (c *console) restore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != nil {
		discardInput(c.in)
		_ = term.Restore(int(c.in.Fd()), c.state) // there is nobody to tell
		c.state = nil
	}
}

// Abandon gives a terminal back that a command has borrowed. It is for a process
// that is about to end without Execute having returned.
func (a *App) Abandon() {
	if c := a.lent.Load(); c != nil {
		c.restore()
	}
}

// read makes what is typed come by c.keys. Its goroutine ends with the process:
// nothing interrupts the reading of a terminal.
func (c *console) read() {
	c.keys = make(chan []byte)
	go func() {
		defer close(c.keys)
		for buf := make([]byte, 4<<10); ; {
			n, err := c.in.Read(buf)
			if n > 0 {
				c.keys <- bytes.Clone(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
}

// sane ends whatever a program may have left half said, and every mode in which a
// terminal talks by itself: mouse, focus and paste reports, other keyboards; then
// the other screen, a hidden cursor, colours and character sets.
const sane = "\x1b\\" +
	"\x1b[?9l\x1b[?1000l\x1b[?1001l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1016l\x1b[?2004l\x1b[?2031l\x1b[?2048l" +
	"\x1b[<99u\x1b[>4;0m\x1b[?1l\x1b>" +
	"\x1b[?1047l\x1b[?25h\x1b[0m\x1b(B\x0f"

// How long a terminal that says nothing is taken to have nothing more to say: one
// that has not answered a question yet, and one that has answered our last. It is
// not listened to for longer than mostTalk.
const (
	quietAtFirst = 300 * time.Millisecond
	quietAfter   = 50 * time.Millisecond
	mostTalk     = 2 * time.Second
)

// settle makes sure that the terminal says nothing to whoever reads it next that a
// program in the sandbox made it say. A terminal answers some output with input,
// its position or its name, which a shell would take for typed commands. So it is
// asked a question that no program knows, where its cursor is after a jump to a
// random place, and everything up to the answer, and a moment longer, is dropped.
// What a person typed ahead goes with it.
func (c *console) settle() {
	size := c.size()
	row, col := 1+rand.IntN(size.Rows), 1+rand.IntN(size.Cols)
	if _, err := fmt.Fprintf(c.out, "%s\x1b7\x1b[%d;%dH\x1b[6n\x1b8", sane, row, col); err != nil {
		return // it has gone
	}
	want := fmt.Appendf(nil, "\x1b[%d;%dR", row, col)
	end := time.After(mostTalk)
	quiet := quietAtFirst
	var said []byte
	for {
		select {
		case b, more := <-c.keys:
			if !more {
				return
			}
			said = append(said, b...)
			if bytes.Contains(said, want) {
				quiet = quietAfter
			}
			said = said[max(0, len(said)-len(want)):]
		case <-time.After(quiet):
			return
		case <-end:
			return
		}
	}
}

// errDetached says that a person left a program to itself.
var errDetached = errors.New("detached")

// attached runs f, which shows what the program p prints, with the terminal in
// p's hands: keys go there, and its size. It returns f's error, or errDetached.
func (c *console) attached(ctx context.Context, a *App, p *client.Process, escape byte, f func(context.Context) error) error {
	if err := c.raw(a); err != nil {
		return err
	}
	defer c.restore()
	c.read()
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	keys := &keyboard{c: c, ctx: ctx, escape: escape, begun: true, detach: func() { cancel(errDetached) }}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGCONT)
	defer signal.Stop(signals)
	sizes := make(chan client.Size, 1)
	var wg sync.WaitGroup
	wg.Go(func() { c.watch(ctx, a, signals, sizes) })
	wg.Go(func() { _ = p.KeepSize(ctx, sizes) }) // its end is f's to tell
	wg.Go(func() { typed(ctx, p, keys, cancel) })
	err := f(ctx)
	if cause := context.Cause(ctx); outer.Err() == nil && cause != nil {
		err = cause // errDetached, or why keys are not taken
	}
	cancel(nil)
	wg.Wait()
	c.settle()
	return err
}

// typed passes input on to p, and reports whether it has come to its end. Where p
// takes no more of it, and has not ended, nobody must wait for p.
func typed(ctx context.Context, p *client.Process, in io.Reader, cancel context.CancelCauseFunc) bool {
	err := p.Type(ctx, in)
	switch sandbox.KindOf(err) {
	case "":
		return ctx.Err() == nil
	case sandbox.KindGone, sandbox.KindNotFound, sandbox.KindConflict, sandbox.KindUnavailable: // its end, or the connection's, is told otherwise
	default:
		if ctx.Err() == nil {
			cancel(err)
		}
	}
	return false
}

// watch tells sizes the terminal's, now and whenever it changes, and takes it
// again after we have been stopped: the shell had it meanwhile.
func (c *console) watch(ctx context.Context, a *App, signals <-chan os.Signal, sizes chan client.Size) {
	for {
		select { // only the last one counts
		case <-sizes:
		default:
		}
		sizes <- c.size() // capacity 1, and nobody else sends
		select {
		case s := <-signals:
			if s == syscall.SIGCONT {
				_ = c.raw(a) // if it fails it has gone, and reading says so
			}
		case <-ctx.Done():
			return
		}
	}
}

// keyboard is what is typed, without what is meant for us: at the beginning of a
// line the escape character and a dot detach, twice the escape character is one.
type keyboard struct {
	c      *console
	ctx    context.Context // a reader has no other way to be told
	escape byte            // 0: none
	detach func()

	left    []byte
	leaving bool // and then detach
	begun   bool // at the beginning of a line
	escaped bool // the last key was the escape character there
}

// Read implements io.Reader.
func (k *keyboard) Read(b []byte) (int, error) {
	for len(k.left) == 0 {
		if k.leaving {
			k.detach()
			return 0, io.EOF
		}
		select {
		case keys, more := <-k.c.keys:
			if !more {
				return 0, io.EOF
			}
			k.left, k.leaving = k.filter(keys)
		case <-k.ctx.Done():
			return 0, io.EOF
		}
	}
	n := copy(b, k.left)
	k.left = k.left[n:]
	return n, nil
}

// filter returns the keys that are meant for the program.
func (k *keyboard) filter(keys []byte) (pass []byte, detach bool) {
	if k.escape == 0 {
		return keys, false
	}
	for _, key := range keys {
		switch {
		case k.escaped && key == '.':
			return pass, true // what was typed before is the program's
		case k.escaped && key != k.escape:
			pass = append(pass, k.escape)
		case !k.escaped && k.begun && key == k.escape:
			k.escaped = true
			continue
		}
		pass = append(pass, key)
		k.escaped, k.begun = false, key == '\r' || key == '\n'
	}
	return pass, false
}
