//go:build linux

package internet

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestPrograms: what people use works on the host, so that where it does not in a
// sandbox, the sandbox is why.
func TestPrograms(t *testing.T) {
	n := New(t)
	programs, err := n.Programs()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		t.Run(p.Name, func(t *testing.T) {
			dir := t.TempDir()
			if p.Wheels {
				if err := os.Symlink(Wheels(t, "../../bin/network-clients"), filepath.Join(dir, "wheels")); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "sh", "-c", p.Script)
			cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
			for _, env := range []map[string]string{p.Env, n.Authority.Trust(n.Authority.File)} {
				for k, v := range env {
					cmd.Env = append(cmd.Env, k+"="+v)
				}
			}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := n.Run(cmd); err != nil || !regexp.MustCompile(p.Prints).MatchString(out.String()) {
				t.Errorf("%v: %q, want %s", err, out.String(), p.Prints)
			}
		})
	}
}

// TestUpstreams: hostile servers do what they are for, and count it.
func TestUpstreams(t *testing.T) {
	n := New(t)
	c := client(t, n)
	c.Transport.(*http.Transport).DisableCompression, c.Transport.(*http.Transport).MaxResponseHeaderBytes = true, 1<<20
	flood, bomb, fields, trickle, silent := Flood(8<<20), Bomb(), Headers(100_000), Trickle(time.Millisecond), Silent()
	n.Site("flood.example", flood)
	n.Site("bomb.example", bomb)
	n.Site("headers.example", fields)
	n.Site("trickle.example", trickle)
	n.Site("silent.example", silent)
	n.Site("moved.example", Redirect("http://169.254.169.254/latest/"))
	if _, body, _ := get(t, c, "https://flood.example/"); len(body) != 8<<20 || flood.Taken() != 8<<20 {
		t.Errorf("%d bytes of flood, it counts %d", len(body), flood.Taken())
	}
	if _, body, _ := get(t, c, "https://bomb.example/"); len(body) < 1<<19 || len(body) > 4<<20 {
		t.Errorf("a bomb of %d bytes", len(body))
	}
	if _, err := c.Get("http://headers.example/"); err == nil || fields.Taken() < 1<<20 {
		t.Errorf("a client took 100000 fields: %v; %d bytes", err, fields.Taken())
	}
	if _, body, _ := get(t, c, "http://moved.example/"); !strings.Contains(body, "metadata-secret") {
		t.Errorf("redirected to %q", body)
	}
	for _, name := range []string{"trickle.example", "silent.example"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+name, nil)
		if resp, err := c.Do(req); err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil {
				t.Errorf("%s came to an end", name)
			}
		}
		cancel()
	}
	for end := time.Now().Add(30 * time.Second); trickle.Ended() == 0 || silent.Ended() == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a server does not notice that its client went")
		}
	}
}

// ask sends a question from the host to an address.
func ask(t *testing.T, n *Internet, network, to, name string, kind dnsmessage.Type) (*dnsmessage.Message, error) {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 9, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name + "."), Type: kind, Class: dnsmessage.ClassINET}}}
	q, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := n.dial(t.Context(), network, to)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if network == "tcp" {
		q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	}
	if _, err := conn.Write(q); err != nil {
		return nil, err
	}
	buf := make([]byte, 4096)
	size, err := conn.Read(buf)
	if err != nil {
		return nil, err
	}
	if buf = buf[:size]; network == "tcp" {
		buf = buf[2:]
	}
	var out dnsmessage.Message
	return &out, out.Unpack(buf)
}

// TestNames: every query is answered, whatever the address and the transport, and
// kept; answers change as the test says.
func TestNames(t *testing.T) {
	n := New(t)
	n.Names.Set("*.tunnel.example", "txt:answer", "5.5.5.5")
	n.Names.Set("alias.example", "cname:mixed.example")
	n.Names.Set("mixed.example", "1.2.3.4", "127.0.0.1", "2606:4700::1")
	n.Names.Turns("turn.example", []string{"1.2.3.4"}, []string{"127.0.0.1"})
	for _, c := range []struct {
		network, to, name string
		kind              dnsmessage.Type
		answers           int
	}{
		{"udp", "8.8.8.8:53", "a.b.tunnel.example", dnsmessage.TypeTXT, 1},
		{"tcp", "9.9.9.9:53", "c.tunnel.example", dnsmessage.TypeA, 1},
		{"udp", "[2001:4860:4860::8888]:53", "d.tunnel.example", dnsmessage.Type(10), 0},
		{"udp", "1.1.1.1:53", "alias.example", dnsmessage.TypeA, 3},
		{"udp", "1.1.1.1:53", "mixed.example", dnsmessage.TypeAAAA, 1},
	} {
		m, err := ask(t, n, c.network, c.to, c.name, c.kind)
		if err != nil || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != c.answers {
			t.Errorf("%s at %s: %v %+v", c.name, c.to, err, m)
		}
	}
	if m, err := ask(t, n, "udp", "8.8.8.8:53", "nobody.example", dnsmessage.TypeA); err != nil || m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("a name that nobody set: %v %+v", err, m)
	}
	for _, want := range []string{"1.2.3.4", "127.0.0.1", "127.0.0.1"} {
		got, err := n.Lookup(t.Context(), "turn.example")
		if err != nil || len(got) != 1 || got[0] != netip.MustParseAddr(want) {
			t.Errorf("turn.example is %v, %v; want %s", got, err, want)
		}
	}
	var asked []string
	for _, q := range n.Names.Asked("tunnel.example") {
		asked = append(asked, q.Transport+" "+q.Type+" "+q.Name)
	}
	if got := strings.Join(asked, ", "); got != "udp TXT a.b.tunnel.example, tcp A c.tunnel.example, udp 10 d.tunnel.example" {
		t.Errorf("asked: %s", got)
	}
}

// TestNameServerOfItsOwn: a machine may have its name server on loopback, where no
// packet passes the link.
func TestNameServerOfItsOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: network namespaces need root")
	}
	n, err := open([]netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("::1")})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.Names.Set("api.example", "1.2.3.4")
	before := n.Sink.Counts(t)
	for _, c := range [][2]string{{"udp", "127.0.0.53:53"}, {"tcp", "127.0.0.53:53"}, {"udp", "[::1]:53"}, {"tcp", "[::1]:53"}} {
		if m, err := ask(t, n, c[0], c[1], "api.example", dnsmessage.TypeA); err != nil || len(m.Answers) != 1 {
			t.Errorf("%v: %v %+v", c, err, m)
		}
	}
	if got := len(n.Names.Asked("api.example")); got != 4 || n.Sink.Counts(t).Since(before).Total().Packets != 0 {
		t.Errorf("%d questions, and outside %v", got, n.Sink.Counts(t).Since(before))
	}
}
