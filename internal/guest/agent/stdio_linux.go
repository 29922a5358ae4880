package agent

import (
	"net"
	"os"
	"time"
)

// Stdio is the stream to the host made of this process's standard input and
// output: two FIFOs, or any pair of pipes.
func Stdio() net.Conn { return stdio{} }

type stdio struct{}

func (stdio) Read(p []byte) (int, error)  { return os.Stdin.Read(p) }
func (stdio) Write(p []byte) (int, error) { return os.Stdout.Write(p) }

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
