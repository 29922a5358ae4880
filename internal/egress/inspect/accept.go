package inspect

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	protocolH2 = "h2"
	protocolH1 = "http/1.1"
)

// The reasons for which TLS is not accepted.
const (
	ReasonUntrusted = "untrusted" // the sandbox's program does not believe the certificate
	ReasonTLS       = "tls"       // the handshake failed
)

// Conn is TLS that a sandbox speaks with the proxy.
type Conn struct {
	*tls.Conn
	below *handed
}

// handed is what a Conn is on.
type handed struct {
	net.Conn
	certificate func() (*tls.Certificate, error)
	session     *session      // of HTTP/2
	done        chan struct{} // closed when HTTP/2 has ended; nil if it is not spoken

	alert atomic.Int32 // that came in the clear; 0: none

	mu     sync.Mutex
	closed bool           // guarded by mu; nothing is read any more, and no request begins
	calls  sync.WaitGroup // requests; added to under mu while not closed
}

// enter notes a request that begins; not ok: it does not.
func (h *handed) enter() (ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.calls.Add(1)
	}
	return !h.closed
}

func (h *handed) leave() { h.calls.Done() }

// drain waits for the requests that have begun.
func (h *handed) drain() {
	_ = h.Close()
	h.calls.Wait()
}

// Read implements net.Conn.
func (h *handed) Read(b []byte) (int, error) {
	h.mu.Lock()
	closed := h.closed
	h.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	n, err := h.Conn.Read(b)
	if a := alertIn(b[:n]); a != 0 {
		h.alert.Store(int32(a))
	}
	return n, err
}

// alertIn is the alert that b is, in the clear; 0: it is none. Who does not believe
// a certificate of TLS 1.3 says so before it has keys to say it with, as OpenSSL does,
// which crypto/tls takes for damage.
func alertIn(b []byte) (description uint8) {
	if len(b) == 13 && b[0] == 20 { // behind a change of the cipher, which means nothing
		b = b[6:]
	}
	if len(b) == 7 && b[0] == 21 && b[1] == 3 && b[3] == 0 && b[4] == 2 && b[5] == 2 {
		return b[6]
	}
	return 0
}

// Close implements net.Conn for who speaks HTTP/2 on it: nothing is read any more,
// and an end is said. The connection is its owner's.
func (h *handed) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	_ = h.Conn.SetDeadline(time.Unix(1, 0))
	return h.CloseWrite()
}

// CloseWrite ends what the proxy says.
func (h *handed) CloseWrite() error {
	if w, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return net.ErrClosed
}

// ServerConfig is how TLS is accepted on all connections of one authority: TLS 1.2
// at least, HTTP/2 or 1.1, the certificate that Accept is given. Sessions resume on
// connections that share a config. It ends on this machine: nobody can keep what is
// said for a time with other computers, so that keys are agreed on in the way that
// takes least.
func ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
		NextProtos:       []string{protocolH2, protocolH1},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			h, ok := hello.Conn.(*handed)
			if !ok {
				return nil, errors.New("no connection of a sandbox's")
			}
			return h.certificate()
		},
	}
}

// Accept accepts TLS on conn within timeout. A Refusal says why not; without a
// reason nobody has to know: the sandbox went away, or ctx ended.
func Accept(ctx context.Context, conn net.Conn, c *tls.Config, timeout time.Duration, certificate func() (*tls.Certificate, error)) (*Conn, *Refusal) {
	below := &handed{Conn: conn, certificate: certificate}
	t := tls.Server(below, c)
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := t.HandshakeContext(limit); err != nil {
		if ctx.Err() != nil {
			return nil, &Refusal{}
		}
		if a := below.alert.Load(); a != 0 {
			err = &net.OpError{Op: "remote error", Err: tls.AlertError(a)}
		}
		return nil, handshakeProblem(err)
	}
	return &Conn{t, below}, nil
}

// alerts by which programs say that they do not believe a certificate, as
// crypto/tls calls them.
var alerts = []string{"unknown certificate authority", "bad certificate", "unknown certificate", "unsupported certificate", "expired certificate", "revoked certificate", "access denied"}

// Silent is why a client went away that had seen the certificate and asked nothing.
func Silent() *Refusal {
	return &Refusal{Reason: ReasonUntrusted, Text: "the client went away when it saw the certificate of the sandbox's CA: it may not trust it, or pins another" + hintUnread}
}

const hintUnread = "; a rule with `inspect: none` passes it unread"

// handshakeProblem says why a sandbox's TLS was not accepted.
func handshakeProblem(err error) *Refusal {
	const hint = hintUnread
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		what := strings.TrimPrefix(alert.Err.Error(), "tls: ")
		for _, a := range alerts {
			if what == a {
				return &Refusal{Reason: ReasonUntrusted, Text: "the client does not trust the sandbox's CA (" + what + "): it brings a list of its own, or pins the certificate" + hint}
			}
		}
		return &Refusal{Reason: ReasonTLS, Text: "the client ends the handshake: " + what}
	}
	var no *Refusal
	switch text := err.Error(); {
	case errors.As(err, &no):
		return no
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), strings.Contains(text, "reset"):
		return Silent()
	case strings.Contains(text, "unsupported versions"):
		return &Refusal{Reason: ReasonTLS, Text: "the client does not speak TLS 1.2 or 1.3" + hint}
	case strings.Contains(text, "application protocol"):
		return &Refusal{Reason: ReasonTLS, Text: "the client speaks something else than HTTP on TLS" + hint}
	case errors.Is(err, context.DeadlineExceeded):
		return &Refusal{Reason: ReasonTLS, Text: "the handshake does not end"}
	}
	return &Refusal{Reason: ReasonTLS, Text: "the client's TLS cannot be accepted"}
}
