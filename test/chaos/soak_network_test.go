//go:build linux

package chaos

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// wants is what a sandbox of the network soak tries: what is allowed, and then
// addresses, names and ports that are not. The first line says how the allowed
// one went, others what was reached all the same.
const wants = `curl -sS -k -m 10 https://api.example/ && echo
for u in https://93.184.1.1/ https://other.example/ http://api.example/ http://169.254.169.254/; do curl -s -k -m 2 $u | sed 's/^/denied: /'; done
true`

// networks is the load of TestNetworkSoak.
type networks struct {
	s      *server
	struck atomic.Int64 // when a router was killed last, in nanoseconds of Unix time

	cycles, kills, retried atomic.Int64
}

// cycle is the life of a sandbox that may reach one host.
func (n *networks) cycle() error {
	a := n.s.send("POST", "/v1/sandboxes", `{"network":{"allow":["api.example"]}}`)
	switch {
	case a.reply.Error.Kind == "capacity": // the machine is busy
		time.Sleep(time.Second)
		return nil
	case a.status != http.StatusCreated:
		return fmt.Errorf("create: %v", a)
	}
	id := a.reply.ID
	for range 3 {
		if err := n.visit(id); err != nil {
			return err
		}
	}
	if a := n.s.send("PUT", "/v1/sandboxes/"+id+"/network", `{"allow":["api.example", "more.example"]}`); a.status != http.StatusOK {
		return fmt.Errorf("update: %v", a)
	}
	if err := n.visit(id); err != nil {
		return err
	}
	if a := n.s.send("DELETE", "/v1/sandboxes/"+id, ""); a.status != http.StatusOK || a.reply.Receipt == nil || !a.reply.Receipt.Clean {
		return fmt.Errorf("destroy: %v", a)
	}
	n.cycles.Add(1)
	return nil
}

// visit has a sandbox try everything. What is allowed may fail if a router was
// killed meanwhile, or just before; what is not never works.
func (n *networks) visit(id string) error {
	for {
		begun := time.Now()
		a := n.s.send("POST", "/v1/sandboxes/"+id+"/exec", fmt.Sprintf(`{"command":"sh","args":["-c",%q],"timeout_ms":60000}`, wants))
		switch {
		case strings.Contains(a.reply.Stdout, "denied:"):
			return fmt.Errorf("what no rule allows was reached: %v", a)
		case strings.HasPrefix(a.reply.Stdout, "reached "):
			return nil
		case begun.Sub(time.Unix(0, n.struck.Load())) > 5*time.Second:
			return fmt.Errorf("what a rule allows was not reached: %v", a)
		}
		n.retried.Add(1)
	}
}

// load runs cycles, some at a time, for a while.
func (n *networks) load(d time.Duration) {
	var work sync.WaitGroup
	end := time.Now().Add(d)
	for range 4 {
		work.Go(func() {
			for time.Now().Before(end) {
				if err := n.cycle(); err != nil {
					n.s.t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}

// router is the server's one router, and what it holds.
func (n *networks) router() (pid int, rss int64, fds int) {
	n.s.t.Helper()
	soon(n.s.t, "one router", 30*time.Second, func() error {
		pids := internet.Routers(n.s.cmd.Process.Pid)
		if len(pids) != 1 {
			return fmt.Errorf("there are %v", pids)
		}
		pid = pids[0]
		return nil
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		n.s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &rss); err == nil {
			break
		}
	}
	return pid, rss << 10, descriptors(n.s.t, pid)
}

// TestNetworkSoak: sandboxes that may reach something come and go, and try what
// they may and what they may not, while routers are killed. What is allowed works,
// nothing else leaves, and neither the server nor a router accumulates anything.
func TestNetworkSoak(t *testing.T) {
	d, pause := 15*time.Second, 2*time.Second
	if long() {
		d, pause = 10*time.Minute, 10*time.Second
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	net := internet.New(t)
	tr := net.Transport()
	t.Cleanup(tr.CloseIdleConnections)
	w.begin, w.transport = net.Start, tr
	w.env = []string{"SSL_CERT_FILE=" + net.Authority.File} // the router reads what passes, and trusts this internet
	allowed := net.Site("api.example", internet.Reached)
	net.Site("other.example", internet.Reached)
	s := w.serve("", "--stop-sandboxes")
	n := &networks{s: s}
	n.load(d / 10) // what is made once is made now
	before := s.vitals()

	killed := make(chan struct{})
	over := time.Now().Add(d / 2)
	go func() {
		defer close(killed)
		for time.Now().Before(over) {
			time.Sleep(pause)
			if pids := internet.Routers(s.cmd.Process.Pid); len(pids) == 1 {
				n.kills.Add(1)
				n.struck.Store(time.Now().UnixNano()) // before it is done
				syscall.Kill(pids[0], syscall.SIGKILL)
			}
		}
	}()
	n.load(d / 2)
	<-killed
	n.load(d / 10)
	pid, rss, fds := n.router()
	n.load(d * 3 / 10)
	s.flat(before)
	again, rssAfter, fdsAfter := n.router()
	t.Logf("%d cycles, %d kills, %d times again; router: RSS %.1f MiB then %.1f, %d descriptors then %d", n.cycles.Load(), n.kills.Load(), n.retried.Load(),
		float64(rss)/(1<<20), float64(rssAfter)/(1<<20), fds, fdsAfter)
	if again != pid || fdsAfter > fds+4 || rssAfter > rss+rss/2+8<<20 {
		t.Errorf("the router %d became %d; RSS %d became %d; %d descriptors became %d", pid, again, rss, rssAfter, fds, fdsAfter)
	}
	asked := func(a netip.AddrPort) bool { // about what is allowed; see below
		for _, server := range internet.NameServers() {
			if a == netip.AddrPortFrom(server, 53) {
				return true
			}
		}
		return false
	}
	for f := range net.Sink.Counts(t) {
		if f.To != netip.AddrPortFrom(allowed, 443) && !asked(f.To) {
			t.Errorf("packets went to %v", f)
		}
	}
	for _, q := range net.Names.Queries() {
		if q.Name != "api.example" {
			t.Errorf("a name server was asked %+v", q)
		}
	}
	for _, dir := range []string{"instances", "wires"} {
		if left := w.seeDirs(filepath.Join(w.data, dir)); left > 0 {
			t.Errorf("%d %s are left", left, dir)
		}
	}
	s.stop()
	w.verified()
}
