//go:build linux

package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

func TestLook(t *testing.T) {
	good := hello(t, &tls.Config{ServerName: "good.example"})
	split := good[:1] + "\x03\x01\x00\x10" + good[5:21] + good[:1] + "\x03\x01" + string([]byte{byte((len(good) - 21) >> 8), byte(len(good) - 21)}) + good[21:]
	for _, c := range []struct {
		say, protocol, claimed string
	}{
		{"", "", ""},
		{"G", "", ""},
		{"GET", "", ""},
		{"GET /", "", ""},
		{"GET / HTTP/1.1\r\nHost: good", "", ""},
		{"GET / HTTP/1.1\r\nHost: good.example\r\n", "", ""},
		{"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", "good.example"},
		{"get / HTTP/1.0\r\nhOsT:good.example:8080\r\nX: y\r\n\r\nbody", "http", "good.example"},
		{"OPTIONS * HTTP/1.1\r\nHost: GOOD.example.\r\n\r\n", "http", "good.example"},
		{"GET http://good.example/x HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", "good.example"},
		{"GET http://good.example:8080?x HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", "good.example"},
		{"GET http://bad.example/x HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET https://good.example/x HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET http://a@good.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET //bad.example/ HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", "good.example"},
		{"CONNECT good.example:8080 HTTP/1.1\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nHost: good.example\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nHost : good.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nX: y\r\n Host: bad.example\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nX: y\nHost: bad.example\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nX: y\x00\r\nHost: good.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nHost: good.example,bad.example\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nHost: good.example:80\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", "http", ""},
		{"GET / HTTP/1.1\nHost: good.example\n\n", "tcp", ""},
		{"GET  / HTTP/1.1\r\nHost: good.example\r\n\r\n", "tcp", ""},
		{"GET / HTTP/1.2\r\nHost: good.example\r\n\r\n", "tcp", ""},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "tcp", ""},
		{"SSH-2.0-OpenSSH\r\n", "tcp", ""},
		{"EHLO me\r\n", "tcp", ""},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", "tcp", ""},
		{strings.Repeat("a", 24), "tcp", ""},
		{"GET /" + strings.Repeat("a", maxSniff), "tcp", ""},
		{"GET / HTTP/1.1\r\nX: " + strings.Repeat("a", maxSniff), "http", ""},
		{good, "tls", "good.example"},
		{good + "more", "tls", "good.example"},
		{split, "tls", "good.example"},
		{good[:1], "", ""}, {good[:4], "", ""}, {good[:40], "", ""}, {good[:len(good)-1], "", ""}, {split[:len(split)-1], "", ""},
		{hello(t, &tls.Config{InsecureSkipVerify: true}), "tls", ""},
		{hello(t, &tls.Config{ServerName: "10.0.0.1"}), "tls", ""},
		{"\x16\x04\x01\x00\x05", "tcp", ""},
		{"\x16\x03\x01\x00\x00", "tcp", ""},
		{"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "tcp", ""}, // a ServerHello
		{"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "tcp", ""}, // an empty one
		{"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "tcp", ""},
	} {
		p, claimed, done := look([]byte(c.say), 8080)
		if done != (c.protocol != "") || done && p.String() != c.protocol || claimed.String() != c.claimed {
			t.Errorf("%.60q: %s %q %t, want %s %q", c.say, p, claimed, done, c.protocol, c.claimed)
		}
	}
	hidden := append([]byte(nil), good...) // an extension becomes ECH's
	i := bytes.Index(hidden, []byte{0x00, 0x0b, 0x00, 0x02, 0x01, 0x00})
	if i < 0 {
		t.Fatal("the hello has no point formats")
	}
	hidden[i], hidden[i+1] = 0xfe, 0x0d
	if p, claimed, done := look(hidden, 443); p != policy.ProtocolTLS || claimed.IsValid() || !done {
		t.Error("what hides whom it is for claims ", claimed)
	}
}

// FuzzLook: nothing panics; more bytes never change what was said; what we take
// for TLS or HTTP with a claim, Go's own server reads the same way.
func FuzzLook(f *testing.F) {
	f.Add([]byte(hello(f, &tls.Config{ServerName: "good.example"})))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"))
	f.Add([]byte("POST http://good.example:8080/x HTTP/1.0\r\nA: b\r\nhost: good.example:8080\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, claimed, done := look(b, 8080)
		if !done {
			if len(b) >= maxSniff {
				t.Fatal("it wants more for ever")
			}
			return
		}
		if q, again, ok := look(append(b[:len(b):len(b)], 'x'), 8080); len(b) < maxSniff && (q != p || again != claimed || !ok) {
			t.Fatalf("%s %s and then %s %s", p, claimed, q, again)
		}
		if !claimed.IsValid() {
			return
		}
		switch p {
		case policy.ProtocolTLS:
			if name, ok := readByTLS(b); ok && !same(name, claimed) {
				t.Fatalf("%q, and crypto/tls reads %q", claimed, name)
			} else if !ok {
				t.Skip("crypto/tls is stricter") // about what does not matter here, such as versions
			}
		case policy.ProtocolHTTP:
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
			if err == nil && !same(strings.TrimSuffix(r.Host, ":8080"), claimed) {
				t.Fatalf("%q, and net/http reads %q", claimed, r.Host)
			}
		default:
			t.Fatalf("%s claims %s", p, claimed)
		}
	})
}

func same(name string, h netaddr.Host) bool {
	got, err := netaddr.ParseHost(name)
	return err == nil && got == h
}

type said struct {
	net.Conn
	r io.Reader
}

func (s said) Read(b []byte) (int, error)         { return s.r.Read(b) }
func (s said) Write(b []byte) (int, error)        { return len(b), nil }
func (s said) SetDeadline(time.Time) error        { return nil }
func (s said) SetWriteDeadline(t time.Time) error { return nil }

// readByTLS is the name a server in Go takes a hello to be for.
func readByTLS(b []byte) (name string, ok bool) {
	stop := errors.New("enough")
	_ = tls.Server(said{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, ok = h.ServerName, true
		return nil, stop
	}}).Handshake()
	return name, ok
}
