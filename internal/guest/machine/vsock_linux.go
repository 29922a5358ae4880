package machine

import (
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// vsockListener is the port of a machine's vsock the host connects to.
type vsockListener struct{ f *os.File }

// listenVSock listens at a port. Whoever comes from elsewhere than the host is
// turned away: user code can reach the port over the machine's own loopback.
func listenVSock(port uint32) (*vsockListener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("vsock", err)
	}
	l := &vsockListener{os.NewFile(uintptr(fd), "vsock")}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}))
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, 4))
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *vsockListener) Close() error   { return l.f.Close() }
func (l *vsockListener) Addr() net.Addr { return vsockAddr{} }

// Accept waits for the host. It fails when the socket does.
func (l *vsockListener) Accept() (net.Conn, error) {
	for {
		if c, err := accept(l.f); c != nil || err != nil {
			return c, err
		}
	}
}

// accept waits for a connection. One that is not the host's is nil.
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
