package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a guest that a test scripts.
type fake struct {
	t    *testing.T
	conn net.Conn
	d    *Decoder
}

// open returns a session with a scripted guest behind it.
func open(t *testing.T, cfg Config) (*Session, *fake) {
	t.Helper()
	host, conn := net.Pipe()
	f := &fake{t: t, conn: conn, d: NewDecoder(conn, Guest)}
	shaken := make(chan struct{})
	go func() { defer close(shaken); f.shake("") }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := Open(ctx, host, cfg)
	if err != nil {
		t.Fatal(err)
	}
	<-shaken
	t.Cleanup(func() { s.Close(); conn.Close() })
	return s, f
}

// shake answers a reset; junk comes first, as from an older connection.
func (f *fake) shake(junk string) {
	p, err := f.d.Hunt(TypeReset, func([]byte) bool { return true })
	if err != nil {
		return
	}
	f.send([]byte(junk))
	own := bytes.Repeat([]byte{7}, NonceSize)
	f.send(AppendFrame(nil, TypeResetAck, 0, append(append(append([]byte(nil), p[:NonceSize]...), own...), p[NonceSize:]...)))
	h, err := f.d.Next()
	if err != nil {
		return
	}
	body, err := f.d.Payload(h)
	var hello Hello
	if err != nil || h.Type != TypeHello || json.Unmarshal(body, &hello) != nil || hello.Nonce != strings.Repeat("07", NonceSize) {
		f.t.Errorf("hello: %v %s", err, body)
	}
	f.send(AppendFrame(nil, TypeHello, 0, []byte(`{"protocol":1,"version":"fake\u001b[2J","next_id":1}`)))
}

func (f *fake) send(b []byte) { f.conn.Write(b) }

func (f *fake) json(t Type, id uint32, v any) {
	b, _ := json.Marshal(v)
	f.send(AppendFrame(nil, t, id, b))
}

func (f *fake) data(t Type, id uint32, at uint64, p []byte) {
	var h [DataHeader]byte
	PutData(&h, t, id, at, p)
	f.send(append(h[:], p...))
}

// next returns the next frame from the host.
func (f *fake) next() (Header, []byte) {
	h, err := f.d.Next()
	if err != nil {
		return h, nil
	}
	p, _ := f.d.Payload(h)
	return h, p
}

// started answers an exec and returns the process.
func started(t *testing.T, s *Session, f *fake) *Process {
	t.Helper()
	go func() {
		h, _ := f.next()
		f.json(TypeReply, h.Stream, Reply{Process: &ProcessInfo{PID: 9}})
	}()
	p, err := s.Exec(short(t), Command{Argv: []string{"x"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// ends checks that the session ends of what the guest did.
func ends(t *testing.T, s *Session, k sandbox.Kind) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the session lives on")
	}
	if got := sandbox.KindOf(s.Err()); got != k {
		t.Errorf("ended of %s: %v; want %s", got, s.Err(), k)
	}
	if err := s.Ping(short(t)); sandbox.KindOf(err) != k {
		t.Errorf("a call afterwards: %v", err)
	}
}

func TestHostileGuest(t *testing.T) {
	big := make([]byte, MaxData)
	for name, c := range map[string]struct {
		kind sandbox.Kind
		do   func(f *fake, id uint32)
	}{
		"half a frame":      {sandbox.KindUnavailable, func(f *fake, id uint32) { f.send(golden()[9].frame[:20]); f.conn.Close() }},
		"garbage":           {sandbox.KindProtocol, func(f *fake, id uint32) { f.send([]byte(strings.Repeat("garbage", 10))) }},
		"huge length":       {sandbox.KindProtocol, func(f *fake, id uint32) { b := AppendFrame(nil, TypeReply, 1, nil); b[8] = 0xff; f.send(b) }},
		"host's frame type": {sandbox.KindProtocol, func(f *fake, id uint32) { f.send(AppendFrame(nil, TypeCall, 1, []byte("{}"))) }},
		"second hello":      {sandbox.KindProtocol, func(f *fake, id uint32) { f.json(TypeHello, 0, Hello{Protocol: 1}) }},
		"second ack":        {sandbox.KindProtocol, func(f *fake, id uint32) { f.send(golden()[1].frame) }},
		"unused id":         {sandbox.KindProtocol, func(f *fake, id uint32) { f.json(TypeReply, 77, Reply{}) }},
		"data of unused id": {sandbox.KindProtocol, func(f *fake, id uint32) { f.data(TypeStdout, 77, 0, []byte("x")) }},
		"not JSON":          {sandbox.KindProtocol, func(f *fake, id uint32) { f.send(AppendFrame(nil, TypeExit, id, []byte("{{"))) }},
		"unknown reason":    {sandbox.KindProtocol, func(f *fake, id uint32) { f.json(TypeExit, id, Exit{Reason: "crashed"}) }},
		"impossible code":   {sandbox.KindProtocol, func(f *fake, id uint32) { f.json(TypeExit, id, Exit{Reason: "done", Code: 1000}) }},
		"gap":               {sandbox.KindProtocol, func(f *fake, id uint32) { f.data(TypeStdout, id, 5, []byte("x")) }},
		"repetition": {sandbox.KindProtocol, func(f *fake, id uint32) {
			f.data(TypeStdout, id, 0, []byte("x"))
			f.data(TypeStdout, id, 0, []byte("x"))
		}},
		"over the window": {sandbox.KindProtocol, func(f *fake, id uint32) { f.data(TypeStdout, id, 0, big); f.data(TypeStdout, id, MaxData, []byte("x")) }},
		"wrong end":       {sandbox.KindProtocol, func(f *fake, id uint32) { f.send(AppendMark(nil, TypeEnd, id, TypeStdout, 9)) }},
		"data after the end": {sandbox.KindProtocol, func(f *fake, id uint32) {
			f.send(AppendMark(nil, TypeEnd, id, TypeStdout, 0))
			f.data(TypeStdout, id, 0, []byte("x"))
		}},
		"two exits":       {sandbox.KindProtocol, func(f *fake, id uint32) { e := Exit{Reason: "done"}; f.json(TypeExit, id, e); f.json(TypeExit, id, e) }},
		"too much credit": {sandbox.KindProtocol, func(f *fake, id uint32) { f.send(AppendMark(nil, TypeWindow, id, TypeStdin, 1<<40)) }},
		"flood of strays": {sandbox.KindProtocol, func(f *fake, id uint32) {
			for range 100 {
				f.json(TypeReply, id, Reply{More: true, File: &FileInfo{Path: strings.Repeat("x", 2000)}})
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, f := open(t, Config{})
			p := started(t, s, f)
			go io.Copy(io.Discard, f.conn)
			go c.do(f, p.ID())
			ends(t, s, c.kind)
			if _, err := p.Wait(short(t)); err != nil && sandbox.KindOf(err) != c.kind {
				t.Errorf("wait: %v", err)
			}
		})
	}
}

// TestGuestNeverReads: every call obeys its context.
func TestGuestNeverReads(t *testing.T) {
	s, _ := open(t, Config{Liveness: time.Minute})
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	for i := range 20 {
		if err := s.Ping(ctx); sandbox.KindOf(err) != sandbox.KindTimeout {
			t.Fatalf("%d: %v", i, err)
		}
		if _, err := s.WriteFile(ctx, "f", io.LimitReader(zeros{}, 10<<20), WriteOptions{}); sandbox.KindOf(err) != sandbox.KindTimeout {
			t.Fatalf("%d: %v", i, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestStallsMidFrame: a guest that stops in the middle of a frame is found out.
func TestStallsMidFrame(t *testing.T) {
	s, f := open(t, Config{Liveness: 200 * time.Millisecond})
	p := started(t, s, f)
	go io.Copy(io.Discard, f.conn)
	f.send(golden()[9].frame[:20])
	if _, err := p.Wait(short(t)); sandbox.KindOf(err) != sandbox.KindTimeout {
		t.Errorf("%v", err)
	}
	ends(t, s, sandbox.KindTimeout)
}

// TestForgedAck: bytes of user code that look like the end of a handshake mean
// nothing without this connection's nonce.
func TestForgedAck(t *testing.T) {
	host, conn := net.Pipe()
	f := &fake{t: t, conn: conn, d: NewDecoder(conn, Guest)}
	defer conn.Close()
	forged := string(golden()[1].frame) + string(golden()[3].frame)
	half := string(golden()[9].frame[:18])
	go f.shake(strings.Repeat(forged, 3) + half + forged + half)
	s, err := Open(short(t), host, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Agent().Version; got != "fake[2J" {
		t.Errorf("version %q", got)
	}
	s.Close()
}

func TestOpenFails(t *testing.T) {
	before := runtime.NumGoroutine()
	for name, c := range map[string]struct {
		kind  sandbox.Kind
		guest func(f *fake)
	}{
		"silent": {sandbox.KindTimeout, func(f *fake) { io.Copy(io.Discard, f.conn) }},
		"deaf":   {sandbox.KindTimeout, func(f *fake) {}},
		"gone":   {sandbox.KindUnavailable, func(f *fake) { f.conn.Close() }},
		"acks only others": {sandbox.KindTimeout, func(f *fake) {
			go io.Copy(io.Discard, f.conn)
			for range 100 {
				f.send(golden()[1].frame)
			}
		}},
		"another protocol": {sandbox.KindUnsupported, func(f *fake) {
			p, _ := f.d.Hunt(TypeReset, func([]byte) bool { return true })
			f.send(AppendFrame(nil, TypeResetAck, 0, append(p[:NonceSize:NonceSize], make([]byte, 24)...)))
			f.next()
			f.json(TypeHello, 0, Hello{Protocol: 2})
		}},
		"no hello": {sandbox.KindProtocol, func(f *fake) {
			p, _ := f.d.Hunt(TypeReset, func([]byte) bool { return true })
			f.send(AppendFrame(nil, TypeResetAck, 0, append(p[:NonceSize:NonceSize], make([]byte, 24)...)))
			f.next()
			f.json(TypeExit, 1, Exit{})
		}},
	} {
		host, conn := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); c.guest(&fake{t: t, conn: conn, d: NewDecoder(conn, Guest)}) }()
		ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
		_, err := Open(ctx, host, Config{})
		if sandbox.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
		cancel()
		conn.Close()
		<-done
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// TestGuestLiesAboutFiles: sizes and listings are checked.
func TestGuestLiesAboutFiles(t *testing.T) {
	s, f := open(t, Config{})
	go func() {
		h, _ := f.next()
		f.json(TypeReply, h.Stream, Reply{File: &FileInfo{Size: 3}})
		f.data(TypeFile, h.Stream, 0, []byte("much more than was asked for"))
		for {
			if h, _ := f.next(); h.Type == 0 || h.Type == TypeCall {
				f.json(TypeReply, h.Stream, Reply{})
				f.data(TypeFile, h.Stream, 0, []byte(`{"path":"a"}{"path":`))
				f.send(AppendMark(nil, TypeEnd, h.Stream, TypeFile, 20))
				return
			}
		}
	}()
	r, err := s.ReadFile(short(t), "f", ReadOptions{Length: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); sandbox.KindOf(err) != sandbox.KindProtocol {
		t.Errorf("more than asked for: %v", err)
	}
	if _, _, err := s.List(short(t), "d", ListOptions{}); sandbox.KindOf(err) != sandbox.KindProtocol {
		t.Errorf("bad listing: %v", err)
	}
}

// TestErrorKinds: a guest may not claim what is not its to say.
func TestErrorKinds(t *testing.T) {
	for claimed, want := range map[sandbox.Kind]sandbox.Kind{
		sandbox.KindNotFound: sandbox.KindNotFound, sandbox.KindUnauthenticated: sandbox.KindProtocol, "nonsense": sandbox.KindProtocol,
	} {
		s, f := open(t, Config{})
		go func() {
			h, _ := f.next()
			f.json(TypeReply, h.Stream, Reply{Error: &WireError{Kind: claimed, Message: "evil\x1b[2J" + strings.Repeat("x", 5000)}})
		}()
		err := s.Ping(short(t))
		if sandbox.KindOf(err) != want || strings.ContainsRune(err.Error(), 0x1b) || len(err.Error()) > 1200 {
			t.Errorf("%s: %.100q", claimed, err.Error())
		}
	}
}

// TestIdleMemory: a hundred idle sessions fit the daemon's budget.
func TestIdleMemory(t *testing.T) {
	const n = 50
	measure := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := measure()
	for range n {
		open(t, Config{}) // the fake's end counts too, so this is an upper bound
	}
	if each := int64(measure()-before) / n; each > 100<<10 {
		t.Errorf("%d KiB for each session", each>>10)
	} else {
		t.Logf("%d KiB for each session and its fake guest", each>>10)
	}
}

// An agent that knows no terminals is not asked for one: it would start the
// program without, or not know what to do.
func TestOldAgent(t *testing.T) {
	s, f := open(t, Config{})
	if _, err := s.Exec(short(t), Command{Argv: []string{"x"}, PTY: &Size{80, 24}}); sandbox.KindOf(err) != sandbox.KindUnsupported {
		t.Errorf("exec: %v", err)
	}
	if err := s.Resize(short(t), 1, Size{80, 24}); sandbox.KindOf(err) != sandbox.KindUnsupported {
		t.Errorf("resize: %v", err)
	}
	if p := started(t, s, f); p.ID() != 1 {
		t.Errorf("something was asked before: the first call is %d", p.ID())
	}
}
