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
	_ = unix.SetNonblock(0, true)
	_ = unix.SetNonblock(1, true)
	return stdio{os.NewFile(0, "stdin"), os.NewFile(1, "stdout")}
}

type stdio struct{ in, out *os.File }

func (s stdio) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s stdio) Write(p []byte) (int, error) { return s.out.Write(p) }

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
