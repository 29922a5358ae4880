package machine

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Relay carries bytes between the agent, whose stream never ends, and whoever of the
// host is connected to the machine's vsock, the latest only. Connections end when a
// machine is saved, also for the one that was saved: so that nothing is lost, both ends
// know how many bytes went each way, and the agent waits for the next connection.
type Relay struct {
	agent *os.File // our end of a pair of sockets
	raw   syscall.RawConn

	passing sync.Mutex // held by who takes something from the agent, until the host has it

	mu     sync.Mutex
	wake   *sync.Cond
	conn   net.Conn // guarded by mu: the latest
	parked bool     // guarded by mu: conn gets no more
	in     int64    // guarded by mu: bytes of conn the agent was given
	out    int64    // guarded by mu: bytes of the agent conn was given
}

// NewRelay returns a Relay and the agent's end of it.
func NewRelay() (*Relay, *os.File, error) {
	fd, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	r := &Relay{agent: os.NewFile(uintptr(fd[0]), "agent")}
	r.wake = sync.NewCond(&r.mu)
	r.raw, err = r.agent.SyscallConn()
	return r, os.NewFile(uintptr(fd[1]), "host"), err
}

// Serve serves who connects to l until that fails.
func (r *Relay) Serve(l net.Listener) error {
	go r.toHost()
	defer r.agent.Close()
	for {
		conn, err := l.Accept()
		if err != nil {
			r.attach(nil)
			return err
		}
		r.attach(conn)
		go r.toAgent(conn)
	}
}

// attach makes conn the one that is served.
func (r *Relay) attach(conn net.Conn) {
	r.mu.Lock()
	before := r.conn
	r.conn, r.parked, r.in, r.out = conn, false, 0, 0
	r.wake.Broadcast()
	r.mu.Unlock()
	if before != nil {
		before.Close()
	}
}

// toAgent carries what conn sends, until it ends or is not the latest any more.
func (r *Relay) toAgent(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if _, err := r.agent.Write(buf[:n]); err != nil {
				return
			}
			r.mu.Lock()
			if r.conn == conn {
				r.in += int64(n)
			}
			r.mu.Unlock()
		}
		if err != nil {
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == conn {
		r.conn = nil
	}
}

// toHost carries what the agent says to whoever is connected. While nobody is, the
// agent waits.
func (r *Relay) toHost() {
	buf := make([]byte, 64<<10)
	for {
		r.mu.Lock()
		for r.conn == nil || r.parked {
			r.wake.Wait()
		}
		r.mu.Unlock()
		err := r.raw.Read(func(fd uintptr) bool { // until there is something to read, which is left there
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			return
		}
		if _, err := r.pass(buf); err != nil {
			return
		}
	}
}

// pass carries what there is of the agent's, as much as buf holds, and returns how much
// it took. It fails when there is no agent any more.
func (r *Relay) pass(buf []byte) (n int, err error) {
	r.passing.Lock()
	defer r.passing.Unlock()
	r.mu.Lock()
	conn := r.conn
	if r.parked {
		conn = nil
	}
	r.mu.Unlock()
	if conn == nil {
		return 0, nil
	}
	failed := r.raw.Control(func(fd uintptr) { // not Read: toHost may be waiting in that
		n, err = unix.Read(int(fd), buf)
	})
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, nil
	case failed != nil, err != nil, n == 0:
		return 0, errors.Join(failed, err, io.EOF)
	}
	k, err := conn.Write(buf[:n])
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == conn {
		r.out += int64(k)
		if err != nil { // the next host has the agent begin anew
			r.conn = nil
		}
	}
	return n, nil
}

// Settle waits until the agent was given all of n bytes that the host has sent over the
// latest connection, and reports whether it was.
func (r *Relay) Settle(n int64) bool {
	for end := time.Now().Add(freezePatience); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		in, conn := r.in, r.conn
		r.mu.Unlock()
		if conn == nil || in >= n || time.Now().After(end) {
			return conn != nil && in == n
		}
	}
}

// Park gives the host what the agent, which stands still, has said, and returns how
// much it was given over this connection. It is given no more.
func (r *Relay) Park() int64 {
	for buf := make([]byte, 64<<10); ; {
		if n, err := r.pass(buf); n == 0 || err != nil {
			break
		}
	}
	r.passing.Lock() // who passed something meanwhile is done
	defer r.passing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parked = true
	return r.out
}
