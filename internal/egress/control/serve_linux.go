package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ServeOptions is what Serve is told by its own process.
type ServeOptions struct {
	Logger *slog.Logger
	Notes  []string // about the confinement, for whoever operates the keeper
}

// maxRequests is how many of a keeper's requests are answered at once.
const maxRequests = 1024

// Serve is a router that does what the keeper at the other end of conn says, until
// that or ctx ends. It owns conn. Errors: what came was no request, the socket
// failed. When it returns, all wires are detached.
func Serve(ctx context.Context, conn *net.UnixConn, o ServeOptions) error {
	s := &server{log: o.Logger, notes: o.Notes, link: newLink(conn, true), touched: make(chan string, maxWires), order: map[string]chan struct{}{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.recorder = newRecorder(func(m up) error { return s.link.send(m, -1, recordWait) })
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	err := s.serve(ctx)
	s.recorder.shut()
	cancel()
	s.working.Wait()
	if s.router != nil {
		s.router.Close()
	}
	if errors.Is(err, io.EOF) || ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// server is a router's side of the socket.
type server struct {
	log      *slog.Logger
	notes    []string
	link     *link
	recorder *recorder
	router   *egress.Router // nil before the first request; so are the next two
	compiler *compiler
	names    resolver

	working sync.WaitGroup // requests, and whoever reports what is used
	touched chan string    // wires that use something

	mu    sync.Mutex
	order map[string]chan struct{} // guarded by mu; by wire, closed when its last request is done
}

// turn puts a request behind those of the same wire: a keeper that has stopped
// waiting for an attach may detach. Call done when it is over.
func (s *server) turn(id string) (before <-chan struct{}, done func()) {
	if id == "" {
		ready := make(chan struct{})
		close(ready)
		return ready, func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	last, mine := s.order[id], make(chan struct{})
	if last == nil {
		last = make(chan struct{})
		close(last)
	}
	s.order[id] = mine
	return last, func() {
		close(mine)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.order[id] == mine {
			delete(s.order, id)
		}
	}
}

// serve reads requests until there are no more.
func (s *server) serve(ctx context.Context) error {
	slots := make(chan struct{}, maxRequests)
	for {
		b, tap, err := s.link.receive()
		if err != nil {
			return err
		}
		m, err := decodeDown(b, tap != nil)
		clear(b) // it may hold secrets
		if err == nil && (m.Op == opStart) != (s.router == nil) {
			err = fmt.Errorf("%q is not what comes now", m.Op)
		}
		if err != nil {
			if tap != nil {
				tap.Close()
			}
			return err
		}
		switch m.Op {
		case opStart:
			s.start(ctx, m.Start)
			err = s.link.send(up{Ref: m.Ref, Notes: s.notes}, -1, recordWait)
		case opNames:
			s.names.set(*m.Names)
		case opAck:
			err = s.recorder.ack(*m.Ack)
		default:
			select {
			case slots <- struct{}{}:
			default:
				err = errors.New("more requests than can be")
			}
			if err == nil {
				before, done := s.turn(m.ID)
				s.working.Go(func() {
					defer func() { done(); <-slots }()
					<-before
					s.answer(m, tap)
				})
				continue
			}
		}
		if err != nil {
			return err
		}
	}
}

func (s *server) start(ctx context.Context, m *start) {
	machine := new(netaddr.Machine)
	s.names.set(m.Names)
	s.compiler = newCompiler(m.Private, machine)
	s.router = egress.New(egress.Config{
		Logger: s.log,
		Dialer: netaddr.Dialer{Machine: machine, Lookup: s.names.lookup},
		Record: s.record,
		Roots: sync.OnceValue(func() *x509.CertPool { // when the first binding needs them
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(m.Roots)
			return pool
		}),
	})
	s.working.Go(func() { s.report(ctx) })
}

// record sends an event up and notes whose use of its budgets has changed.
func (s *server) record(e egress.Event) error {
	err := s.recorder.record(e)
	if e.Kind != egress.KindDNS || e.Decision == egress.Allow {
		select {
		case s.touched <- e.Wire:
		default: // so many are waiting already that the next one will do
		}
	}
	return err
}

// answer does what m asks and says how it went. A keeper that does not take
// answers is gone, which serve sees.
func (s *server) answer(m *down, tap *os.File) {
	a, err := s.do(m, tap)
	a.Ref = m.Ref
	if err != nil {
		a = up{Ref: m.Ref, Error: failureOf(err)}
	}
	if err := s.link.send(a, -1, recordWait); err != nil {
		s.log.Warn("an answer was not taken", "error", err)
		s.link.conn.Close()
	}
}

func (s *server) do(m *down, tap *os.File) (a up, err error) {
	switch m.Op {
	case opAttach:
		t, err := s.compiler.compile(m.Wire.Policies)
		if err != nil {
			tap.Close()
			m.Wire.forget()
			return a, err
		}
		err = s.router.Attach(egress.Wire{ID: m.ID, Epoch: m.Wire.Epoch, Table: t, Used: m.Wire.Used, Bindings: m.Wire.Bindings, Transforms: m.Wire.Transforms, Authority: m.Wire.Authority}, tap)
		return a, err
	case opUpdate:
		t, err := s.compiler.compile(m.Wire.Policies)
		if err != nil {
			m.Wire.forget()
			return a, err
		}
		// Before the policy: what it lets pass has its headers.
		if err := s.router.Grant(m.ID, m.Wire.Bindings, m.Wire.Transforms); err != nil {
			m.Wire.Authority.Wipe()
			return a, err
		}
		a.Generation, a.Closed, err = s.router.Update(m.ID, t, m.Wire.Authority)
		return a, err
	case opGrant:
		return a, s.router.Grant(m.ID, m.Wire.Bindings, m.Wire.Transforms)
	case opDetach:
		a.Used, err = s.router.Detach(m.ID)
		return a, err
	case opStats:
		stats := s.router.Stats()
		a.Stats = &stats
		return a, nil
	case opStop:
		return a, s.router.Close()
	}
	return a, sandbox.Errorf("router", sandbox.KindInternal, "%q is not done here", m.Op)
}
