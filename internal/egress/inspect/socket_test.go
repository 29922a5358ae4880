package inspect

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

const knock = "GET /chat HTTP/1.1\r\nHost: good.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
	"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat, other\r\n"

// upgrade answers a knock as a server does, and hands out the connection.
func upgrade(t testing.TB, w http.ResponseWriter, r *http.Request, headers ...string) (net.Conn, *bufio.ReadWriter) {
	if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Key") == "dGhlIHNhbXBsZSBub25jZQ==" || r.Header["Sec-Websocket-Extensions"] != nil {
		t.Errorf("%v", r.Header)
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		panic(http.ErrAbortHandler)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n", accepts(r.Header.Get("Sec-WebSocket-Key")))
	for i := 0; i < len(headers); i += 2 {
		fmt.Fprintf(rw, "%s: %s\r\n", headers[i], headers[i+1])
	}
	_, _ = rw.WriteString("\r\n")
	_ = rw.Flush()
	return c, rw
}

// wire is a frame as it is sent.
func wireFrame(op byte, last, masked bool, payload string) []byte {
	var b bytes.Buffer
	w := &frames{masked: masked, out: bufio.NewWriter(&b)}
	_ = w.write(op, last, []byte(payload))
	return b.Bytes()
}

// readMessage reads a message or a control frame.
func readMessage(in *bufio.Reader, masked bool) (op byte, payload []byte, pieces int, err error) {
	for {
		f, err := readFrame(in, masked)
		if err != nil {
			return 0, nil, 0, err
		}
		b := make([]byte, f.size)
		if _, err := io.ReadFull(in, b); err != nil {
			return 0, nil, 0, err
		}
		f.unmask(b, 0)
		if f.control() {
			return f.op, b, 1, nil
		}
		if payload = append(payload, b...); f.op != opMore {
			op = f.op
		}
		if pieces++; f.last {
			return op, payload, pieces, nil
		}
	}
}

// opened knocks, and returns the connection and what is read from it.
func (h *house) opened() (net.Conn, *bufio.Reader) {
	h.Helper()
	c := h.dial("http/1.1")
	_, _ = io.WriteString(c, knock+"\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || resp.Header["Sec-Websocket-Extensions"] != nil {
		h.Fatal(resp, err)
	}
	return c, in
}

// TestSocket: messages arrive as they were said, both ways, whatever pieces they
// are in; pings pass, and a close ends it.
func TestSocket(t *testing.T) {
	h := newHouse(t, furniture{}, func(w http.ResponseWriter, r *http.Request) {
		c, rw := upgrade(t, w, r, "Sec-WebSocket-Protocol", "chat")
		defer c.Close()
		out := &frames{out: rw.Writer}
		for {
			op, b, _, err := readMessage(rw.Reader, true)
			if err != nil {
				t.Error(err)
				return
			}
			if err := out.write(max(op, opText), true, b); err != nil || op == opClose {
				return
			}
		}
	})
	c, in := h.opened()
	long := strings.Repeat("lang", 200_000)
	for _, s := range []struct {
		say  [][]byte
		op   byte
		want string
	}{
		{[][]byte{wireFrame(opText, true, true, "hello")}, opText, "hello"},
		{[][]byte{wireFrame(opBinary, true, true, "")}, opBinary, ""},
		{[][]byte{wireFrame(opBinary, true, true, long)}, opBinary, long},
		{[][]byte{wireFrame(opText, false, true, "hel"), wireFrame(opMore, false, true, ""), wireFrame(opMore, true, true, "lo")}, opText, "hello"},
		{[][]byte{wireFrame(opPing, true, true, "ping")}, opPing, "ping"},
		{[][]byte{wireFrame(opPong, true, true, "")}, opPong, ""},
	} {
		for _, b := range s.say {
			_, _ = c.Write(b)
		}
		if op, b, _, err := readMessage(in, false); err != nil || op != s.op || string(b) != s.want {
			t.Fatalf("%d %d bytes, %v", op, len(b), err)
		}
	}
	// A ping within a message comes before the rest of it.
	_, _ = c.Write(wireFrame(opText, false, true, "a"))
	_, _ = c.Write(wireFrame(opPing, true, true, "now"))
	if op, b, _, err := readMessage(in, false); err != nil || op != opPing || string(b) != "now" {
		t.Errorf("%d %q %v", op, b, err)
	}
	_, _ = c.Write(wireFrame(opMore, true, true, "b"))
	if op, b, _, err := readMessage(in, false); err != nil || op != opText || string(b) != "ab" && string(b) != "b" {
		t.Errorf("%d %q %v", op, b, err)
	}
	_, _ = c.Write(wireFrame(opClose, true, true, "\x03\xe8bye"))
	if op, b, _, err := readMessage(in, false); err != nil || op != opClose || string(b) != "\x03\xe8bye" {
		t.Errorf("%d %q %v", op, b, err)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("it goes on: %v", err)
	}
	if h.decided.Load() != 1 || len(h.refused) != 0 {
		t.Errorf("%d decisions, %q", h.decided.Load(), h.refused)
	}
}

// TestSocketFrames: what RFC 6455 has not is no frame, is not passed on, and closes
// the connection with its code.
func TestSocketFrames(t *testing.T) {
	got := make(chan []byte, 100)
	h := newHouse(t, furniture{plain: true}, func(w http.ResponseWriter, r *http.Request) {
		c, rw := upgrade(t, w, r)
		defer c.Close()
		_, b, _, err := readMessage(rw.Reader, true)
		if err == nil && len(b) >= 2 && (binary.BigEndian.Uint16(b) == codeProtocol || binary.BigEndian.Uint16(b) == codeTooBig) {
			b = nil
		}
		got <- b
	})
	huge := append([]byte{0x82, 0xff}, binary.BigEndian.AppendUint64(nil, 1<<40)...)
	for name, b := range map[string][]byte{
		"not masked":       wireFrame(opText, true, false, "hello"),
		"compressed":       append([]byte{0xc1}, wireFrame(opText, true, true, "hello")[1:]...),
		"reserved bit":     append([]byte{0xa1}, wireFrame(opText, true, true, "hello")[1:]...),
		"no kind":          append([]byte{0x83}, wireFrame(opText, true, true, "hello")[1:]...),
		"control, no kind": append([]byte{0x8b}, wireFrame(opText, true, true, "hello")[1:]...),
		"ping in pieces":   wireFrame(opPing, false, true, "hello"),
		"a long ping":      wireFrame(opPing, true, true, strings.Repeat("x", 126)),
		"more of nothing":  wireFrame(opMore, true, true, "hello"),
		"text within text": append(wireFrame(opText, false, true, ""), wireFrame(opText, true, true, "hello")...),
		"half a code":      wireFrame(opClose, true, true, "\x03"),
		"a long length":    append([]byte{0x81, 0xfe, 0, 5, 1, 2, 3, 4}, "hello"...),
		"a longer length":  append([]byte{0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4}, "hello"...),
		"a negative one":   append([]byte{0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4}, "hello"...),
		"huge":             append(huge, 1, 2, 3, 4),
	} {
		c, in := h.opened()
		_, _ = c.Write(b)
		want := uint16(codeProtocol)
		if name == "huge" {
			want = codeTooBig
		}
		op, payload, _, err := readMessage(in, false)
		if err != nil || op != opClose || len(payload) < 2 || binary.BigEndian.Uint16(payload) != want {
			t.Errorf("%s: %d %q %v", name, op, payload, err)
		}
		if b := <-got; len(b) > 0 {
			t.Errorf("%s: the host got %q", name, b)
		}
		h.told("GET request")
		c.Close()
	}
}

// TestSocketOpens: only what is a handshake opens one, and only an answer to it.
func TestSocketOpens(t *testing.T) {
	answers := map[string]string{
		"/accept":    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
		"/extension": "", "/protocol": "",
		"/upgrade": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
	}
	h := newHouse(t, furniture{plain: true}, func(w http.ResponseWriter, r *http.Request) {
		switch a := answers[r.URL.Path]; {
		case r.URL.Path == "/extension":
			c, _ := upgrade(t, w, r, "Sec-WebSocket-Extensions", "permessage-deflate")
			c.Close()
		case r.URL.Path == "/protocol":
			c, _ := upgrade(t, w, r, "Sec-WebSocket-Protocol", "nobody's")
			c.Close()
		case a != "":
			c, rw, _ := http.NewResponseController(w).Hijack()
			_, _ = rw.WriteString(a)
			_ = rw.Flush()
			c.Close()
		default:
			http.Error(w, "who are you", http.StatusUnauthorized)
		}
	})
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"refused":           {knock, 401},
		"another's answer":  {strings.Replace(knock, "/chat", "/accept", 1), 502},
		"an extension":      {strings.Replace(knock, "/chat", "/extension", 1), 502},
		"a protocol":        {strings.Replace(knock, "/chat", "/protocol", 1), 502},
		"another upgrade":   {strings.Replace(knock, "/chat", "/upgrade", 1), 502},
		"no key":            {strings.Replace(knock, "Sec-WebSocket-Key", "X-Key", 1), 400},
		"a short key":       {strings.Replace(knock, "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", 1), 400},
		"another version":   {strings.Replace(knock, "Version: 13", "Version: 8", 1), 400},
		"without asking":    {strings.Replace(knock, "keep-alive, Upgrade", "keep-alive", 1), 400},
		"another method":    {strings.Replace(knock, "GET", "POST", 1), 400},
		"with a body":       {knock + "Content-Length: 5\r\n", 400},
		"HTTP/1.0":          {strings.Replace(knock, "HTTP/1.1", "HTTP/1.0", 1), 501},
		"h2c":               {strings.Replace(knock, "Upgrade: websocket", "Upgrade: h2c", 1), 501},
		"two":               {knock + "Upgrade: h2c\r\n", 400},
		"a list of them":    {strings.Replace(knock, "Upgrade: websocket", "Upgrade: websocket, h2c", 1), 501},
		"chunked":           {knock + "Transfer-Encoding: chunked\r\n", 501},
		"to somebody else":  {strings.Replace(knock, "good.example", "other.example", 1), 421},
		"not by the policy": {knock, 403},
	} {
		h.no.Store(nil)
		if name == "not by the policy" {
			h.no.Store(&Refusal{Status: 403, Reason: "path", Text: "no"})
		}
		before := h.requests.Load()
		s := h.dial()
		_, _ = io.WriteString(s, c.text+"\r\nhello")
		resp, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil || resp.StatusCode != c.want {
			t.Errorf("%s: %v %v, want %d", name, resp, err, c.want)
		}
		if passed := c.want == 401 || c.want == 502; passed != (h.requests.Load() > before) {
			t.Errorf("%s: passed %v", name, !passed)
		}
		s.Close()
	}
}

// TestSocketSecrets: a secret in a message, in whatever pieces, goes nowhere and
// closes the connection; one that a host says becomes stars.
func TestSocketSecrets(t *testing.T) {
	got := make(chan string, 100)
	h := newHouse(t, furniture{plain: true, targets: []*Target{{Name: "api", Host: hostOf(t, "api.example"), Port: 443, Path: "/", As: "bearer", Secret: []byte(secret)}}},
		func(w http.ResponseWriter, r *http.Request) {
			c, rw := upgrade(t, w, r)
			defer c.Close()
			_, _ = rw.Write(append(wireFrame(opText, false, false, "it is "+secret[:7]), wireFrame(opMore, true, false, secret[7:]+" now")...))
			_, _ = rw.Write(wireFrame(opPing, true, false, secret))
			_ = rw.Flush()
			all := ""
			for {
				op, b, _, err := readMessage(rw.Reader, true)
				if err != nil || op == opClose {
					break
				}
				all += string(b)
			}
			got <- all
		})
	for name, say := range map[string][]byte{
		"whole":     wireFrame(opText, true, true, "hello "+secret),
		"in pieces": append(append(wireFrame(opBinary, false, true, "hello "+secret[:5]), wireFrame(opMore, false, true, secret[5:9])...), wireFrame(opMore, true, true, secret[9:])...),
		"round a ping": append(append(wireFrame(opText, false, true, "hello "+secret[:9]), wireFrame(opPing, true, true, "")...),
			wireFrame(opMore, true, true, secret[9:])...),
		"ping":  wireFrame(opPing, true, true, secret),
		"close": wireFrame(opClose, true, true, "\x03\xe8"+secret),
	} {
		c, in := h.opened()
		stars := strings.Repeat("*", len(secret))
		if op, b, _, err := readMessage(in, false); err != nil || op != opText || string(b) != "it is "+stars+" now" {
			t.Errorf("%s: %d %q %v", name, op, b, err)
		}
		if op, b, _, err := readMessage(in, false); err != nil || op != opPing || string(b) != stars {
			t.Errorf("%s: %d %q %v", name, op, b, err)
		}
		_, _ = c.Write(say)
		for {
			op, b, _, err := readMessage(in, false)
			if err != nil || op == opClose {
				if err != nil || len(b) < 2 || binary.BigEndian.Uint16(b) != codePolicy {
					t.Errorf("%s: %d %q %v", name, op, b, err)
				}
				break
			}
		}
		if all := <-got; strings.Contains(all, secret[:9]) && name != "round a ping" || strings.Contains(all, secret) {
			t.Errorf("%s: the host got %q", name, all)
		}
		h.told("GET leak")
		c.Close()
	}
}

// FuzzSocket: whatever comes as frames, what goes on is frames of the same messages.
func FuzzSocket(f *testing.F) {
	f.Add(wireFrame(opText, true, true, "hello"), uint64(1))
	f.Add(append(wireFrame(opText, false, true, "a"), append(wireFrame(opPing, true, true, "b"), wireFrame(opMore, true, true, "c")...)...), uint64(2))
	f.Add(append(wireFrame(opBinary, true, true, strings.Repeat("x", 300)), wireFrame(opClose, true, true, "\x03\xe8")...), uint64(3))
	f.Add([]byte{0x81, 0xfe, 0, 5, 1, 2, 3, 4}, uint64(4))
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		type said struct {
			op byte
			b  string
		}
		messages := func(in *bufio.Reader, masked bool) (list []said, err error) {
			var data []byte
			kind, open := byte(0), false
			for {
				x, err := readFrame(in, masked)
				if err != nil {
					return list, err
				}
				p, err := io.ReadAll(io.LimitReader(in, x.size))
				if err != nil || int64(len(p)) < x.size {
					return list, io.ErrUnexpectedEOF
				}
				x.unmask(p, 0)
				switch {
				case x.control() && x.op == opClose && len(p) == 1, !x.control() && open != (x.op == opMore):
					return list, io.ErrUnexpectedEOF
				case x.control():
					list = append(list, said{x.op, string(p)})
					if x.op == opClose {
						return list, nil
					}
					continue
				case x.op != opMore:
					kind, data = x.op, nil
				}
				data, open = append(data, p...), !x.last
				if x.last {
					list = append(list, said{kind, string(data)})
				}
			}
		}
		want, wantErr := messages(bufio.NewReader(bytes.NewReader(b)), true)
		var out bytes.Buffer
		secrets := newSecrets(nil)
		if seed%2 == 1 {
			secrets = newSecrets([][]byte{[]byte("a-secret-that-is-nowhere")})
		}
		l := &lane{in: bufio.NewReader(&pieces{b, rand.New(rand.NewPCG(seed, 0))}), masked: true, out: &frames{out: bufio.NewWriter(&out)}, secrets: secrets, redacts: true, alive: func() {}}
		err := l.run()
		got, gotErr := messages(bufio.NewReader(&out), false)
		if (err == nil) != (wantErr == nil) || fmt.Sprint(got) != fmt.Sprint(want) || err == nil && gotErr != nil {
			t.Errorf("%x (%v) became %q (%v), want %q (%v)", b, err, got, gotErr, want, wantErr)
		}
		var wrong *frameError
		if errors.As(wantErr, &wrong) != errors.As(err, &wrong) && wrong != nil && wantErr != io.ErrUnexpectedEOF {
			t.Errorf("%x: %v, want %v", b, err, wantErr)
		}
	})
}
