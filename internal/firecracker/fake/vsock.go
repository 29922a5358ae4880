package fake

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// Ports are what listens at a guest's ports. Each is called for a connection of the
// host's, and returns when that has ended.
type Ports map[uint32]func(net.Conn)

// firstPort is the first of the host's ports a connection is said to come from.
const firstPort = 1 << 30

// maxGreeting bounds what is read before a connection asks for a port.
const maxGreeting = 32

// ServeVSock serves the socket of the machine's vsock until l fails: a line CONNECT PORT
// is answered with OK and a port, and from then on the connection is the guest's. While
// the machine is paused nothing is answered. What is connected when it is saved is cut:
// the guest's end fails, and the host notices once it writes.
func (f *Process) ServeVSock(l net.Listener, ports Ports) {
	var all sync.WaitGroup
	var conns []net.Conn
	for {
		c, err := l.Accept()
		if err != nil {
			break
		}
		conns = append(conns, c)
		all.Go(func() {
			defer c.Close()
			f.connect(c, ports)
		})
	}
	f.End()
	for _, c := range conns {
		c.Close()
	}
	all.Wait()
}

func (f *Process) connect(host net.Conn, ports Ports) {
	in := bufio.NewReaderSize(host, maxGreeting)
	line, err := in.ReadSlice('\n')
	port, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "CONNECT ")
	n, err2 := strconv.ParseUint(port, 10, 32)
	serve := ports[uint32(n)]
	if err != nil || err2 != nil || !ok || serve == nil {
		return
	}
	ours, guest := net.Pipe()
	c := &connection{guest: guest}
	from, ok := f.accept(c)
	if !ok {
		return
	}
	if _, err := fmt.Fprintf(host, "OK %d\n", from); err != nil {
		return
	}
	var ends sync.WaitGroup
	ends.Go(func() {
		serve(guest)
		guest.Close()
	})
	ends.Go(func() {
		_, _ = io.Copy(host, ours)
		if !f.wasCut(c) { // the guest has closed it
			host.Close()
		}
	})
	_, _ = io.Copy(ours, in) // to the host's end, or the first it says to a guest that knows nothing of it
	ours.Close()
	host.Close()
	ends.Wait()
	f.forget(c)
}

// connection is one of the host's to the guest.
type connection struct {
	guest net.Conn
	cut   bool // guarded by Process.mu
}

// accept waits for a guest that runs and listens, and returns the port the connection
// comes from; false when the process ends.
func (f *Process) accept(c *connection) (from uint32, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.dead && (f.state != "Running" || f.deaf) {
		f.wake.Wait()
	}
	f.open[c] = true
	f.ports++
	return firstPort + f.ports, !f.dead
}

func (f *Process) wasCut(c *connection) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return c.cut
}

func (f *Process) forget(c *connection) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
}

// reset cuts all connections. f.mu is held.
func (f *Process) reset() {
	for c := range f.open {
		c.cut = true
		c.guest.Close()
	}
}

// End ends the process: it answers nothing any more.
func (f *Process) End() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	f.reset()
	f.wake.Broadcast()
}
