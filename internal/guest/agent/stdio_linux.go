package agent

import (
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Stdio is the stream to the host made of this process's standard input and
// output: two FIFOs, or any pair of pipes.
func Stdio() net.Conn {
	// Both are ours alone: what a program gets are pipes or /dev/null.
	_ = unix.SetNonblock(0, true)
	_ = unix.SetNonblock(1, true)
	in := os.NewFile(0, "stdin")
	c, err := in.SyscallConn()
	if err != nil {
		panic(err) // it is not closed
	}
	return stdio{prompt{c}}
}

// stdio never waits in a call to the kernel, or the runtime would want a thread
// for it: see prompt.
type stdio struct{ in prompt }

func (s stdio) Read(p []byte) (int, error) { return s.in.Read(p) }

// Write implements net.Conn. Standard output is not under the poller, which would
// tell of every byte written to a FIFO that is open for reading, too.
func (stdio) Write(p []byte) (int, error) {
	for n := 0; ; {
		m, err := rawWrite(1, p[n:])
		n += max(0, m)
		switch {
		case err == unix.EAGAIN: // the host does not keep up: this may take a thread
			_, _ = unix.Poll([]unix.PollFd{{Fd: 1, Events: unix.POLLOUT}}, -1)
		case err != nil || n == len(p):
			return n, os.NewSyscallError("write", err)
		}
	}
}

// Close does nothing: the stream lives as long as the process.
func (stdio) Close() error { return nil }

func (stdio) LocalAddr() net.Addr              { return stdioAddr{} }
func (stdio) RemoteAddr() net.Addr             { return stdioAddr{} }
func (stdio) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (stdio) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (stdio) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdio" }
