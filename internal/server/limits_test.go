package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestSlowBody: a body that stalls ends in a typed answer.
func TestSlowBody(t *testing.T) {
	f := &fake{}
	w := start(t, f)
	w.srv.bodyTimeout = 400 * time.Millisecond
	for name, request := range map[string]string{
		"json": "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\nContent-Length: 20\r\n\r\n{",
		"raw":  "PUT /v1/sandboxes/x/files?path=f HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\nContent-Length: 20\r\n\r\nx",
		"connect": "POST /firebreak.v1.SandboxService/GetSandbox HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\n" +
			"Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{",
		"unread": "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
	} {
		c := rawConn(t, w.addr)
		io.WriteString(c, request)
		began := time.Now()
		b, err := io.ReadAll(c)
		want := `"kind":"timeout"`
		switch {
		case name == "unread":
			want = "200 OK"
		case name == "connect":
			want = `"code":"deadline_exceeded"`
		case !strings.Contains(string(b), "408 Request Timeout"):
			t.Errorf("%s: %s", name, b)
		}
		if !strings.Contains(string(b), want) || time.Since(began) > 5*time.Second {
			t.Errorf("%s after %v: %s %v", name, time.Since(began), b, err)
		}
	}
	// One that is slow but moves is not stalled, one that only pretends to is.
	for name, c := range map[string]struct {
		piece string
		want  string
	}{
		"slow but steady": {strings.Repeat("x", 500), "200 OK"},
		"now and then":    {"x", `"kind":"timeout"`},
	} {
		conn := rawConn(t, w.addr)
		fmt.Fprintf(conn, "PUT /v1/sandboxes/x/files?path=f HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", 8*len(c.piece))
		for range 8 {
			time.Sleep(100 * time.Millisecond)
			if _, err := io.WriteString(conn, c.piece); err != nil {
				break
			}
		}
		if b, _ := io.ReadAll(conn); !strings.Contains(string(b), c.want) {
			t.Errorf("%s: %s", name, b)
		}
	}
}

// TestLongOperation: the deadline of the body does not end the operation.
func TestLongOperation(t *testing.T) {
	f := &fake{create: func(ctx context.Context, _ *v1.CreateSandboxRequest) (*v1.Sandbox, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(400 * time.Millisecond):
			return &v1.Sandbox{}, nil
		}
	}}
	w := start(t, f)
	w.srv.bodyTimeout = 100 * time.Millisecond
	w.do("POST", "/v1/sandboxes", `{}`).want(t, 201)
	w.do("POST", "/v1/sandboxes", ``).want(t, 201)
	w.srv.registry.procedures["/firebreak.v1.SandboxService/CreateSandbox"].deadline = 50 * time.Millisecond
	w.do("POST", "/v1/sandboxes", `{}`).want(t, 504, `"kind":"timeout"`)
}

func TestIdempotencyKey(t *testing.T) {
	w := start(t, &fake{})
	w.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", strings.Repeat("k", 255)).want(t, 201)
	w.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", strings.Repeat("k", 256)).want(t, 400, "Idempotency-Key")
	w.do("POST", "/v1/sandboxes", `{}`, "Idempotency-Key", "ü").want(t, 400, "Idempotency-Key")
}

func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "fb")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")

	// What a killed server leaves behind.
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()

	l, err := ListenUnix(path, 0o660)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o660 {
		t.Errorf("mode: %v %v", fi, err)
	}
	if _, err := ListenUnix(path, 0o600); sandbox.KindOf(err) != sandbox.KindExists {
		t.Errorf("over a live socket: %v", err)
	}
	accepted := make(chan *peer, 1)
	go func() {
		c, err := l.Accept() // the probe above
		if err == nil {
			c.Close()
		}
		if c, err = l.Accept(); err == nil {
			accepted <- c.(*conn).peer
			c.Close()
		}
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if p := <-accepted; p.err != nil || p.uid != os.Getuid() {
		t.Errorf("peer: %+v", p)
	}
	l.Close()
	entries, _ := os.ReadDir(dir)
	if len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(path, 0o600); sandbox.KindOf(err) != sandbox.KindExists {
		t.Errorf("over a file: %v", err)
	}
}

// TestConnectionLimit: a listener holds no more connections than it may. The one
// that has waited longest makes room, never one with a request under way.
func TestConnectionLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner, false)
	l.crowd.max, l.crowd.perSource = 2, 10
	conns := make(chan net.Conn)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	dial()
	busy := <-conns
	connState(busy, http.StateActive)
	idle := dial()
	waits := <-conns
	dial()
	third := <-conns // waits was cut for it
	if _, err := idle.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the idle connection: %v", err)
	}
	connState(third, http.StateActive)
	connState(waits, http.StateIdle) // its server is late to notice
	dial()
	select {
	case <-conns:
		t.Error("one more was taken although all are busy")
	case <-time.After(50 * time.Millisecond):
	}
	connState(busy, http.StateIdle)
	fourth := <-conns
	fourth.Close()
	fourth.Close() // counts once
	busy.Close()
	third.Close()
	waits.Close()
	l.crowd.mu.Lock()
	if d := l.crowd; d.n != 0 || len(d.sources) != 0 || d.waiting.Len() != 0 || len(d.places) != 0 || d.cut != 2 {
		t.Errorf("left: %d connections of %v, %d wait, %d were cut", d.n, d.sources, d.waiting.Len(), d.cut)
	}
	l.crowd.mu.Unlock()
	l.Close()
	<-done
}

// TestSourceLimit: one address cannot have all the connections.
func TestSourceLimit(t *testing.T) {
	d := newCrowd(10, 3)
	join := func(source string) (*conn, bool) {
		server, client := net.Pipe()
		t.Cleanup(func() { server.Close(); client.Close() })
		c := &conn{Conn: server, crowd: d, source: source}
		return c, d.join(c)
	}
	for range 3 {
		c, ok := join("a")
		if !ok {
			t.Fatal("refused")
		}
		connState(c, http.StateActive)
	}
	if _, ok := join("a"); ok {
		t.Error("a fourth one of a source whose others are busy")
	}
	for range 5 { // the older ones make room
		if _, ok := join("b"); !ok {
			t.Error("refused")
		}
	}
	if d.n != 6 || d.sources["a"] != 3 || d.sources["b"] != 3 {
		t.Errorf("%d: %v", d.n, d.sources)
	}
}
