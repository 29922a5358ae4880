package cli

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// baitVariable is where the bait lies in this process's environment.
const baitVariable = "FIREBREAK_DEMO_BAIT"

// bait is a made-up secret of this machine, laid out for hostile programs, and
// the listener that would hear of it.
type bait struct {
	secret string // in a file everybody may read, and in the environment
	marker string // what a program is given to send out
	dir    string
	file   string
	sink   *sink
}

// layBait invents a secret, writes it where a program that gets out finds it,
// and opens the sink.
func layBait() (b *bait, err error) {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails
	b = &bait{secret: "fbbait-" + hex.EncodeToString(raw), marker: "fbmark-" + strings.ToLower(rand.Text()[:16])}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.remove())
		}
	}()
	if b.dir, err = os.MkdirTemp("", "firebreak-demo-"); err != nil {
		return b, sandbox.Wrap("demo", "", err)
	}
	b.file = filepath.Join(b.dir, "bait")
	if err = os.Chmod(b.dir, 0o755); err == nil { // nobody is kept from it but by the sandbox
		err = os.WriteFile(b.file, []byte(b.secret), 0o666)
	}
	if err == nil {
		err = os.Setenv(baitVariable, b.secret)
	}
	if err == nil {
		b.sink, err = openSink()
	}
	return b, sandbox.Wrap("demo", "", err)
}

// remove takes everything away again.
func (b *bait) remove() error {
	err := os.Unsetenv(baitVariable)
	if b.sink != nil {
		b.sink.close()
	}
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return sandbox.Wrap("demo", "", err)
}

// sink listens for TCP and UDP on this machine's own addresses: loopback and,
// where there is one, a real interface.
type sink struct {
	hosts     []string
	port      int
	listeners []io.Closer
	work      sync.WaitGroup

	mu    sync.Mutex
	bytes []byte // guarded by mu
	ours  int    // guarded by mu
}

// sinkLimit bounds what a sink remembers: whoever can reach it may talk to it.
const sinkLimit = 1 << 20

func openSink() (*sink, error) {
	s := &sink{}
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.port = first.Addr().(*net.TCPAddr).Port
	s.accept("127.0.0.1", first)
	addrs, _ := net.InterfaceAddrs()
	for _, a := range append([]net.Addr{&net.IPNet{IP: net.IPv4(127, 0, 0, 1)}}, addrs...) {
		ip, ok := a.(*net.IPNet)
		if !ok || ip.IP.To4() == nil || len(s.hosts) == 2 {
			continue
		}
		host := ip.IP.String()
		if !ip.IP.IsLoopback() {
			l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", host, s.port))
			if err != nil {
				continue // an address that goes, a port that is taken: the next one
			}
			s.accept(host, l)
		}
		if p, err := net.ListenPacket("udp", fmt.Sprintf("%s:%d", host, s.port)); err == nil {
			s.listeners = append(s.listeners, p)
			s.work.Go(func() { s.receive(p) })
		}
	}
	return s, nil
}

// accept hears whoever connects to l.
func (s *sink) accept(host string, l net.Listener) {
	s.hosts = append(s.hosts, host)
	s.listeners = append(s.listeners, l)
	s.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.work.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				data, _ := io.ReadAll(io.LimitReader(c, sinkLimit))
				s.hear(data)
			})
		}
	})
}

func (s *sink) receive(p net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, _, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		s.hear(buf[:n])
	}
}

func (s *sink) hear(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.bytes)+len(data) <= sinkLimit {
		s.bytes = append(append(s.bytes, data...), 0)
	}
}

// heard is how many bytes of marker, plain or as a DNS label, have come, and
// whether the sink hears at all: a word of ours arrives at each address.
func (s *sink) heard(marker string) (n int, works bool) {
	works = true
	for _, host := range s.hosts {
		for _, network := range []string{"tcp", "udp"} {
			works = s.tell(network, host) && works
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	label := strings.ToLower(strings.TrimRight(base32.StdEncoding.EncodeToString([]byte(marker)), "="))
	for _, m := range []string{marker, label} {
		n += len(m) * strings.Count(string(s.bytes), m)
	}
	return n, works
}

// tell says a word to the sink and waits until it was heard.
func (s *sink) tell(network, host string) bool {
	word := "fbword-" + rand.Text()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		c, err := net.DialTimeout(network, fmt.Sprintf("%s:%d", host, s.port), time.Second)
		if err != nil {
			return false
		}
		_, _ = io.WriteString(c, word)
		_ = c.Close()
		for range 50 { // a datagram may be lost: then again
			s.mu.Lock()
			ok := strings.Contains(string(s.bytes), word)
			if ok {
				s.ours += len(word)
			}
			s.mu.Unlock()
			if ok {
				return true
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return false
}

// said is how much of ours was heard.
func (s *sink) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sandbox.FormatSize(int64(s.ours))
}

func (s *sink) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	s.work.Wait()
}
