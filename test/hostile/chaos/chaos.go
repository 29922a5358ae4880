// Package chaos is a guest agent that turns hostile on command.
//
// It puts itself between a real agent and its stream to the host. Until it is
// triggered it changes nothing, so that the sandbox comes up and its neighbours,
// who run the same program, are ordinary. Then a Script speaks instead:
//
//	conn := chaos.Wrap(agent.Stdio())
//	conn.Boot(hostname)                                   // "chaos-NAME" misbehaves from the start
//	agent.New(chaos.System(sys, conn), "").Serve(ctx, conn)
//
// What triggers a script is in its At: a program called "chaos", a file below
// /chaos/, or the sandbox's host name.
package chaos

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// The triggers.
const (
	Exec  = "exec"  // the program "chaos" with the script's name
	Read  = "read"  // the file Dir + name is opened
	Write = "write" // the file Dir + name is created
	List  = "list"  // the directory Dir + name is listed
	Boot  = "boot"  // the host name is HostPrefix + name
)

// Where scripts are called by.
const (
	Program    = "chaos"
	Dir        = "/chaos/"
	HostPrefix = "chaos-"
)

// Script is one way to misbehave.
type Script struct {
	Name string
	At   string
	Play func(*Player)
}

// Find returns the script called name that is triggered so.
func Find(at, name string) (Script, bool) {
	for _, s := range Scripts {
		if s.At == at && s.Name == name {
			return s, true
		}
	}
	return Script{}, false
}

// Conn is an agent's stream with chaos in it.
type Conn struct {
	net.Conn // to the host
	in       *io.PipeReader
	feed     *io.PipeWriter

	stage sync.Mutex // held by whoever writes; a script may keep it

	mu     sync.Mutex
	scan   []byte                // guarded by mu; end of what the host sent, for headers cut in two
	call   uint32                // guarded by mu; id of the latest call
	window map[guest.Type]uint64 // guarded by mu; latest credit of a channel
	played map[uint32]bool       // guarded by mu; ids a script has spoken for
	nonces [][]byte              // guarded by mu; of every reset
	news   chan struct{}         // capacity 1: one of these changed
	deaf   chan struct{}         // closed when nothing is read any more
	once   sync.Once
	holds  chan struct{} // closed by Close: a script that holds lets go
	ended  sync.Once
}

// Wrap begins to pass conn on.
func Wrap(conn net.Conn) *Conn {
	c := &Conn{Conn: conn, window: map[guest.Type]uint64{}, played: map[uint32]bool{}, news: make(chan struct{}, 1), deaf: make(chan struct{}), holds: make(chan struct{})}
	c.in, c.feed = io.Pipe()
	go c.pump()
	return c
}

// pump reads what the host sends, looks at it and passes it on. It ends with
// the stream, or with Close.
func (c *Conn) pump() {
	buf := make([]byte, 64<<10)
	for {
		select {
		case <-c.deaf:
			return
		default:
		}
		n, err := c.Conn.Read(buf)
		c.look(buf[:n])
		if p := c.withhold(buf[:n]); len(p) > 0 {
			if _, err := c.feed.Write(p); err != nil {
				return
			}
		}
		if err != nil {
			c.feed.CloseWithError(err)
			return
		}
	}
}

// look notes the frames that scripts need. It does not parse: bytes of a file
// that look like a header would be taken for one.
func (c *Conn) look(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.scan = append(c.scan, p...)
	const longest = guest.HeaderSize + guest.NonceSize + 8
	done := 0
	for i := 0; i+guest.HeaderSize <= len(c.scan); i++ {
		h := c.scan[i:]
		if h[0] != 0xfb || h[1] != 0x1e || h[2] != 1 {
			continue
		}
		if len(h) < longest {
			break
		}
		switch guest.Type(h[3]) {
		case guest.TypeCall:
			c.call = binary.BigEndian.Uint32(h[4:])
		case guest.TypeWindow:
			c.window[guest.Type(h[guest.HeaderSize])] = binary.BigEndian.Uint64(h[guest.HeaderSize+1:])
		case guest.TypeReset:
			c.nonces = append(c.nonces, bytes.Clone(h[guest.HeaderSize:longest]))
		}
		done = i + 1
	}
	c.scan = append(c.scan[:0], c.scan[max(done, len(c.scan)-longest+1):]...)
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// withhold takes out of p what the host acknowledges of a script's own data: the
// agent behind would take it for a host that lies, and wait for a better one.
func (c *Conn) withhold(p []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	const size = guest.HeaderSize + 9
	for i := 0; i+size <= len(p); i++ {
		if p[i] == 0xfb && p[i+1] == 0x1e && guest.Type(p[i+3]) == guest.TypeWindow && c.played[binary.BigEndian.Uint32(p[i+4:])] {
			p = append(p[:i], p[i+size:]...)
			i--
		}
	}
	return p
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Write implements net.Conn. It waits while a script has the stage.
func (c *Conn) Write(p []byte) (int, error) {
	c.stage.Lock()
	defer c.stage.Unlock()
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.ended.Do(func() { close(c.holds) })
	c.in.Close()
	return c.Conn.Close()
}

// Boot plays the script that the host name asks for, if any.
func (c *Conn) Boot(hostname string) {
	name, ok := strings.CutPrefix(hostname, HostPrefix)
	if !ok {
		return
	}
	if s, ok := Find(Boot, name); ok {
		go io.Copy(io.Discard, c.in) // there is no agent yet, and there will be none
		c.Play(s, 0)
	}
}

// Play gives s the stage, for the call or process id. It returns when the
// script has finished: the agent goes on as if nothing had happened.
func (c *Conn) Play(s Script, id uint32) {
	c.stage.Lock()
	defer c.stage.Unlock()
	c.mu.Lock()
	c.played[id] = true
	c.mu.Unlock()
	s.Play(&Player{c: c, ID: id})
}

// Last is the id of the latest call.
func (c *Conn) Last() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.call
}

// Player is what a script acts with.
type Player struct {
	c  *Conn
	ID uint32 // of the call that triggered it
}

// Raw writes bytes as they are. It reports whether the stream took them.
func (p *Player) Raw(b []byte) bool {
	_, err := p.c.Conn.Write(b)
	return err == nil
}

// Frame writes a proper frame.
func (p *Player) Frame(t guest.Type, id uint32, payload []byte) bool {
	return p.Raw(guest.AppendFrame(nil, t, id, payload))
}

// JSON writes a control frame.
func (p *Player) JSON(t guest.Type, id uint32, v any) bool {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // scripts encode what can be encoded
	}
	return p.Frame(t, id, b)
}

// Data writes a data frame.
func (p *Player) Data(t guest.Type, id uint32, at uint64, b []byte) bool {
	var h [guest.DataHeader]byte
	guest.PutData(&h, t, id, at, b)
	return p.Raw(append(h[:], b...))
}

// Mark writes a window or end frame.
func (p *Player) Mark(t guest.Type, id uint32, channel guest.Type, at uint64) bool {
	return p.Raw(guest.AppendMark(nil, t, id, channel, at))
}

// Started answers an exec as if a program ran.
func (p *Player) Started() {
	p.JSON(guest.TypeReply, p.ID, guest.Reply{Process: &guest.ProcessInfo{ID: p.ID, PID: 4242}})
}

// Exit says that the program has ended.
func (p *Player) Exit(e guest.Exit) bool { return p.JSON(guest.TypeExit, p.ID, e) }

// Hold keeps the stage for good: what the agent would say is never said.
func (p *Player) Hold() { <-p.c.holds }

// Deaf stops reading, for good.
func (p *Player) Deaf() { p.c.once.Do(func() { close(p.c.deaf) }) }

// Credit waits until the host has granted more than at of a channel and returns
// how far it goes; 0 when the stream has ended.
func (p *Player) Credit(channel guest.Type, at uint64) uint64 {
	size := uint64(guest.DefaultWindow)
	if channel == guest.TypeFile {
		size = guest.FileWindow
	}
	for {
		p.c.mu.Lock()
		limit := p.c.window[channel] + size
		p.c.mu.Unlock()
		if limit > at {
			return limit
		}
		select {
		case <-p.c.news:
		case <-p.c.holds:
			return 0
		}
	}
}

// Fresh forgets what was granted to an earlier call.
func (p *Player) Fresh() {
	p.c.mu.Lock()
	clear(p.c.window)
	p.c.mu.Unlock()
}

// Reset waits for the n-th reset, counted from 0, and returns its payload; nil
// when the stream has ended.
func (p *Player) Reset(n int) []byte {
	for {
		p.c.mu.Lock()
		if len(p.c.nonces) > n {
			defer p.c.mu.Unlock()
			return p.c.nonces[n]
		}
		p.c.mu.Unlock()
		select {
		case <-p.c.news:
		case <-p.c.holds:
			return nil
		}
	}
}

// Ack answers a reset the way an agent does.
func (p *Player) Ack(reset []byte) {
	own := bytes.Repeat([]byte{7}, guest.NonceSize)
	p.Frame(guest.TypeResetAck, 0, append(append(bytes.Clone(reset[:guest.NonceSize]), own...), reset[guest.NonceSize:]...))
}

// Hello says hello, whoever the host is.
func (p *Player) Hello() {
	p.JSON(guest.TypeHello, 0, guest.Hello{Protocol: guest.ProtocolVersion, Version: "chaos", NextID: 1})
}
