package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// dialWait is how long a server may take to accept: its queue may be full.
const dialWait = 10 * time.Second

// socket is a TCP connection. It is not package net's, whose dialer brings a
// resolver: half a megabyte for two addresses that are known.
type socket struct{ *os.File }

// CloseWrite implements Conn.
func (s socket) CloseWrite() error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var shut error
	if err := raw.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return shut
}

// Dial implements System.
func (s *Linux) Dial(ctx context.Context, port int) (Conn, error) {
	c, err := connect(ctx, unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	if errors.Is(err, unix.ECONNREFUSED) {
		if c6, err6 := connect(ctx, unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}); err6 == nil {
			return c6, nil
		}
	}
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, sandbox.Errorf("dial", sandbox.KindNotFound, "nothing listens on port %d in the sandbox", port)
	case errors.Is(err, unix.ECONNRESET):
		return nil, errBroken
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, sandbox.Errorf("dial", sandbox.KindTimeout, "the server on port %d in the sandbox does not accept", port)
	}
	return nil, sandbox.Errorf("dial", sandbox.KindInternal, "port %d in the sandbox: %w", port, err)
}

// connect opens a socket to addr. Errors: the system's; os.ErrDeadlineExceeded
// also when ctx ended.
func connect(ctx context.Context, family int, addr unix.Sockaddr) (s socket, err error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return s, err
	}
	s.File = os.NewFile(uintptr(fd), "socket")
	raw, err := s.SyscallConn()
	if err != nil {
		return s, errors.Join(err, s.Close())
	}
	if err := s.SetDeadline(time.Now().Add(dialWait)); err != nil {
		return s, errors.Join(err, s.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	begun := false
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		if begun {
			var code int
			if code, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); failed == nil && code != 0 {
				failed = unix.Errno(code)
			}
			if failed != nil {
				return true
			}
			_, err := unix.Getpeername(int(fd))
			return err == nil // else the poller woke us for what was before
		}
		begun = true
		failed = unix.Connect(int(fd), addr)
		if failed == unix.EINPROGRESS {
			failed = nil
			return false
		}
		return true
	})
	if err == nil {
		err = failed
	}
	if !stop() && err == nil {
		err = os.ErrDeadlineExceeded
	}
	if err == nil {
		err = s.SetDeadline(time.Time{})
	}
	if err != nil {
		return s, errors.Join(err, s.Close())
	}
	// Small answers should not wait for company.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return s, nil
}
