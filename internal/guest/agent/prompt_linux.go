package agent

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// prompt reads a descriptor that is non-blocking and under the poller. A call
// into the kernel that does not wait is made without telling the runtime, which
// else wakes a thread to watch over it: on gVisor a wake-up costs ten times what
// is read.
type prompt struct{ c syscall.RawConn }

// Read implements io.Reader.
func (p prompt) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	werr := p.c.Read(func(fd uintptr) bool {
		n, err = rawRead(fd, b)
		return err != unix.EAGAIN
	})
	switch {
	case werr != nil:
		return 0, werr
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// The calls below must not wait: a thread that does is one less for the agent.

func rawRead(fd uintptr, b []byte) (int, error) {
	return raw(unix.SYS_READ, fd, b)
}

func rawWrite(fd uintptr, b []byte) (int, error) {
	return raw(unix.SYS_WRITE, fd, b)
}

func raw(call, fd uintptr, b []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch e {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, e
	}
}

// inputPipe is the end of a program's standard input that is written to. Under
// the poller, which tells of everything the program reads, it is only once the
// program does not keep up.
type inputPipe struct {
	mu     sync.Mutex
	fd     int      // guarded by mu; -1 once file is set, or it is closed
	file   *os.File // guarded by mu
	closed bool     // guarded by mu
}

// Write implements io.Writer.
func (p *inputPipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return 0, os.ErrClosed
	}
	n := 0
	for p.file == nil && n < len(b) {
		m, err := rawWrite(uintptr(p.fd), b[n:])
		n += m
		if errors.Is(err, unix.EAGAIN) {
			p.file, p.fd = os.NewFile(uintptr(p.fd), "pipe"), -1
			break
		}
		if err != nil {
			p.mu.Unlock()
			return n, os.NewSyscallError("write", err)
		}
	}
	f := p.file
	p.mu.Unlock()
	if f == nil || n == len(b) {
		return n, nil
	}
	m, err := f.Write(b[n:])
	return n + m, err
}

// Close implements io.Closer. A Write that waits returns. Idempotent.
func (p *inputPipe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if p.file != nil {
		return p.file.Close()
	}
	err := unix.Close(p.fd)
	p.fd = -1
	return err
}
