package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"time"

	"crypto/rand"
	"encoding/hex"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of what a host may ask for at once.
const (
	maxCalls     = 64   // file operations in progress
	maxWatches   = 16   // directories watched
	maxProcesses = 4096 // programs running
	maxEnded     = 256  // ended programs nobody has asked about
)

// Server is an agent: its programs and the connection it serves. It is safe for
// concurrent use.
type Server struct {
	// Idle, if set before the first Serve, is called when nothing has run for a
	// second, to give memory back.
	Idle func()

	sys     System
	version string
	tick    time.Duration // between samples

	turn chan struct{} // capacity 1: held by the Serve in progress
	wg   sync.WaitGroup

	mu     sync.Mutex
	set    guest.Settings   // guarded by mu; of the latest hello
	nextID uint32           // guarded by mu; lowest id never used
	procs  map[uint32]*proc // guarded by mu
	ended  []*proc          // guarded by mu; oldest first
	conn   net.Conn         // guarded by mu; being served
	closed bool             // guarded by mu

	watch   watch
	work    work
	standby standby
}

// New returns a Server for sys. version is told to the host.
func New(sys System, version string) *Server {
	s := &Server{sys: sys, version: version, tick: sampleEvery,
		turn: make(chan struct{}, 1), nextID: 1, procs: map[uint32]*proc{}}
	s.watch.s = s
	s.standby.s = s
	return s
}

// Serve is New and Server.Serve for an agent with one connection in its life.
func Serve(ctx context.Context, conn net.Conn, sys System) error {
	s := New(sys, "")
	defer s.Close()
	return s.Serve(ctx, conn)
}

// Serve serves the host at the other end of conn, and any host that attaches
// after it on the same stream. It returns when the stream fails, when ctx ends,
// or when another Serve takes over; conn is closed then. Programs run on.
func (s *Server) Serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	if s.conn != nil {
		s.conn.Close() // the previous Serve returns and yields its turn
	}
	s.conn = conn
	s.mu.Unlock()
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.turn }()
	defer func() {
		s.mu.Lock()
		if s.conn == conn {
			s.conn = nil
		}
		s.mu.Unlock()
	}()
	err := s.attachments(conn)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}

// Close ends the connection, kills all user code and waits until nothing of the
// server is left. Idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.conn != nil {
		s.conn.Close()
	}
	procs := make([]*proc, 0, len(s.procs))
	for _, p := range s.procs {
		procs = append(procs, p)
	}
	s.mu.Unlock()
	s.turn <- struct{}{}
	<-s.turn
	s.standby.close()
	for _, p := range procs {
		p.discard()
	}
	s.wg.Wait()
	return nil
}

// attachments serves one host after the other on conn.
func (s *Server) attachments(conn net.Conn) error {
	d := guest.NewDecoder(conn, guest.Guest)
	w := &wire{conn: conn}
	var last, own []byte
	for {
		reset, err := d.Hunt(guest.TypeReset, func([]byte) bool { return true })
		for err == nil && reset != nil {
			nonce := reset[:guest.NonceSize]
			// The same reset again, behind filler, is the same attachment.
			if string(nonce) != string(last) {
				last = append(last[:0], nonce...)
				own = make([]byte, guest.NonceSize)
				rand.Read(own)
			}
			ack := append(append(append([]byte(nil), nonce...), own...), reset[guest.NonceSize:]...)
			if err = w.send(guest.AppendFrame(nil, guest.TypeResetAck, 0, ack)); err == nil {
				reset, err = s.attachment(d, w, hex.EncodeToString(own))
			}
		}
		if err != nil && !errors.Is(err, guest.ErrProtocol) {
			return err
		}
	}
}

// attachment serves one host, from its hello to its end. A reset that arrives
// at a frame boundary is returned, an error that wraps ErrProtocol means that
// the boundary is lost.
func (s *Server) attachment(d *guest.Decoder, w *wire, nonce string) (reset []byte, err error) {
	h, err := d.Next()
	if err != nil {
		return nil, err
	}
	p, err := d.Payload(h)
	if err != nil || h.Type == guest.TypeReset {
		return p, err
	}
	var hello guest.Hello
	if h.Type != guest.TypeHello || json.Unmarshal(p, &hello) != nil || hello.Nonce != nonce {
		return nil, guest.Violation("no proper hello")
	}
	s.mu.Lock()
	if hello.Settings != nil {
		s.set = *hello.Settings
	}
	l := newLink(s, w, s.set.Window)
	answer := guest.Hello{Protocol: guest.ProtocolVersion, Version: s.version, NextID: s.nextID,
		Capabilities: []string{"exec", "files", "watch", "dial", guest.CapabilityPTY, guest.CapabilityWindow, guest.CapabilityAttributes}}
	if _, ok := s.sys.(Stander); ok {
		answer.Capabilities = append(answer.Capabilities, guest.CapabilityStandby, guest.CapabilityStandDown)
	}
	if _, ok := s.sys.(Truster); ok {
		answer.Capabilities = append(answer.Capabilities, guest.CapabilityTrust)
	}
	s.mu.Unlock()
	s.standby.up()
	defer l.end()
	if err := l.json(guest.TypeHello, 0, answer); err != nil {
		return nil, err
	}
	if hello.Protocol != guest.ProtocolVersion {
		return nil, guest.Violation("protocol %d", hello.Protocol)
	}
	return l.serve(d)
}

// work counts what is in progress.
type work struct {
	mu    sync.Mutex
	n     int         // guarded by mu
	timer *time.Timer // guarded by mu
}

// begin and end bracket every call and every program.
func (w *work) begin() {
	w.mu.Lock()
	w.n++
	w.mu.Unlock()
}

func (w *work) end(idle func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n--; w.n > 0 || idle == nil {
		return
	}
	if w.timer == nil {
		w.timer = time.AfterFunc(time.Second, func() {
			w.mu.Lock()
			busy := w.n > 0
			w.mu.Unlock()
			if !busy {
				idle()
			}
		})
		return
	}
	w.timer.Reset(time.Second)
}

// settings returns what the latest host decided.
func (s *Server) settings() guest.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set
}

func (s *Server) proc(id uint32) *proc {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[id]
}

// forget drops an ended process; its output with it.
func (s *Server) forget(p *proc) {
	s.mu.Lock()
	if s.procs[p.id] == p {
		delete(s.procs, p.id)
		for i, e := range s.ended {
			if e == p {
				s.ended = append(s.ended[:i], s.ended[i+1:]...)
				break
			}
		}
	}
	s.mu.Unlock()
	p.out.drop()
	p.errs.drop()
}

// keep remembers an ended process until its end is acknowledged. Of those
// nobody follows, the oldest are given up when there are too many.
func (s *Server) keep(p *proc) {
	s.mu.Lock()
	var victim *proc
	if s.procs[p.id] == p {
		s.ended = append(s.ended, p)
	}
	if len(s.ended) > maxEnded {
		for _, e := range s.ended {
			if !e.followed() {
				victim = e
				break
			}
		}
	}
	s.mu.Unlock()
	if victim != nil {
		s.forget(victim)
	}
}

// userOf is who a call acts as.
func (s *Server) userOf(name string) string {
	if name == "" {
		name = s.settings().User
	}
	if name == "" {
		name = guest.DefaultUser
	}
	return name
}

func capacity(op guest.Op, format string, args ...any) error {
	return sandbox.Errorf(string(op), sandbox.KindCapacity, format, args...)
}
