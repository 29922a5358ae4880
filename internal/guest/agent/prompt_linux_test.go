package agent

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe makes one whose end for us is as a program's is for the agent.
func pipe(t *testing.T, input bool) (ours int, theirs *os.File) {
	t.Helper()
	var two [2]int
	if err := unix.Pipe2(two[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	ours, other := two[0], two[1]
	if input {
		ours, other = other, ours
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		t.Fatal(err)
	}
	theirs = os.NewFile(uintptr(other), "pipe")
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// TestInputPipe: what does not fit is waited for, the end of whoever reads and
// Close end that, and small writes are seen at once.
func TestInputPipe(t *testing.T) {
	fd, r := pipe(t, true)
	p := &inputPipe{fd: fd}
	all := bytes.Repeat([]byte("0123456789"), 100_000)
	wrote := make(chan error, 1)
	go func() {
		n, err := p.Write(all)
		if n != len(all) {
			err = errors.Join(err, io.ErrShortWrite)
		}
		wrote <- errors.Join(err, p.Close(), p.Close())
	}()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, all) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(all), err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write(all); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	for _, end := range []struct {
		name string
		do   func(*inputPipe, *os.File) error
		want error
	}{
		{"the reader ends", func(_ *inputPipe, r *os.File) error { return r.Close() }, unix.EPIPE},
		{"Close", func(p *inputPipe, _ *os.File) error { return p.Close() }, os.ErrClosed},
	} {
		fd, r := pipe(t, true)
		p := &inputPipe{fd: fd}
		go func() {
			_, err := p.Write(all)
			wrote <- err
		}()
		for { // until it waits
			p.mu.Lock()
			waits := p.file != nil
			p.mu.Unlock()
			if waits {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := end.do(p, r); err != nil {
			t.Fatal(err)
		}
		if err := <-wrote; !errors.Is(err, end.want) {
			t.Errorf("%s: %v, want %v", end.name, err, end.want)
		}
		_ = p.Close()
	}
}

// TestOutputPipe: bytes come when they are written, and the end is one.
func TestOutputPipe(t *testing.T) {
	fd, w := pipe(t, false)
	o := newOutputPipe(os.NewFile(uintptr(fd), "pipe"))
	defer o.Close()
	b := make([]byte, 64)
	for _, text := range []string{"one", "two"} {
		time.AfterFunc(5*time.Millisecond, func() { w.WriteString(text) })
		if n, err := o.Read(b); string(b[:n]) != text || err != nil {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	w.WriteString("last")
	w.Close()
	if all, err := io.ReadAll(o); string(all) != "last" || err != nil {
		t.Fatalf("%q, %v", all, err)
	}
	// A process that was left behind holds the pipe: what is in it is taken.
	fd, w = pipe(t, false)
	o = newOutputPipe(os.NewFile(uintptr(fd), "pipe"))
	defer o.Close()
	w.WriteString("left")
	o.ended()
	if all, err := io.ReadAll(o); string(all) != "left" || err != nil {
		t.Fatalf("%q, %v", all, err)
	}
}
