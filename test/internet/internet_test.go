//go:build linux

package internet

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// get asks a plain client on the host for a page.
func get(t *testing.T, c *http.Client, url string) (status int, body string, proto string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return 0, "", ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s: %v", url, err)
	}
	return resp.StatusCode, string(b), resp.Proto
}

// client is a plain client on the host.
func client(t *testing.T, n *Internet) *http.Client {
	tr := n.Transport()
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// TestEverythingAnswers: whatever a plain client on the host asks for, it reaches;
// so that what it does not reach from inside a sandbox is the sandbox's doing.
func TestEverythingAnswers(t *testing.T) {
	n := New(t)
	c := client(t, n)
	site := n.Site("api.example", Reached)
	for url, want := range map[string]string{
		"http://api.example/":            "reached " + site.String() + " by HTTP/1.1 for api.example",
		"https://api.example/":           "reached " + site.String() + " by HTTP/2.0 for api.example",
		"https://api.example:8443/":      "by HTTP/2.0",
		"http://93.184.216.34:8080/":     "reached 93.184.216.34",
		"https://93.184.216.34/":         "reached 93.184.216.34",
		"http://[2606:4700::1111]/":      "reached 2606:4700::1111",
		"http://169.254.169.254/latest/": "metadata-secret-of-the-host",
		"http://[fd00:ec2::254]/":        "metadata-secret-of-the-host",
		"http://10.1.2.3/":               "reached 10.1.2.3",
		"http://127.0.0.1/":              "secret of the host",
		"http://10.77.0.2/":              "secret of the host",
	} {
		if status, body, _ := get(t, c, url); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q, want %q", url, status, body, want)
		}
	}
	for at, want := range map[string]string{"5.6.7.8:7": "ping", "5.6.7.8:21": "220 reached", "5.6.7.8:22": "reached 5.6.7.8:22", "[2001:4860::8]:9000": "reached [2001:4860::8]:9000"} {
		conn, err := n.Dial(t.Context(), "tcp", at)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		_, _ = conn.Write([]byte("ping"))
		b := make([]byte, 100)
		size, err := conn.Read(b)
		if !strings.HasPrefix(string(b[:size]), want) {
			t.Errorf("%s: %q, %v, want %q", at, b[:size], err, want)
		}
		conn.Close()
	}
	if got := n.Requests(site); len(got) != 3 || got[0].Host == "" {
		t.Errorf("the requests are %+v", got)
	}
	if got := n.Starts(site); len(got) != 2 || got[0].Name != "api.example" {
		t.Errorf("the starts of TLS were for %+v", got)
	}
	if got := n.Local.Connections(); got != 2 {
		t.Errorf("%d connections to the host itself, want 2: %v", got, n.Local)
	}
}

// TestSink: what is sent is counted, where it went and how much it was; what is
// not sent is not.
func TestSink(t *testing.T) {
	n := New(t)
	before := n.Sink.Counts(t)
	if total := before.Total(); total.Packets != 0 {
		t.Errorf("it began with %v", before)
	}
	time.Sleep(200 * time.Millisecond)
	if total := n.Sink.Counts(t).Total(); total.Packets != 0 {
		t.Errorf("nobody sent anything, but there is %v", n.Sink.Counts(t))
	}
	send := func(network, to, text string) {
		t.Helper()
		conn, err := n.dial(t.Context(), network, to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	send("udp", "203.0.113.9:4321", strings.Repeat("x", 1000))
	send("udp", "[2606:4700::9]:4321", strings.Repeat("x", 1000))
	got := n.Sink.Counts(t).Since(before)
	for to, want := range map[string]Count{"203.0.113.9:4321": {1, 1028}, "[2606:4700::9]:4321": {1, 1048}} {
		if c := got[Flow{"udp", netip.MustParseAddrPort(to)}]; c != want {
			t.Errorf("%s: %+v, want %+v, in %v", to, c, want, got)
		}
	}
	if got.Total() != (Count{2, 2076}) || got.To(netip.MustParseAddr("203.0.113.9")).Total().Bytes != 1028 ||
		got.Within(netip.MustParsePrefix("203.0.113.0/24")).Total().Packets != 1 || got.Without(netip.MustParseAddr("203.0.113.9")).Total().Bytes != 1048 {
		t.Errorf("the parts do not make the whole: %v", got)
	}
	before = n.Sink.Counts(t)
	send("tcp", "1.2.3.4:9000", strings.Repeat("y", 100_000))
	if _, err := n.dial(t.Context(), "tcp", "1.2.3.4:12345"); err == nil {
		t.Error("a port that nobody serves is open")
	}
	got = n.Sink.Counts(t).Since(before)
	if c := got[Flow{"tcp", netip.MustParseAddrPort("1.2.3.4:9000")}]; c.Bytes < 100_000 || c.Packets < 3 {
		t.Errorf("%v is less than was sent", got)
	}
	if c := got[Flow{"tcp", netip.MustParseAddrPort("1.2.3.4:12345")}]; c.Packets != 1 {
		t.Errorf("a refused connection is not one packet: %v", got)
	}
}

// TestSinkIsBelievedOnlyWithTheKernel: a sink that misses packets does not say that
// there were none.
func TestSinkIsBelievedOnlyWithTheKernel(t *testing.T) {
	n := New(t)
	n.Sink.patience = 300 * time.Millisecond
	n.Sink.mu.Lock()
	n.Sink.seen-- // as if one had been lost
	n.Sink.mu.Unlock()
	conn, err := n.dial(t.Context(), "udp", "203.0.113.9:4321")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("x"))
	conn.Close()
	if _, err := n.Sink.Read(); err == nil || !strings.Contains(err.Error(), "the kernel sent") {
		t.Errorf("a sink that lost a packet was believed: %v", err)
	}
}

// TestHostPrograms: programs that Start starts are on the host, with their names
// looked up there, and this process is not.
func TestHostPrograms(t *testing.T) {
	n := New(t)
	site := n.Site("api.example", Reached)
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "-c",
		"import urllib.request as u; print(u.urlopen('http://api.example/').read().decode()); print(u.urlopen('https://api.example/').read().decode())")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"PATH=/usr/bin:/bin", "SSL_CERT_FILE=" + n.Authority.File}
	if err := n.Run(cmd); err != nil || strings.Count(out.String(), "reached "+site.String()) != 2 {
		t.Errorf("%v: %s", err, out.String())
	}
	home, _ := os.Readlink("/proc/self/ns/net")
	for range 100 { // on whatever thread
		if here, _ := os.Readlink("/proc/thread-self/ns/net"); here != home {
			t.Fatalf("a thread of the test is in %s", here)
		}
		runtime.Gosched()
	}
}

// TestClose: nothing is left, also of connections that are open.
func TestClose(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: network namespaces need root")
	}
	base, err := residue.Take(residue.Scope{Prefixes: []string{"internet-"}, Descriptors: true})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var open []net.Conn
	for _, at := range []string{"1.2.3.4:443", "1.2.3.4:80", "1.2.3.4:7", "1.2.3.4:53", "1.2.3.4:853", "127.0.0.1:80"} {
		conn, err := n.Dial(ctx, "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	n.Close()
	for _, conn := range open {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Errorf("%v is still open: %v", conn.RemoteAddr(), err)
		}
		conn.Close()
	}
	for _, f := range base.Diff() {
		t.Errorf("left behind: %v", f)
	}
}
