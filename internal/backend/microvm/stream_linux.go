package microvm

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// QEMU's "pipe" character device opens PATH.in and PATH.out itself, for reading
// and writing: they never reach end of file while it lives, whoever comes and
// goes here, and the guest's port is connected all the time.
const (
	fileChannel = "agent"
	fileOrders  = "orders" // of the machine's first process
	suffixIn    = ".in"
	suffixOut   = ".out"
)

// fifos are the names of all.
var fifos = []string{fileChannel + suffixIn, fileChannel + suffixOut, fileOrders + suffixIn, fileOrders + suffixOut}

// pipeSize is what each FIFO holds: the most an unprivileged process may ask for
// by default.
const pipeSize = 1 << 20

// makeFIFOs makes the pipes.
func makeFIFOs(dir string) error {
	for _, name := range fifos {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return &os.PathError{Op: "mkfifo", Path: path, Err: err}
		}
	}
	return nil
}

// errNoChannel: nobody holds the machine's end.
var errNoChannel = errors.New("the machine's channel is closed")

// stream is a net.Conn to the agent over the two FIFOs.
type stream struct {
	r, w *os.File
	addr addr
	once sync.Once
	err  error
}

var _ net.Conn = (*stream)(nil)

// dialFIFOs opens the host's ends of the channel called name.
func dialFIFOs(dir, name string) (*stream, error) {
	open := func(name string, flag int) (*os.File, error) {
		path := filepath.Join(dir, name)
		fd, err := unix.Open(path, flag|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		switch {
		case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOENT):
			return nil, errNoChannel
		case err != nil:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) // a smaller pipe is slower, not wrong
		return os.NewFile(uintptr(fd), path), nil                      // non-blocking: deadlines work
	}
	w, err := open(name+suffixIn, unix.O_WRONLY)
	if err != nil {
		return nil, err
	}
	r, err := open(name+suffixOut, unix.O_RDONLY)
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

// dialIn connects to the socket called name in dir, however long dir's path is: the
// kernel takes 107 bytes. In a jail the name is the monitor's to change, so it is
// not followed: what is not a socket there is not connected to.
func dialIn(dir, name string) (net.Conn, error) {
	path := filepath.Join(dir, name)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, &os.PathError{Op: "connect", Path: path, Err: unix.ENOTSOCK}
	}
	return net.DialTimeout("unix", "/proc/self/fd/"+strconv.Itoa(fd), time.Second)
}
