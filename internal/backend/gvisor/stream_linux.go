package gvisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pipeSize is what each FIFO holds: the most an unprivileged process may ask
// for by default.
const pipeSize = 1 << 20

// makeFIFOs makes the instance's pair of pipes and returns both opened for
// reading and writing, for the sandbox to inherit. Opened like this they never
// reach end of file while the sentry lives, whoever comes and goes here.
func makeFIFOs(dir string) (in, out *os.File, err error) {
	open := func(name string) (*os.File, error) {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		// A smaller pipe is slower, not wrong; the limit per user may be reached.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
		return os.NewFile(uintptr(fd), path), nil
	}
	if in, err = open(fileIn); err != nil {
		return nil, nil, err
	}
	if out, err = open(fileOut); err != nil {
		in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

// stream is a net.Conn to the agent over the two FIFOs.
type stream struct {
	r, w *os.File
	addr addr
	once sync.Once
	err  error
}

var _ net.Conn = (*stream)(nil)

// dialFIFOs opens the host's ends. The error wraps unix.ENXIO when nobody holds
// the sandbox's ends any more.
func dialFIFOs(dir string) (*stream, error) {
	open := func(name string, flag int) (*os.File, error) {
		path := filepath.Join(dir, name)
		fd, err := unix.Open(path, flag|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil // non-blocking: deadlines work
	}
	w, err := open(fileIn, unix.O_WRONLY)
	if err != nil {
		return nil, err
	}
	r, err := open(fileOut, unix.O_RDONLY)
	if err != nil {
		w.Close()
		return nil, err
	}
	return &stream{r: r, w: w, addr: addr(dir)}, nil
}

func (s *stream) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *stream) Write(b []byte) (int, error) { return s.w.Write(b) }

// Close ends the stream, not the instance. Blocked reads and writes return.
func (s *stream) Close() error {
	s.once.Do(func() { s.err = errors.Join(s.r.Close(), s.w.Close()) })
	return s.err
}

func (s *stream) LocalAddr() net.Addr                { return s.addr }
func (s *stream) RemoteAddr() net.Addr               { return s.addr }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.r.SetReadDeadline(t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.w.SetWriteDeadline(t) }
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// addr is the instance's directory as a net.Addr.
type addr string

func (addr) Network() string  { return "fifo" }
func (a addr) String() string { return string(a) }

// isGone tells what a dial of an ended instance comes down to.
func isGone(err error) bool {
	return errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist)
}

var errNoAgent = fmt.Errorf("the sandbox ended before its agent answered")
