package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
)

// dialFrom connects from one of this host's loopback addresses.
func dialFrom(t *testing.T, from, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// honest measures a caller that does nothing wrong until stop is called, which
// returns how long its requests took, sorted.
func (w *world) honest() (stop func() []time.Duration) {
	var took []time.Duration
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tr := &http.Transport{DisableKeepAlives: true}
		c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
			}
			begun := time.Now()
			req, _ := http.NewRequest("GET", "http://"+w.addr+"/v1/sandboxes/"+testID, nil)
			req.Header.Set("Authorization", "Bearer all")
			res, err := c.Do(req)
			if err != nil || res.StatusCode != 200 {
				w.t.Errorf("the honest caller: %v, %v", res, err)
				return
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			took = append(took, time.Since(begun))
		}
	})
	return func() []time.Duration {
		close(quit)
		wg.Wait()
		slices.Sort(took)
		return took
	}
}

// quiesce waits until there are no more than so many goroutines.
func quiesce(t *testing.T, most int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > most; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), most, buf[:runtime.Stack(buf, true)])
		}
	}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSlowLoris: hundreds of callers send their header byte by byte, more than
// there are connections. Others are served all the same.
func TestSlowLoris(t *testing.T) {
	w := start(t, &fake{})
	w.tcp.crowd.mu.Lock()
	w.tcp.crowd.max, w.tcp.crowd.perSource = 200, 100
	w.tcp.crowd.mu.Unlock()
	before := runtime.NumGoroutine()
	stop := w.honest()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var cut atomic.Int64
	for i := range 300 {
		from := fmt.Sprintf("127.0.0.%d", 2+i%5)
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(ctx, "tcp", w.addr)
				if err != nil {
					continue
				}
				for _, b := range []byte("GET /v1/backends HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + strings.Repeat("x", 1000)) {
					if _, err = c.Write([]byte{b}); err != nil || ctx.Err() != nil {
						break
					}
					select {
					case <-time.After(50 * time.Millisecond):
					case <-ctx.Done():
					}
				}
				if ctx.Err() == nil {
					cut.Add(1)
				}
				c.Close()
			}
		})
	}
	time.Sleep(2 * time.Second)
	took := stop()
	cancel()
	wg.Wait()
	if len(took) < 2 {
		t.Fatalf("%d honest requests", len(took))
	}
	if took[len(took)*9/10] > 2*time.Second {
		t.Errorf("90%% of %d honest requests within %v", len(took), took[len(took)*9/10])
	}
	if cut.Load() == 0 {
		t.Error("nobody made room")
	}
	t.Logf("%d honest requests, median %v, slowest %v; %d slow connections cut", len(took), took[len(took)/2], took[len(took)-1], cut.Load())
	quiesce(t, before+2)
}

// h2 is a raw HTTP/2 connection.
type h2 struct {
	net.Conn
	next uint32
}

func dialH2(t *testing.T, addr string) *h2 {
	c := rawConn(t, addr)
	io.WriteString(c, preface)
	c.Write(frame(4, 0, 0))
	return &h2{c, 1}
}

// request is the HEADERS frame of a GET that ends its stream.
func (h *h2) request(path string) []byte {
	block := []byte{0x82, 0x86, 0x44, byte(len(path))} // GET, http, :path
	block = append(block, path...)
	block = append(block, 0x41, 9)
	block = append(block, "localhost"...)
	block = append(block, 0x40, 13)
	block = append(block, "authorization"...)
	block = append(block, 10)
	block = append(block, "Bearer all"...)
	id := h.next
	h.next += 2
	return frame(1, 5, id, block...)
}

// drainH2 reads until the server ends the connection, and reports whether it
// said GOAWAY first.
func (h *h2) drain() (goaway bool, err error) {
	var head [9]byte
	for {
		if _, err := io.ReadFull(h, head[:]); err != nil {
			return goaway, err
		}
		goaway = goaway || head[3] == 7
		n := int64(binary.BigEndian.Uint32(append([]byte{0}, head[:3]...)))
		if _, err := io.CopyN(io.Discard, h, n); err != nil {
			return goaway, err
		}
	}
}

// TestHTTP2Floods: a connection that only makes work is ended, and meanwhile
// the work is bounded and others are served.
func TestHTTP2Floods(t *testing.T) {
	var running, most atomic.Int64
	f := &fake{get: func(ctx context.Context, r *v1.GetSandboxRequest) (*v1.Sandbox, error) {
		if r.Id == testID {
			return fullSandbox(), nil
		}
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		select { // slow to notice that nobody waits any more
		case <-time.After(20 * time.Millisecond):
		case <-t.Context().Done():
		}
		return &v1.Sandbox{}, nil
	}}
	w := start(t, f)
	before, memory := runtime.NumGoroutine(), heap()
	reset := func(h *h2) []byte {
		id := h.next
		return append(h.request("/v1/sandboxes/slow"), frame(3, 0, id, 0, 0, 0, 8)...)
	}
	for _, c := range []struct {
		name  string
		setup func(h *h2)
		piece func(h *h2) []byte
	}{
		{"rapid reset", nil, reset},
		{"made you reset", nil, func(h *h2) []byte { // the server resets: an increment of 0
			id := h.next
			return append(h.request("/v1/sandboxes/slow"), frame(8, 0, id, 0, 0, 0, 0)...)
		}},
		{"continuation", func(h *h2) { h.Write(frame(1, 0, 1, 0x82)) }, func(*h2) []byte { return frame(9, 0, 1, 0x00, 1, 'a', 1, 'b') }},
		{"empty continuation", func(h *h2) { h.Write(frame(1, 0, 1, 0x82)) }, func(*h2) []byte { return frame(9, 0, 1) }},
		{"settings", nil, func(*h2) []byte { return frame(4, 0, 0) }},
		{"ping", nil, func(*h2) []byte { return frame(6, 0, 0, make([]byte, 8)...) }},
		{"priority", nil, func(*h2) []byte { return frame(2, 0, 3, 0, 0, 0, 0, 1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for running.Load() > 0 {
				time.Sleep(10 * time.Millisecond)
			}
			most.Store(0)
			h := dialH2(t, w.addr)
			if c.setup != nil {
				c.setup(h)
			}
			ended := make(chan bool, 1)
			go func() { goaway, _ := h.drain(); ended <- goaway }()
			stop := w.honest()
			const flood = 50000
			cpu, begun, sent := cpuTime(), time.Now(), 0
			var err error
			for sent < flood && err == nil {
				var b []byte
				for range 100 {
					b = append(b, c.piece(h)...)
				}
				if _, err = h.Write(b); err == nil {
					sent += 100
				}
			}
			goaway := false
			select {
			case goaway = <-ended:
			case <-time.After(10 * time.Second):
				t.Error("the connection goes on")
			}
			wall, used := time.Since(begun), cpuTime()-cpu
			took := stop()
			if n := most.Load(); n > maxStreams {
				t.Errorf("%d requests at once, the limit is %d", n, maxStreams)
			}
			if n := len(took); n > 0 && took[n*9/10] > 2*time.Second {
				t.Errorf("the honest caller: 90%% within %v", took[n*9/10])
			}
			t.Logf("%d sent in %v, %v of CPU, GOAWAY %t, at most %d requests at once", sent, wall, used, goaway, most.Load())
		})
	}
	quiesce(t, before+2)
	if now := heap(); now > memory+16<<20 {
		t.Errorf("%d MiB kept", (now-memory)>>20)
	}
}

// TestHugeRequests: whatever is too large is refused in time and memory that do
// not depend on how large it would have been.
func TestHugeRequests(t *testing.T) {
	w := start(t, &fake{write: func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }})
	const head = " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\nContent-Type: application/json\r\n"
	before := heap()
	for name, c := range map[string]struct {
		request string
		endless string // repeated until the server has had enough
		want    string
	}{
		"declared 10 GB":      {"POST /v1/sandboxes" + head + "Content-Length: 10000000000\r\n\r\n", strings.Repeat("x", 64<<10), "413"},
		"chunked":             {"POST /v1/sandboxes" + head + "Transfer-Encoding: chunked\r\n\r\n", "10000\r\n" + strings.Repeat(" ", 65536) + "\r\n", "413"},
		"chunk extensions":    {"POST /v1/sandboxes" + head + "Transfer-Encoding: chunked\r\n\r\n", "1;" + strings.Repeat("x", 4000) + "\r\n \r\n", "4"},
		"gzip":                {"POST /v1/sandboxes" + head + "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "", "400"},
		"a stranger's 10 GB":  {"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n", strings.Repeat("x", 64<<10), "401"},
		"headers":             {"GET /v1/backends HTTP/1.1\r\nHost: localhost\r\n", "X-A: b\r\n", "431"},
		"one header":          {"GET /v1/backends HTTP/1.1\r\nHost: localhost\r\nX-A: ", strings.Repeat("x", 1000), "431"},
		"query parameters":    {"GET /v1/sandboxes?", strings.Repeat("metadata.a=b&", 100), "431"},
		"a path":              {"GET /", strings.Repeat("a/", 100), "431"},
		"trailers":            {"POST /v1/sandboxes" + head + "Transfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n0\r\n", "X-A: b\r\n", "4"},
		"Connect, compressed": {"POST /firebreak.v1.SandboxService/CreateSandbox" + head + "Connect-Protocol-Version: 1\r\nContent-Encoding: zip\r\nContent-Length: 3\r\n\r\nabc", "", "501"},
	} {
		conn := rawConn(t, w.addr)
		go func() {
			io.WriteString(conn, c.request)
			for sent := 0; c.endless != "" && sent < 1<<30; sent += len(c.endless) {
				if _, err := io.WriteString(conn, c.endless); err != nil {
					return
				}
			}
		}()
		begun := time.Now()
		b := make([]byte, 15)
		_, err := io.ReadFull(conn, b)
		status := strings.TrimPrefix(string(b), "HTTP/1.1 ")
		if err != nil && !errors.Is(err, syscall.ECONNRESET) || err == nil && !strings.HasPrefix(status, c.want) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("%s: after %v", name, took)
		}
		conn.Close()
	}
	if now := heap(); now > before+32<<20 {
		t.Errorf("%d MiB kept", (now-before)>>20)
	}
}

// TestCrowdedJSON: a body within its size may still name millions of things.
// What they cost is bounded.
func TestCrowdedJSON(t *testing.T) {
	w := start(t, &fake{})
	const run = `{"program":{"code":"1","language_pack":"python"%s},"inputs":[%s]}`
	for name, body := range map[string]string{
		"objects": fmt.Sprintf(run, "", "{}"+strings.Repeat(",{}", 400000)),
		"strings": fmt.Sprintf(run, `,"args":[""`+strings.Repeat(`,""`, 400000)+"]", ""),
		"depth":   strings.Repeat(`{"program":`, 300000),
		"arrays":  strings.Repeat("[", 1000000),
		"keys":    fmt.Sprintf(run, `,"env":{"":""`+strings.Repeat(`,"":""`, 300000)+"}", ""),
	} {
		bounded(t, name, len(body), func() { w.do("POST", "/v1/runs", body).want(t, 400, `"kind":"invalid"`, "values") })
	}
	// The same in protobuf.
	var b []byte
	for range 1000000 {
		b = append(b, 3<<3|2, 0) // an input
	}
	bounded(t, "protobuf", len(b), func() {
		a := w.do("POST", rpc.RunServiceCreateRunProcedure, string(b), "Content-Type", "application/proto")
		if a.status != 400 || !strings.Contains(a.body, "values") {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	// What is honest passes, in either.
	w.do("POST", "/v1/runs", fmt.Sprintf(run, "", `{"path":"a","text":"`+strings.Repeat("[,{", 200000)+`\\\""}`)).want(t, 201)
	m := &v1.CreateRunRequest{Program: &v1.RunProgram{Code: proto.String("1")}, Inputs: []*v1.InputFile{{Path: "a", Text: strings.Repeat("x", 1<<20)}}}
	if b, err := proto.Marshal(m); err != nil || countProto(b, m.ProtoReflect().Descriptor()) != nil {
		t.Error(err)
	}
}

// bounded checks that f, which handles a body of that size, allocates within
// reason.
func bounded(t *testing.T, name string, size int, f func()) {
	t.Helper()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	begun := time.Now()
	f()
	runtime.ReadMemStats(&m1)
	if bytes := m1.TotalAlloc - m0.TotalAlloc; bytes > 128<<20 {
		t.Errorf("%s: %d MiB allocated for a body of %d MiB", name, bytes>>20, size>>20)
	} else {
		t.Logf("%s: %v, %d MiB", name, time.Since(begun), bytes>>20)
	}
}
