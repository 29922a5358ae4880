package hostile

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// outside is the internet that sandboxes are attacked from, and what has been
// there.
type outside struct {
	*internet.Internet
	upstreams map[string]*internet.Upstream
	reachable map[netip.AddrPort]bool
	asked     map[string]bool // names that may be
}

func newOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{Internet: internet.New(t), reachable: map[netip.AddrPort]bool{}, asked: mayBeAsked(), upstreams: map[string]*internet.Upstream{
		"trickle.example": internet.Trickle(20 * time.Millisecond), "silent.example": internet.Silent(), "bomb.example": internet.Bomb(), "headers.example": internet.Headers(1_000_000), "flood.example": internet.Flood(10 << 30)}}
	for name, values := range egressNames {
		o.Names.Set(name, values...)
	}
	for name, turns := range egressTurns {
		o.Names.Turns(name, turns...)
	}
	for a, ports := range mayBeReached {
		for _, p := range ports {
			o.reachable[netip.AddrPortFrom(netip.MustParseAddr(a), p)] = true
		}
	}
	site := func(name string, h http.Handler, port uint16) {
		o.reachable[netip.AddrPortFrom(o.Site(name, h), port)] = true
	}
	site("moved.example", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	}), 443)
	for name, u := range o.upstreams {
		port := uint16(443)
		if name == "headers.example" {
			port = 80
		}
		site(name, u, port)
	}
	return o
}

// mark is a moment.
type mark struct {
	sent                                 internet.Counts
	queries, requests, hellos, localSeen int
}

func (o *outside) mark(t *testing.T) mark {
	t.Helper()
	return mark{o.Sink.Counts(t), len(o.Names.Queries()), len(o.Requests()), len(o.Starts()), int(o.Local.Connections())}
}

// leaks is what has been outside since, and should not have. Queries are those of
// the machine's name servers alone, about names that rules name; packets go to
// what rules allow; servers are asked for what they are.
func (o *outside) leaks(t *testing.T, since mark) (list []string) {
	t.Helper()
	resolvers := internet.NameServers()
	for f, c := range o.Sink.Counts(t).Since(since.sent) {
		asks := f.To.Port() == 53 && slices.Contains(resolvers, f.To.Addr())
		if !asks && !(f.Protocol == "tcp" && o.reachable[f.To]) {
			list = append(list, fmt.Sprintf("%d bytes in %d packets were sent: %v", c.Bytes, c.Packets, f))
		}
	}
	for _, q := range o.Names.Queries()[since.queries:] {
		if !o.mayAsk(q.Name) {
			list = append(list, fmt.Sprintf("a name server was asked: %+v", q))
		}
	}
	for _, r := range o.Requests()[since.requests:] {
		if host, _, _ := strings.Cut(r.Host, ":"); !o.mayAsk(host) {
			list = append(list, fmt.Sprintf("a server got a request for another: %+v", r))
		}
		if strings.Contains(r.Path, "smuggled") || strings.Contains(r.Path, "forbidden") {
			list = append(list, fmt.Sprintf("a server got a request that no rule has: %+v", r))
		}
	}
	for _, h := range o.Starts()[since.hellos:] {
		if !o.mayAsk(h.Name) {
			list = append(list, fmt.Sprintf("a server was asked for TLS as %q: %v", h.Name, h.To))
		}
	}
	if n := int(o.Local.Connections()) - since.localSeen; n > 0 {
		list = append(list, fmt.Sprintf("%d connections to the machine itself: %v", n, o.Local))
	}
	slices.Sort(list)
	return list
}

// mayAsk reports whether a rule names a host: it, or a wildcard over it.
func (o *outside) mayAsk(name string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	_, above, _ := strings.Cut(name, ".")
	return o.asked[name] || o.asked["*."+above] || name == "target.example" // which alias.example stands for
}

// TestEgress attacks from sandboxes that may reach something, on a machine whose
// internet is the test's: whatever they try, nothing arrives anywhere but what
// their rules allow, by any protocol; each attempt is in the evidence; and what
// they are sent harms nobody.
func TestEgress(t *testing.T) {
	o := newOutside(t)
	w := serveIn(t, built(t), o, "SSL_CERT_FILE="+o.Authority.File)
	n := w.neighbours(t)
	first := w.create(t, `"network":`+allowing("api.example")) // so that there is a router to watch
	defer w.destroy(t, first)
	begin := o.mark(t)
	goroutines, fds := w.metric("go_goroutines"), w.metric("process_open_fds")
	n.unharmed(t, func() {
		grown, router := w.memory(), w.routerMemory(t)
		t.Run("cases", func(t *testing.T) {
			slots := make(chan struct{}, 4)
			for _, a := range egressAttacks {
				if a.alone {
					continue // by itself, below
				}
				t.Run(a.title(), func(t *testing.T) {
					t.Parallel()
					slots <- struct{}{}
					defer func() { <-slots }()
					w.carryOut(t, n, a)
				})
			}
		})
		if heap, resident := grown(); heap > 96<<20 || resident > 128<<20 {
			t.Errorf("the server's heap grew by %s, its resident set by %s", mib(heap), mib(resident))
		}
		if resident := router(); resident > 128<<20 {
			t.Errorf("the router's resident set grew by %s", mib(resident))
		} else {
			t.Logf("the router's resident set grew by %s at most", mib(resident))
		}
	})
	for _, l := range o.leaks(t, begin) {
		t.Error(l)
	}
	o.bounded(t)
	begin = o.mark(t)
	for _, a := range egressAttacks {
		if a.alone {
			t.Run(a.title(), func(t *testing.T) { w.crowd(t, n, a) })
		}
	}
	for _, l := range o.leaks(t, begin) {
		t.Error(l)
	}
	w.quiet(t, goroutines, fds)
}

// bounded looks at what hostile servers got rid of.
func (o *outside) bounded(t *testing.T) {
	t.Helper()
	// A rule's budget, and what is on its way in buffers.
	if got := o.upstreams["flood.example"].Taken(); got < 32<<20 || got > 64<<20+32<<20 {
		t.Errorf("%s were taken of a flood, the budget is 64 MiB", mib(got))
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		late := ""
		for name, u := range o.upstreams {
			if u.Ended() == 0 {
				late = name
			}
		}
		if late == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the connection to %s is still there", late)
		}
	}
	wild := map[string]bool{}
	for _, q := range o.Names.Asked("wild.example") {
		wild[strings.ToLower(q.Name)] = true
	}
	if len(wild) == 0 || len(wild) > 20 {
		t.Errorf("%d names below a wildcard were asked for, the budget is 20", len(wild))
	}
}

// pulse is what a neighbour's requests to an allowed host took.
type pulse struct {
	requests, failed int
	p99              time.Duration
}

var pulseLine = regexp.MustCompile(`requests (\d+) failed (\d+) p99 ([0-9.]+) `)

// beat makes requests from a neighbour for so many seconds.
func (w *world) beat(t *testing.T, id string, seconds int) (p pulse) {
	t.Helper()
	_, r := w.exec(id, 2*time.Minute, "python3", "net_pulse.py", "pulse.example", strconv.Itoa(seconds))
	m := pulseLine.FindStringSubmatch(r.Stdout)
	if m == nil {
		t.Errorf("the neighbour says %s %s", r.body, r.Error.Message)
		return p
	}
	p.requests, _ = strconv.Atoi(m[1])
	p.failed, _ = strconv.Atoi(m[2])
	ms, _ := strconv.ParseFloat(m[3], 64)
	p.p99 = time.Duration(ms * float64(time.Millisecond))
	return p
}

// crowd carries out an attack while a neighbour works over the same router.
func (w *world) crowd(t *testing.T, n *neighbours, a attack) {
	neighbour := w.create(t, `"network":`+allowing("pulse.example:80"))
	w.upload(t, neighbour, "net_pulse.py")
	before := w.beat(t, neighbour, 3)
	during := make(chan pulse, 1)
	go func() { during <- w.beat(t, neighbour, 12) }()
	grown := w.routerMemory(t)
	w.carryOut(t, n, a)
	resident := grown()
	got, after := <-during, w.beat(t, neighbour, 2)
	limit := 5*max(before.p99, after.p99) + grace()
	t.Logf("the neighbour's requests: before %+v, meanwhile %+v, after %+v; the router's resident set grew by %s", before, got, after, mib(resident))
	if got.failed > 0 || got.requests == 0 || got.p99 > limit {
		t.Errorf("a neighbour's requests: %+v, at most %v is fine", got, limit)
	}
	if resident > 128<<20 {
		t.Errorf("the router's resident set grew by %s", mib(resident))
	}
	w.destroy(t, neighbour)
}

// routerMemory watches the routers of the server until the function it returns is
// called, which says by how much their resident sets grew together, at most.
func (w *world) routerMemory(t *testing.T) func() int64 {
	t.Helper()
	resident := func() (sum int64) {
		for _, pid := range internet.Routers(w.cmd.Process.Pid) {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
			if f := strings.Fields(string(text)); len(f) > 1 {
				pages, _ := strconv.ParseInt(f[1], 10, 64)
				sum += pages * int64(os.Getpagesize())
			}
		}
		return sum
	}
	if len(internet.Routers(w.cmd.Process.Pid)) == 0 {
		t.Error("the server has no router")
	}
	base, peak := resident(), int64(0)
	quit := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		for {
			peak = max(peak, resident())
			select {
			case <-quit:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() int64 { close(quit); group.Wait(); return peak - base }
}

// TestEgressBites runs the programs of TestEgress where nothing stops them. Each
// must reach something, and the same look at the outside must find it: an attack
// that fails anywhere shows nothing, nor does a look that is blind.
func TestEgressBites(t *testing.T) {
	built(t)
	o := newOutside(t)
	dir := t.TempDir()
	names, err := filepath.Glob("programs/*.py")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(name)), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for _, a := range egressAttacks {
		if a.run == nil {
			a.run = []string{"net_link.py", "2606:4700::8", "10.200.0.2"}
		}
		if a.verdict != deny || seen[a.run[0]] || a.act != nil && a.number != 8 {
			continue
		}
		seen[a.run[0]] = true
		t.Run(a.title(), func(t *testing.T) {
			since := o.mark(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/usr/bin/python3", a.run...)
			var out bytes.Buffer
			cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = dir, &out, &out, []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "PYTHONDONTWRITEBYTECODE=1"}
			if err := o.Run(cmd); err != nil {
				t.Errorf("%v:\n%s", err, out.String())
			}
			leaks := o.leaks(t, since)
			if a.number == 6 { // within what rules allow, but for the number
				if got := len(o.Names.Asked("wild.example")); got < 120 {
					t.Errorf("%d names were asked for", got)
				}
				return
			}
			if found := strings.Count(out.String(), "FINDING"); found == 0 || len(leaks) == 0 && a.number != 9 {
				t.Errorf("%d findings, and outside %q:\n%s", found, leaks, out.String())
			} else {
				t.Logf("%d of %d attempts worked; %d leaks, such as %.200s", found, strings.Count(out.String(), "\n"), len(leaks), leaks[0])
				if testing.Verbose() {
					t.Log(out.String())
				}
			}
		})
	}
}
