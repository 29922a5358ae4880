//go:build linux

package microvm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"os"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/firecracker/fake"
	"github.com/firebreak-dev/firebreak/internal/guest/machine"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// fileToy is where a toy notes the orders it was given.
const fileToy = "toy.orders"

// toy is a guest behind the stand-in's vsock: the relay and the orders are those of real
// ones, the agent is that of a model, which is frozen with it. What it remembers when it
// is saved is whether it was frozen, and a secret.
type toy struct {
	restored bool
	relay    *machine.Relay

	mu     sync.Mutex
	thawed *sync.Cond
	mem    struct {
		Frozen bool
		Secret string
		Saved  int
	}
}

func newToy() *toy {
	g := &toy{}
	g.thawed = sync.NewCond(&g.mu)
	g.mem.Secret = rand.Text()
	return g
}

// memory is what the guest's memory holds.
func (g *toy) memory() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mem.Saved++
	b, _ := json.Marshal(g.mem)
	return b
}

func (g *toy) remember(memory []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.restored = json.Unmarshal(memory, &g.mem) == nil
}

// boot serves the guest's ports.
func (g *toy) boot(l net.Listener, p *fake.Process) error {
	b := sim.New(sim.Config{})
	inst, err := b.Create(context.Background(), sandbox.Spec{Instance: sandbox.NewInstanceID()})
	if err != nil {
		return err
	}
	model, err := inst.Dial(context.Background())
	if err != nil {
		return err
	}
	var agent *os.File
	if g.relay, agent, err = machine.NewRelay(); err != nil {
		return err
	}
	go g.carry(model, agent)
	go g.carry(agent, model)
	toAgent, orders := newPort(), newPort()
	go g.relay.Serve(toAgent)
	go machine.Obey(orders, g.do)
	go p.ServeVSock(l, fake.Ports{agentPort: toAgent.serve, ordersPort: orders.serve})
	return nil
}

// carry carries bytes while the guest is not frozen.
func (g *toy) carry(to io.Writer, from io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		for g.mem.Frozen {
			g.thawed.Wait()
		}
		_, err = to.Write(buf[:n])
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// do does what can be done with a model, and notes the rest.
func (g *toy) do(o machine.Order) (sent int64, err error) {
	freeze := func(on bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.mem.Frozen = on
		g.thawed.Broadcast()
	}
	if o.Freeze {
		all := o.Sent == nil || g.relay.Settle(*o.Sent)
		freeze(true)
		if sent = g.relay.Park(); !all {
			sent = -1
		}
	}
	g.mu.Lock()
	b, err := json.Marshal(toyOrder{o, g.mem.Secret, g.mem.Frozen})
	g.mu.Unlock()
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(fileToy, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return 0, err
	}
	if o.Thaw {
		freeze(false)
	}
	return sent, nil
}

// toyOrder is an order as it was noted, and what the guest remembered then.
type toyOrder struct {
	Order  machine.Order
	Secret string
	Frozen bool
}

// port is a listener of connections that are handed to it.
type port struct{ conns chan net.Conn }

func newPort() port { return port{make(chan net.Conn)} }

// serve returns when the connection was closed.
func (p port) serve(c net.Conn) {
	closed := make(chan struct{})
	p.conns <- &told{Conn: c, closed: closed}
	<-closed
}

func (p port) Accept() (net.Conn, error) { return <-p.conns, nil }
func (p port) Close() error              { return nil }
func (p port) Addr() net.Addr            { return lineAddr{} }

// told is a connection that tells of its end.
type told struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *told) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
