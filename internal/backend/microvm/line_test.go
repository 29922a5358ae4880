//go:build linux

package microvm

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// lined is a line, and the other ends of its connections in turn.
func lined(t *testing.T) (l *line, others chan net.Conn) {
	t.Helper()
	at, err := net.Listen("unix", filepath.Join(t.TempDir(), "port"))
	if err != nil {
		t.Fatal(err)
	}
	others = make(chan net.Conn, 10)
	l, err = newLine(t.Context(), func(context.Context) (net.Conn, error) {
		c, err := net.Dial("unix", at.Addr().String())
		if err != nil {
			return nil, err
		}
		o, err := at.Accept()
		if err == nil {
			others <- o
			t.Cleanup(func() { o.Close() })
		}
		return c, err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); at.Close() })
	return l, others
}

// TestLine: who reads and writes does not notice that the line was held; what came
// meanwhile comes first, and a deadline holds for the next connection, too.
func TestLine(t *testing.T) {
	l, others := lined(t)
	first := <-others
	if n, err := l.Write([]byte("abc")); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	got := make(chan string)
	go func() {
		b := make([]byte, 12)
		_, err := io.ReadFull(l, b)
		if err != nil {
			t.Error(err)
		}
		got <- string(b)
	}()
	time.Sleep(10 * time.Millisecond) // that it waits, most of the time
	if n := l.hold(); n == nil || *n != 3 {
		t.Fatalf("%v bytes were sent", n)
	}
	if l.hold() != nil {
		t.Error("held twice")
	}
	wrote := make(chan error)
	go func() {
		_, err := l.Write([]byte("def"))
		wrote <- err
	}()
	io.WriteString(first, "early ")
	l.settle(t.Context(), 6)
	if err := l.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	l.release(t.Context())
	second := <-others
	io.WriteString(second, "later.")
	if g := <-got; g != "early later." {
		t.Errorf("came as %q", g)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	for c, want := range map[net.Conn]string{first: "abc", second: "def"} {
		b := make([]byte, 3)
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
	}
	l.SetReadDeadline(past)
	if _, err := l.Read(make([]byte, 1)); err == nil {
		t.Error("no deadline over the second connection")
	}
}

// TestLineLost: one of which something is missing, one that is closed while it is held,
// and one whose guest says nonsense end; nobody waits for them.
func TestLineLost(t *testing.T) {
	for what, spoil := range map[string]func(*line){
		"too little": func(l *line) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			l.settle(ctx, 2)
		},
		"too much":  func(l *line) { l.settle(t.Context(), -1) },
		"closed":    func(l *line) { l.Close(); l.settle(t.Context(), 1) },
		"no answer": func(l *line) {},
	} {
		l, others := lined(t)
		io.WriteString(<-others, "x")
		l.hold()
		read := make(chan error)
		go func() {
			_, err := io.ReadAll(l)
			read <- err
		}()
		spoil(l)
		l.drop()
		l.release(t.Context())
		if err := <-read; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := l.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var none *line
	if none.hold() != nil {
		t.Error("no line was held")
	}
	none.settle(t.Context(), 1)
	none.drop()
	none.release(t.Context())
}
