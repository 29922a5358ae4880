package machine

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ServeVSock serves whoever connects to the port, the latest only: serve must
// give way to a later call of itself, as the agent's does. Connections that are
// not the host's are closed. It returns when the socket fails.
func ServeVSock(serve func(context.Context, net.Conn) error, port uint32) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("vsock", err)
	}
	l := os.NewFile(uintptr(fd), "vsock")
	defer l.Close()
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, 4); err != nil {
		return os.NewSyscallError("listen", err)
	}
	for {
		conn, err := accept(l)
		if err != nil {
			return err
		}
		if conn != nil {
			go func() { _ = serve(context.Background(), conn) }() // its end is the stream's: the host comes again
		}
	}
}

// accept waits for a connection. One that is not the host's is nil: user code can
// reach the port over the machine's own loopback.
func accept(l *os.File) (net.Conn, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	nfd := -1
	var from unix.Sockaddr
	var acceptErr error
	err = raw.Read(func(fd uintptr) bool {
		nfd, from, acceptErr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return !errors.Is(acceptErr, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return nil, err
	case errors.Is(acceptErr, unix.ECONNABORTED), errors.Is(acceptErr, unix.EINTR):
		return nil, nil
	case acceptErr != nil:
		return nil, os.NewSyscallError("accept", acceptErr)
	}
	f := os.NewFile(uintptr(nfd), "host")
	if vm, ok := from.(*unix.SockaddrVM); !ok || vm.CID != unix.VMADDR_CID_HOST {
		f.Close()
		return nil, nil
	}
	return vsockConn{f}, nil
}

// vsockConn is a connected socket as a net.Conn, which package net has none for.
type vsockConn struct{ *os.File }

func (vsockConn) LocalAddr() net.Addr  { return vsockAddr{} }
func (vsockConn) RemoteAddr() net.Addr { return vsockAddr{} }

func (c vsockConn) SetDeadline(t time.Time) error { return c.File.SetDeadline(t) }

type vsockAddr struct{}

func (vsockAddr) Network() string { return "vsock" }
func (vsockAddr) String() string  { return "host" }
