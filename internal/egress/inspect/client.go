package inspect

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	firstRead = 4 << 10
	keepTime  = 90 * time.Second // between two requests
	bodyTime  = 2 * time.Minute  // in which one more byte has to come, or to be taken
	lastWords = time.Minute      // for the sandbox to read what was said last
	maxDrain  = 1 << 20          // bytes that it may still send meanwhile
)

// client is the sandbox's side of one connection with HTTP/1.
type client struct {
	*session
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer

	bare   bool // the request is a HEAD: its answer has no body
	broken bool // what was sent last is not whole

	mu       sync.Mutex
	answered bool // guarded by mu; the answer to the request has begun
}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, firstRead) }}

func newClient(s *session, conn net.Conn) *client {
	c := &client{session: s, conn: conn, in: bufio.NewReaderSize(conn, firstRead), out: writers.Get().(*bufio.Writer)}
	c.out.Reset(slow{conn})
	return c
}

func (c *client) release() {
	c.out.Reset(nil)
	writers.Put(c.out)
}

// serve answers requests until there are none any more.
func (c *client) serve(ctx context.Context) {
	for ctx.Err() == nil && c.one(ctx) {
	}
}

// slow writes to a sandbox that reads at least something now and then.
type slow struct{ net.Conn }

// Write implements io.Writer.
func (s slow) Write(b []byte) (int, error) {
	_ = s.SetWriteDeadline(time.Now().Add(bodyTime))
	return s.Conn.Write(b)
}

// one serves one request, and reports whether another may follow.
func (c *client) one(ctx context.Context) (again bool) {
	b, no := c.head()
	if b == nil && no == nil {
		return false
	}
	c.mu.Lock()
	c.answered = false
	c.mu.Unlock()
	var h head
	if no == nil {
		h, no = checkHead(b)
	}
	c.bare = h.method == http.MethodHead
	var req *http.Request
	if no == nil {
		var err error
		if req, err = http.ReadRequest(c.in); err != nil {
			no = odd(http.StatusBadRequest, "the request cannot be read")
		}
	}
	if no != nil {
		c.ask.Refused(h.method, no)
		c.refuse(no, false)
		return false
	}
	body := &posted{client: c, from: req.Body, expects: h.expects && req.Body != http.NoBody}
	body.read.Store(req.Body == http.NoBody)
	return (&exchange{session: c.session, front: &turn{c, body, h, req}, head: h, req: req, body: body}).run(ctx)
}

// head waits for the head of a request, which stays unread. Neither: there is none
// any more.
func (c *client) head() ([]byte, *Refusal) {
	_ = c.conn.SetReadDeadline(time.Now().Add(keepTime))
	if _, err := c.in.Peek(1); err != nil {
		return nil, nil
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(c.proxy.o.Head))
	for from := 0; ; {
		b, _ := c.in.Peek(c.in.Buffered())
		if i := bytes.Index(b[from:], []byte("\r\n\r\n")); i >= 0 {
			return b[:from+i+4], nil
		}
		for i := from; i < len(b); i++ {
			if b[i] == '\n' && (i == 0 || b[i-1] != '\r') {
				return nil, odd(http.StatusBadRequest, "a line does not end with CR LF")
			}
		}
		from = max(0, len(b)-3)
		switch {
		case len(b) >= maxHead:
			return nil, odd(http.StatusRequestHeaderFieldsTooLarge, "the head of the request is longer than 64 KiB")
		case len(b) == c.in.Size():
			was := bytes.Clone(b)
			c.in = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(was), c.conn), min(4*len(b), maxHead))
			_, _ = c.in.Peek(len(was))
			continue
		}
		var late net.Error
		if _, err := c.in.Peek(len(b) + 1); errors.As(err, &late) && late.Timeout() {
			return nil, odd(http.StatusRequestTimeout, "the head of the request does not end")
		} else if err != nil {
			return nil, nil
		}
	}
}

// posted is the body of a request with HTTP/1.
type posted struct {
	client  *client
	from    io.Reader
	expects bool // 100 Continue
	lent    bool // to who sends the request on
	read    atomic.Bool

	mu   sync.Mutex
	over bool // guarded by mu; nothing more is read
}

// Read implements io.Reader.
func (u *posted) Read(p []byte) (int, error) {
	if u.expects {
		u.expects = false
		if err := u.client.proceed(); err != nil {
			return 0, err
		}
	}
	u.mu.Lock()
	if u.over {
		u.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	_ = u.client.conn.SetReadDeadline(time.Now().Add(bodyTime))
	u.mu.Unlock()
	n, err := u.from.Read(p)
	if err == io.EOF {
		u.read.Store(true)
	}
	return n, err
}

func (u *posted) whole() bool { return u.read.Load() }

func (u *posted) lend() { u.lent = true }

func (u *posted) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	_ = u.client.conn.SetReadDeadline(time.Unix(1, 0))
}

// proceed asks for the body, unless the answer has begun.
func (c *client) proceed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered {
		return io.ErrClosedPipe
	}
	_, err := slow{c.conn}.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	return err
}

// turn is one request of a client, and its answer.
type turn struct {
	*client
	body *posted
	head head
	req  *http.Request
}

// kept reports whether another request may follow, if this one was read to its end.
func (t *turn) kept() bool { return t.head.minor && !t.req.Close }

// watch implements front.
func (t *turn) watch(gone func()) (stop func()) {
	c := t.client
	done := make(chan struct{})
	var stopped atomic.Bool
	_ = c.conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(done)
		if _, err := c.in.Peek(1); err != nil && !stopped.Load() {
			gone()
		}
	}()
	return func() {
		stopped.Store(true)
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
		<-done
	}
}

// refuse implements front.
func (t *turn) refuse(no *Refusal) (again bool) {
	if no == nil {
		t.broken = true
		return false
	}
	return t.client.refuse(no, t.kept() && (t.body.whole() || t.drain()))
}

// drain throws away the body of a refused request that is here already.
func (t *turn) drain() bool {
	u := t.body
	if u.lent || u.expects || t.req.ContentLength < 0 || t.req.ContentLength > int64(t.in.Buffered()) {
		return false
	}
	_, err := io.Copy(io.Discard, u)
	return err == nil
}

// reply implements front.
func (t *turn) reply(_ context.Context, a *answer) (again bool) {
	again = t.kept() && t.body.whole()
	if a.body == nil {
		t.begin(a.status, a.header, a.length, false, again)
		if t.out.Flush() != nil {
			t.broken = true
		}
		return again && !t.broken
	}
	chunked := a.length < 0 && t.head.minor
	again = again && (chunked || a.length >= 0)
	t.begin(a.status, a.header, a.length, chunked, again)
	if !a.soon() && t.out.Flush() != nil || !t.copy(a.body, a.length, chunked, a.alive) {
		t.broken = true
	}
	return again && !t.broken
}

// switches answers that the connection is a WebSocket from now on.
func (t *turn) switches(h http.Header) {
	t.mu.Lock()
	t.answered = true
	t.mu.Unlock()
	_, _ = t.out.WriteString("HTTP/1.1 101 Switching Protocols\r\n") // what fails, fails again when it is flushed
	_ = h.Write(t.out)
	_, _ = t.out.WriteString("\r\n")
	_ = t.out.Flush()
}

// refuse answers a request that is not sent on. again: another may follow.
func (c *client) refuse(no *Refusal, again bool) bool {
	text, h := no.say(http.Header{})
	c.begin(no.status(), h, int64(len(text)), false, again && !no.close)
	if !c.bare {
		_, _ = c.out.WriteString(text)
	}
	if c.out.Flush() != nil {
		c.broken = true
	}
	return again && !no.close && !c.broken
}

// begin writes the head of an answer. A length of -1 is not known: chunked says
// what follows then.
func (c *client) begin(status int, h http.Header, length int64, chunked, again bool) {
	c.mu.Lock()
	c.answered = true
	c.mu.Unlock()
	fmt.Fprintf(c.out, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status))
	switch {
	case chunked:
		h.Set("Transfer-Encoding", "chunked")
	case length >= 0:
		h.Set("Content-Length", strconv.FormatInt(length, 10))
	}
	if h.Get("Date") == "" {
		h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	if !again {
		h.Set("Connection", "close")
	}
	_ = h.Write(c.out) // what fails, fails again when it is flushed
	_, _ = c.out.WriteString("\r\n")
}

var buffers = sync.Pool{New: func() any { return new([window]byte) }}

// copy sends the body of an answer as it comes. It reports whether all of it was
// sent: length bytes, if that is known.
func (c *client) copy(body io.Reader, length int64, chunked bool, alive func()) bool {
	buf := buffers.Get().(*[window]byte)
	defer buffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		alive()
		if length >= 0 && int64(n) > length {
			return false
		}
		switch {
		case n == 0:
		case chunked:
			fmt.Fprintf(c.out, "%x\r\n", n)
			_, _ = c.out.Write(buf[:n])
			_, _ = c.out.WriteString("\r\n")
		default:
			_, _ = c.out.Write(buf[:n])
		}
		if length >= 0 {
			length -= int64(n)
		}
		if err == io.EOF && length <= 0 {
			if chunked {
				_, _ = c.out.WriteString("0\r\n\r\n")
			}
			return c.out.Flush() == nil
		}
		if err != nil || c.out.Flush() != nil {
			return false
		}
	}
}

// part ends the connection such that the sandbox reads what was said last, though
// it may still be sending. It reports whether the sandbox has ended it too.
func (c *client) part() bool {
	if t, ok := c.conn.(*Conn); ok {
		_ = t.SetWriteDeadline(time.Now().Add(lastWords))
		_ = t.Conn.CloseWrite() // fails if the other side is gone, which part sees
		return part(t.below.Conn)
	}
	return part(c.conn)
}

func part(conn net.Conn) bool {
	if w, ok := conn.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Now().Add(lastWords))
	_, err := io.Copy(io.Discard, io.LimitReader(conn, maxDrain))
	return err == nil
}
