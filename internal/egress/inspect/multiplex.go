package inspect

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
)

// The most that a sandbox gets of one connection with HTTP/2.
const (
	maxStreams = 100
	roomStream = 64 << 10  // bytes of a body that nobody took yet
	roomConn   = 128 << 10 // of all bodies of a connection
)

// multiplexer serves the HTTP/2 of one wire: net/http's server, which is handed
// connections.
type multiplexer struct {
	server *http.Server
	next   chan net.Conn
	closed chan struct{}
	served sync.WaitGroup // the server's loop
	began  sync.Once
	ended  atomic.Bool
}

type sessionKey struct{}

func (m *multiplexer) begin(p *Proxy) {
	m.next, m.closed = make(chan net.Conn), make(chan struct{})
	one := new(http.Protocols)
	one.SetHTTP2(true)
	m.server = &http.Server{
		Handler:        http.HandlerFunc(serveStream),
		Protocols:      one,
		MaxHeaderBytes: maxHead,
		IdleTimeout:    keepTime,
		ErrorLog:       log.New(io.Discard, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: roomStream, MaxReceiveBufferPerConnection: roomConn, WriteByteTimeout: bodyTime,
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, sessionKey{}, belowOf(c))
		},
		ConnState: func(c net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				close(belowOf(c).done)
			}
		},
	}
}

func belowOf(c net.Conn) *handed {
	t, ok := c.(interface{ NetConn() net.Conn })
	if !ok {
		return nil
	}
	h, _ := t.NetConn().(*handed)
	return h
}

// Accept implements net.Listener.
func (m *multiplexer) Accept() (net.Conn, error) {
	select {
	case c := <-m.next:
		return c, nil
	case <-m.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Again: nothing.
func (m *multiplexer) Close() error {
	if !m.ended.Swap(true) {
		close(m.closed)
	}
	return nil
}

// Addr implements net.Listener.
func (m *multiplexer) Addr() net.Addr { return new(net.TCPAddr) }

// end stops the server, which has no connections any more.
func (m *multiplexer) end() {
	_ = m.Close()
	m.began.Do(func() {}) // and it does not begin
	_ = m.server.Close()
	m.served.Wait()
}

// serve speaks HTTP/2 on a connection until it is over, with all that was asked on
// it.
func (m *multiplexer) serve(ctx context.Context, c *Conn, s *session) (clean bool) {
	m.began.Do(func() { m.served.Go(func() { _ = m.server.Serve(m) }) })
	h := c.below
	h.session, h.done = s, make(chan struct{})
	defer context.AfterFunc(ctx, func() { _ = h.Close() })()
	select {
	case m.next <- c.Conn:
	case <-m.closed:
		return false
	}
	<-h.done
	h.drain()
	return ctx.Err() == nil && part(h.Conn)
}
