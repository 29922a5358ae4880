package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/test/internet"
)

// The servers outside, at every address.
const (
	PortUp   = 9101 // takes everything, then says so with a byte
	PortDown = 9102 // gives as many bytes as it is asked for
	PortRaw  = 9103 // answers requests; the policy allows anything there
	PortHTTP = 9104 // answers requests; the policy allows what says that it is for the name, unread
	PortTLS  = 9105 // answers requests by TLS, which is read
)

var relayed = []int{PortUp, PortDown, PortRaw, PortHTTP, PortTLS}

const site = "site.example"

// rules are those of every sandbox.
var rules = fmt.Sprintf("allow: [{host: %s, ports: [%d]}, {host: %s, ports: [%d], inspect: none}, {host: %s, ports: [%d, %d, %d], protocol: tcp}]", site, PortTLS, site, PortHTTP, site, PortUp, PortDown, PortRaw)

// Egress is what the benches of networks share: an internet with servers, a
// daemon on its host, and, to compare, the same sandboxes on plain networks that
// lead to a relay there.
type Egress struct {
	Daemon *Daemon

	net     *internet.Internet
	plain   *orchestrator.Orchestrator
	wires   *plain
	client  []byte
	closers []func() error
}

// StartEgress starts all that, in dir. Close ends it.
func StartEgress(ctx context.Context, binary, dir string, templates *template.Store) (e *Egress, err error) {
	e = new(Egress)
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.client, err = buildGuest(ctx, dir); err != nil {
		return e, err
	}
	if e.net, err = internet.Open(); err != nil {
		return e, err
	}
	e.onClose(func() error { e.net.Close(); return nil })
	e.net.Sink.Stop()
	secure := e.net.Secure()
	for port, handle := range map[uint16]func(net.Conn){PortUp: takeAll, PortDown: giveMuch, PortRaw: answerAll, PortHTTP: answerAll,
		PortTLS: func(c net.Conn) { answerAll(tls.Server(c, secure)) }} {
		if err := e.net.Serve(port, handle); err != nil {
			return e, err
		}
	}
	end, err := startRelay(e.net, e.net.Site(site, internet.Reached))
	if err != nil {
		return e, err
	}
	e.onClose(func() error { end(); return nil })
	namespaces, local := filepath.Join(dir, "plain"), filepath.Join(dir, "relayed")
	if err := errors.Join(os.Mkdir(namespaces, 0o700), os.Mkdir(local, 0o700)); err != nil {
		return e, err
	}
	var endPlain func() error
	e.wires = &plain{n: e.net, dir: namespaces}
	if e.plain, endPlain, err = startLocal(ctx, local, templates, false, e.wires); err != nil {
		return e, err
	}
	e.onClose(endPlain)
	if e.Daemon, err = StartDaemon(ctx, binary, dir, e.net); err != nil {
		return e, err
	}
	e.onClose(func() error { e.Daemon.Stop(); return nil })
	return e, nil
}

func (e *Egress) onClose(f func() error) { e.closers = append(e.closers, f) }

// Close ends everything.
func (e *Egress) Close() error {
	var errs []error
	for _, f := range slices.Backward(e.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// buildGuest builds the client that runs in the sandboxes.
func buildGuest(ctx context.Context, dir string) ([]byte, error) {
	out := filepath.Join(dir, "guest-client")
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", out, "./bench/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the client: %w", err)
	}
	return os.ReadFile(out)
}

func takeAll(c net.Conn) {
	b := make([]byte, 256<<10)
	for {
		if _, err := c.Read(b); err == io.EOF {
			c.Write([]byte("k"))
			return
		} else if err != nil {
			return
		}
	}
}

func giveMuch(c net.Conn) {
	var size [8]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	b := make([]byte, 256<<10)
	for left := binary.BigEndian.Uint64(size[:]); left > 0; {
		n, err := c.Write(b[:min(left, uint64(len(b)))])
		if left -= uint64(n); err != nil {
			return
		}
	}
}

// answer is what every request gets: 1024 bytes of HTTP, as the client expects.
var answer = func() []byte {
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 900\r\nX-Fill: "
	return []byte(head + strings.Repeat("f", 1024-900-len(head)-4) + "\r\n\r\n" + strings.Repeat("b", 900))
}()

// answerAll answers requests, each of which has come whole when its end has.
func answerAll(c net.Conn) {
	b := make([]byte, 4<<10)
	for n := 0; n < len(b); {
		m, err := c.Read(b[n:])
		if n += m; err != nil {
			return
		}
		if bytes.HasSuffix(b[:n], []byte("\r\n\r\n")) {
			if _, err := c.Write(answer); err != nil {
				return
			}
			n = 0
		}
	}
}

// Guest is a live sandbox with the client in it.
type Guest struct {
	ID   string
	host string // under which it reaches the servers
	exec func(ctx context.Context, args []string) (ran, error)
}

// ran is how the client ended.
type ran struct {
	Stdout, Stderr string
	Code           int `json:"exit_code"`
	Reason, Detail string
}

// measured is what the client prints.
type measured struct {
	Nanoseconds  int64 `json:"ns"`
	Done, Failed int64
	Samples      []int64
}

// Run runs the client.
func (g *Guest) Run(ctx context.Context, what string, port, n int) (m measured, err error) {
	args := []string{what, net.JoinHostPort(g.host, fmt.Sprint(port)), fmt.Sprint(n)}
	if port == PortTLS {
		args = append(args, site)
	}
	r, err := g.exec(ctx, args)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("the client ended with %d, %s (%s): %s", r.Code, r.Reason, r.Detail, r.Stderr)
	}
	if err == nil {
		err = json.Unmarshal([]byte(r.Stdout), &m)
	}
	if err != nil {
		err = fmt.Errorf("%s %d: %w", what, port, err)
	}
	return m, err
}

// The memory of a sandbox: what its kernel keeps of tens of thousands of
// connections that it has closed takes more than usual.
const (
	Usual = 256 << 20
	Roomy = 1 << 30
)

const (
	clientPath    = "/home/user/client"
	authorityPath = "/home/user/authority.pem"
)

// Guest makes a sandbox of the daemon's, with rules. Its connections go through
// the whole product.
func (e *Egress) Guest(ctx context.Context, memory int64) (*Guest, error) {
	network, err := json.Marshal(map[string]any{"template": "host", "backend": "gvisor", "limits": map[string]int64{"memory_bytes": memory},
		"network": map[string]string{"document": rules}})
	if err != nil {
		return nil, err
	}
	id, err := e.Daemon.Create(ctx, string(network))
	if err != nil {
		return nil, err
	}
	path := "/v1/sandboxes/" + id
	if _, err := e.Daemon.Do(ctx, http.MethodPut, path+"/files?mode=755&path="+clientPath, bytes.NewReader(e.client), int64(len(e.client))); err != nil {
		return nil, err
	}
	return &Guest{id, site, func(ctx context.Context, args []string) (r ran, err error) {
		body, err := json.Marshal(map[string]any{"command": clientPath, "args": args, "timeout_ms": 600_000})
		if err != nil {
			return r, err
		}
		out, err := e.Daemon.Do(ctx, http.MethodPost, path+"/exec", bytes.NewReader(body), int64(len(body)))
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		return r, err
	}}, nil
}

// output keeps what a program prints.
type output struct{ stdout, stderr strings.Builder }

func (o *output) Started(int, uint64) error { return nil }
func (o *output) Stdout(b []byte, _ uint64) error {
	o.stdout.Write(b)
	return nil
}
func (o *output) Stderr(b []byte, _ uint64) error {
	o.stderr.Write(b)
	return nil
}

// Plain makes a sandbox on a plain network, with the same backend, runtime, flags
// and limits: its connections end in the host's kernel and go on from the relay.
func (e *Egress) Plain(ctx context.Context, memory int64) (*Guest, error) {
	who := orchestrator.Caller{Tenant: "default", Principal: "bench"}
	sb, err := e.plain.Create(ctx, who, orchestrator.CreateRequest{Limits: sandbox.Limits{Memory: memory}, Network: &orchestrator.NetworkPolicy{}})
	if err != nil {
		return nil, err
	}
	if _, err := e.plain.WriteFile(ctx, who, string(sb.ID), clientPath, guest.WriteOptions{Mode: 0o755}, bytes.NewReader(e.client)); err != nil {
		return nil, err
	}
	if _, err := e.plain.WriteFile(ctx, who, string(sb.ID), authorityPath, guest.WriteOptions{Mode: 0o644}, bytes.NewReader(e.net.Authority.PEM)); err != nil {
		return nil, err
	}
	program := clientPath
	return &Guest{string(sb.ID), e.wires.gateway(sb.Instance), func(ctx context.Context, args []string) (ran, error) {
		var out output
		exit, err := e.plain.Exec(ctx, who, string(sb.ID), orchestrator.ExecRequest{Command: &program, Args: args, Env: map[string]string{"SSL_CERT_FILE": authorityPath}}, &out)
		return ran{out.stdout.String(), out.stderr.String(), exit.Code, string(exit.Reason), exit.Detail}, err
	}}, nil
}

// perSecond is how many connections a sandbox makes at least, and at once: the rest wait.
const perSecond = 100

// Column has the client measure; what counts is the mean of each. Connections are made
// when as many may be at once: what more wait for is the rate, which is no cost.
func (g *Guest) Column(name, what string, port, n int) Column {
	return Column{name, func(ctx context.Context) (time.Duration, error) {
		if what == "connect" {
			time.Sleep(time.Duration(n) * time.Second / perSecond)
		}
		m, err := g.Run(ctx, what, port, n)
		if err == nil && m.Done != int64(n) {
			err = fmt.Errorf("%s: %d of %d", what, m.Done, n)
		}
		return time.Duration(m.Nanoseconds / int64(n)), err
	}}
}

// Calm is the 99th percentile of a request while nothing else happens.
func (g *Guest) Calm(name string, port, seconds int) Column {
	return Column{name, func(ctx context.Context) (time.Duration, error) {
		m, err := g.Run(ctx, "latency", port, seconds)
		return p99(m.Samples), err
	}}
}

// Beside is the same while another sandbox makes connections, of which n have to
// succeed; all of the time is beside them.
func (g *Guest) Beside(name string, other *Guest, port, n, seconds int) Column {
	return g.beside(name, port, seconds, func(ctx context.Context) (time.Duration, error) {
		flood, err := other.Run(ctx, "flood", port, n)
		if err == nil && flood.Done < int64(n) {
			err = fmt.Errorf("of %d connections %d were made, %d were not", n, flood.Done, flood.Failed)
		}
		return time.Duration(flood.Nanoseconds), err
	})
}

// BesideWork is the same while another sandbox computes and connects to nothing.
func (g *Guest) BesideWork(name string, other *Guest, port, seconds int) Column {
	return g.beside(name, port, seconds, func(ctx context.Context) (time.Duration, error) {
		m, err := other.Run(ctx, "spin", port, seconds+1)
		return time.Duration(m.Nanoseconds), err
	})
}

func (g *Guest) beside(name string, port, seconds int, other func(context.Context) (time.Duration, error)) Column {
	return Column{name, func(ctx context.Context) (time.Duration, error) {
		var busy time.Duration
		var oerr error
		var work sync.WaitGroup
		begin := time.Now()
		work.Go(func() { busy, oerr = other(ctx) })
		time.Sleep(500 * time.Millisecond) // it has begun
		m, err := g.Run(ctx, "latency", port, seconds)
		took := time.Since(begin)
		work.Wait()
		if err = errors.Join(err, oerr); err == nil && busy < took-time.Second {
			err = fmt.Errorf("the other sandbox was done after %v of %v", busy, took)
		}
		return p99(m.Samples), err
	}}
}

func p99(samples []int64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	slices.Sort(samples)
	return time.Duration(samples[min(len(samples)-1, int(math.Ceil(0.99*float64(len(samples)))))])
}

// Memory is what processes hold, in bytes.
type Memory struct{ RSS, PSS int64 }

// Router measures the daemon's one router. What the kernel lists of a process's
// children may lack some while others come and go: it is asked again for a while.
func (e *Egress) Router() (m Memory, err error) {
	var pids []int
	for end := time.Now().Add(5 * time.Second); len(pids) != 1; time.Sleep(20 * time.Millisecond) {
		if pids = internet.Routers(e.Daemon.cmd.Process.Pid); len(pids) != 1 && time.Now().After(end) {
			return m, fmt.Errorf("the daemon has the routers %v", pids)
		}
	}
	if m.RSS, err = procField(pids[0], "status", "VmRSS:"); err == nil {
		m.PSS, err = procField(pids[0], "smaps_rollup", "Pss:")
	}
	return m, err
}

// Together has all guests make n requests each at once, each on a connection of
// its own. It returns what they took, and the most that the router held meanwhile.
func (e *Egress) Together(ctx context.Context, guests []*Guest, port, n int) (took time.Duration, most Memory, err error) {
	errs := make([]error, len(guests))
	var work sync.WaitGroup
	begin := time.Now()
	for i, g := range guests {
		work.Go(func() {
			m, err := g.Run(ctx, "request", port, n)
			if err == nil && m.Done != int64(n) {
				err = fmt.Errorf("%s made %d of %d requests", g.ID, m.Done, n)
			}
			errs[i] = err
		})
	}
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	for tick := time.Tick(200 * time.Millisecond); ; {
		select {
		case <-done:
			return time.Since(begin), most, errors.Join(errs...)
		case <-tick:
			m, err := e.Router()
			if err != nil {
				return 0, most, err
			}
			most.RSS, most.PSS = max(most.RSS, m.RSS), max(most.PSS, m.PSS)
		}
	}
}
