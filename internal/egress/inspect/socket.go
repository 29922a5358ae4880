package inspect

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// closeTime is how long one side has to answer the other's close.
const closeTime = 10 * time.Second

// knock makes a request one for a WebSocket, with a key of our own and without
// extensions: what passes has to be read.
func (x *exchange) knock(out *http.Request) *Refusal {
	h := x.req.Header
	key, err := base64.StdEncoding.Strict().DecodeString(h.Get("Sec-Websocket-Key"))
	switch {
	case x.head.method != http.MethodGet, x.req.ContentLength != 0, !httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade"):
		return odd(http.StatusBadRequest, "this is no handshake of WebSocket")
	case err != nil || len(key) != 16 || len(h["Sec-Websocket-Key"]) != 1:
		return odd(http.StatusBadRequest, "the key of the WebSocket is none")
	case !only(h["Sec-Websocket-Version"], "13"):
		return odd(http.StatusBadRequest, "the version of WebSocket is not 13")
	}
	_, _ = rand.Read(key) // never fails
	x.key = base64.StdEncoding.EncodeToString(key)
	delete(out.Header, "Sec-Websocket-Extensions")
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": x.key} {
		out.Header[name] = []string{value}
	}
	return nil
}

// accepts is what proves that a server has read a key.
func accepts(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// opened checks what a host answers to a knock, and returns what the sandbox is
// answered.
func (x *exchange) opened(resp *http.Response) (http.Header, bool) {
	h := resp.Header
	protocol := h["Sec-Websocket-Protocol"]
	offered := func() bool {
		return len(protocol) == 1 && slices.ContainsFunc(x.req.Header["Sec-Websocket-Protocol"], func(list string) bool {
			return slices.ContainsFunc(strings.Split(list, ","), func(p string) bool { return strings.TrimSpace(p) == protocol[0] })
		})
	}
	if !strings.EqualFold(h.Get("Upgrade"), "websocket") || !httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade") || !only(h["Sec-Websocket-Accept"], accepts(x.key)) ||
		h["Sec-Websocket-Extensions"] != nil || protocol != nil && !offered() {
		return nil, false
	}
	stripAnswer(h)
	if x.route.binding != nil {
		stripResponse(h)
	}
	x.cover(h)
	h["Connection"], h["Upgrade"], h["Sec-Websocket-Accept"] = []string{"Upgrade"}, []string{"websocket"}, []string{accepts(x.req.Header.Get("Sec-Websocket-Key"))}
	return h, true
}

// socket carries the frames of a WebSocket, each read and written anew, until it is
// closed.
func (x *exchange) socket(ctx context.Context, resp *http.Response, alive func()) (again bool) {
	defer resp.Body.Close()
	host, upgraded := resp.Body.(io.ReadWriteCloser)
	t, h1 := x.front.(*turn)
	header, ok := x.opened(resp)
	if !upgraded || !h1 || !ok {
		return x.front.refuse(&Refusal{Status: http.StatusBadGateway, Text: "the host does not open the WebSocket as it should"})
	}
	t.switches(header)
	_ = t.conn.SetReadDeadline(time.Time{})
	stop := context.AfterFunc(ctx, func() {
		host.Close()
		_ = t.conn.SetDeadline(time.Unix(1, 0))
	})
	defer stop()
	there, here := &frames{masked: true, out: bufio.NewWriter(host)}, &frames{out: t.out}
	known := x.with.secrets
	if !x.reads() {
		known = nil
	}
	up := &lane{in: t.in, masked: true, out: there, secrets: known, alive: alive}
	down := &lane{in: bufio.NewReader(host), out: here, secrets: known, redacts: true, alive: alive}
	ended := make(chan error, 2)
	go func() { ended <- up.run() }()
	go func() { ended <- down.run() }()
	err := <-ended
	if err == nil { // a close, which the other side answers
		limit := time.AfterFunc(closeTime, func() {
			host.Close()
			_ = t.conn.SetDeadline(time.Unix(1, 0))
		})
		err = <-ended
		limit.Stop()
		t.broken = err != nil
		return false
	}
	code, text := 0, ""
	var wrong *frameError
	switch {
	case errors.Is(err, errLeak):
		no := leaked(err)
		x.ask.Refused(x.head.method, no)
		code, text = codePolicy, no.Reason
	case errors.As(err, &wrong):
		x.ask.Refused(x.head.method, &Refusal{Reason: ReasonRequest, Text: "WebSocket: " + wrong.text})
		code, text = wrong.code, wrong.text
	}
	if code != 0 {
		here.bye(code, text)
		there.bye(code, text)
	}
	host.Close()
	_ = t.conn.SetReadDeadline(time.Unix(1, 0))
	<-ended
	t.broken = code == 0
	return false
}

// lane carries the frames of one direction.
type lane struct {
	in      *bufio.Reader
	masked  bool // what comes in is
	out     *frames
	secrets *secrets // that are looked for; nil: none
	redacts bool     // they become stars; otherwise the first one is the end
	alive   func()

	now    frame // what is being read
	read   int64 // of now
	size   int64 // of the message until now
	closed bool
}

// run carries frames until there is a close. Errors: those of both sides,
// *frameError, errLeak.
func (l *lane) run() error {
	for {
		f, err := l.next()
		switch {
		case err != nil:
			return err
		case l.closed:
			return nil
		case f.op == opMore:
			return oddFrame("a piece of no message")
		}
		if err := l.message(f); err != nil || l.closed {
			return err
		}
	}
}

// next reads the head of the next frame of a message; closes, pings and pongs
// before it are carried.
func (l *lane) next() (f frame, err error) {
	for {
		if f, err = readFrame(l.in, l.masked); err != nil || !f.control() {
			return f, err
		}
		l.alive()
		payload := make([]byte, f.size)
		if _, err := io.ReadFull(l.in, payload); err != nil {
			return f, broken(err)
		}
		f.unmask(payload, 0)
		if f.op == opClose && len(payload) == 1 {
			return f, oddFrame("a close with half a code")
		}
		if l.secrets != nil {
			if payload, err = io.ReadAll(newStream(&piece{payload}, l.secrets, l.redacts)); err != nil {
				return f, err
			}
		}
		if err := l.out.write(f.op, true, payload); err != nil {
			return f, err
		}
		if l.closed = f.op == opClose; l.closed {
			return f, nil
		}
	}
}

// piece is bytes of which the last come with the end.
type piece struct{ b []byte }

// Read implements io.Reader.
func (p *piece) Read(b []byte) (int, error) {
	n := copy(b, p.b)
	if p.b = p.b[n:]; len(p.b) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// message carries one, of which first is the first frame. It goes on in frames of
// what there is at once.
func (l *lane) message(first frame) error {
	l.now, l.read, l.size = first, 0, first.size
	var from io.Reader = l
	var s *stream
	if l.secrets != nil {
		s = newStream(l, l.secrets, l.redacts)
		from = s
	}
	buf := buffers.Get().(*[window]byte)
	defer buffers.Put(buf)
	for op := first.op; ; op = opMore {
		n, err := from.Read(buf[:])
		if l.closed {
			return nil // in the middle of a message, which is nobody's business
		}
		if err != nil && err != io.EOF {
			return err
		}
		last := err == io.EOF || s != nil && s.drained()
		if err := l.out.write(op, last, buf[:n]); err != nil {
			return err
		}
		if last {
			return nil
		}
	}
}

// Read implements io.Reader: the message's bytes. The last come with io.EOF.
func (l *lane) Read(p []byte) (int, error) {
	for l.read == l.now.size && !l.now.last {
		f, err := l.next()
		switch {
		case err != nil:
			return 0, broken(err)
		case l.closed:
			return 0, io.EOF
		case f.op != opMore:
			return 0, oddFrame("a message within another")
		}
		if l.now, l.read, l.size = f, 0, l.size+f.size; l.size > maxMessage {
			return 0, &frameError{codeTooBig, "a message is too long"}
		}
	}
	var n int
	if left := l.now.size - l.read; left > 0 {
		var err error
		if n, err = l.in.Read(p[:min(int64(len(p)), left)]); err != nil {
			return 0, broken(err)
		}
		l.now.unmask(p[:n], l.read)
		l.read += int64(n)
		l.alive()
	}
	if l.read == l.now.size && l.now.last {
		return n, io.EOF
	}
	return n, nil
}
