//go:build linux

package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestOpen looks at everything in a wire's namespace.
func TestOpen(t *testing.T) {
	dir := wiresIn(t)
	id := newID()
	l := open(t, dir, id)
	if l.Wire.NetNS != filepath.Join(dir, id) || l.Wire.Link != "eth0" || l.Wire.Address.String() != "10.200.0.2/30" || l.Wire.Gateway.String() != "10.200.0.1" {
		t.Errorf("%+v", l.Wire)
	}
	if ids, err := List(dir); err != nil || !slices.Equal(ids, []string{id}) {
		t.Errorf("List = %v, %v", ids, err)
	}
	inside(t, l.Wire, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		seen := map[string]string{}
		for _, link := range links {
			addrs, err := link.Addrs()
			if err != nil {
				return err
			}
			seen[link.Name] = fmt.Sprint(link.Flags&net.FlagUp != 0, link.MTU, link.HardwareAddr, addrs)
		}
		if len(seen) != 2 || seen["lo"] != "true 65536  [127.0.0.1/8 ::1/128]" || seen["eth0"] != "true 1500 02:00:00:00:00:02 [10.200.0.2/30]" {
			t.Errorf("links: %v", seen)
		}
		eth, err := netlink.LinkByName(LinkName)
		if err != nil {
			return err
		}
		if a := eth.Attrs(); a.Alias != id || a.TxQLen != queue {
			t.Errorf("alias %q, queue %d", a.Alias, a.TxQLen)
		}
		routes, err := netlink.RouteList(eth, netlink.FAMILY_ALL)
		if err != nil || len(routes) != 2 {
			t.Errorf("routes %v, %v", routes, err)
		}
		neighbours, err := netlink.NeighList(eth.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil || len(neighbours) != 1 || neighbours[0].State != netlink.NUD_PERMANENT || neighbours[0].HardwareAddr.String() != GatewayMAC.String() {
			t.Errorf("neighbours %v, %v", neighbours, err)
		}
		for name, want := range map[string]string{"ipv4/ip_forward": "0", "ipv6/conf/eth0/disable_ipv6": "1"} {
			if b, err := os.ReadFile("/proc/sys/net/" + name); err != nil || strings.TrimSpace(string(b)) != want {
				t.Errorf("%s is %q, %v", name, b, err)
			}
		}
		return nil
	})
	fl, err := unix.FcntlInt(tapFD(t, l), unix.F_GETFL, 0)
	if err != nil || fl&unix.O_NONBLOCK == 0 {
		t.Errorf("the tap blocks: %x, %v", fl, err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// tapFD borrows the descriptor, without making it block as Fd does.
func tapFD(t *testing.T, l *Link) (fd uintptr) {
	t.Helper()
	rc, err := l.Tap.SyscallConn()
	if err == nil {
		err = rc.Control(func(n uintptr) { fd = n })
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func TestRefused(t *testing.T) {
	dir := wiresIn(t)
	id := newID()
	open(t, dir, id)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		do   func(dir, id string) (*Link, error)
		dir  string
		id   string
		kind sandbox.Kind
	}{
		"it exists":              {Open, dir, id, sandbox.KindExists},
		"relative":               {Open, "wires", newID(), sandbox.KindInvalid},
		"no id":                  {Open, dir, "../../etc/passwd", sandbox.KindInvalid},
		"no directory":           {Open, file, newID(), sandbox.KindNotDirectory},
		"reopened, none":         {Reopen, dir, newID(), sandbox.KindNotFound},
		"reopened, no id":        {Reopen, dir, "..", sandbox.KindInvalid},
		"reopened, no directory": {Reopen, file, newID(), sandbox.KindNotFound},
	} {
		if l, err := c.do(c.dir, c.id); sandbox.KindOf(err) != c.kind || l != nil {
			t.Errorf("%s: %v, want kind %s", name, err, c.kind)
		}
	}
	if _, err := Remove(dir, "../../etc"); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("Remove of no id: %v", err)
	}
	if ids, err := List(filepath.Join(dir, "none")); err != nil || ids != nil {
		t.Errorf("List of nothing: %v, %v", ids, err)
	}
}

// TestReopen: the TAP outlives the processes that had its far end, killed or not,
// and what the guest set up on it.
func TestReopen(t *testing.T) {
	dir := wiresIn(t)
	id := newID()
	h := start(t, nil, "open", dir, id)
	t.Cleanup(func() { removed(t, dir, id) })
	if said := h.says(t); said != "ready" {
		t.Fatal(said)
	}
	if l, err := Reopen(dir, id); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Fatalf("a far end in use: %v, %v", l, err)
	}
	h.stop()
	for range 2 {
		h := start(t, nil, "reopen", dir, id)
		if said := h.says(t); said != "ready" {
			t.Fatal(said)
		}
		time.AfterFunc(20*time.Millisecond, h.stop) // while we wait for it
		l, err := Reopen(dir, id)
		if err != nil {
			t.Fatal(err)
		}
		inside(t, l.Wire, func() error { return ping(DNSPort) })
		if f := frame(t, l.Tap); f[atProtocol] != unix.IPPROTO_UDP {
			t.Errorf("% x", f)
		}
		h.stop()
		l.Tap.Close()
	}
}

// ping sends a datagram from the namespace this thread is in.
func ping(port int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet4{Port: port, Addr: Gateway.As4()})
}

// TestQueue: what waits for a router that does not read is bounded.
func TestQueue(t *testing.T) {
	l := open(t, wiresIn(t), newID())
	inside(t, l.Wire, func() error {
		for range 2 * queue {
			if err := ping(DNSPort); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		return nil
	})
	waiting := 0
	fd, buf := int(tapFD(t, l)), make([]byte, 2000)
	for {
		if _, err := unix.Read(fd, buf); err != nil {
			break
		}
		waiting++
	}
	if waiting != queue {
		t.Errorf("%d frames wait, want %d", waiting, queue)
	}
}

// TestReopenRestoresTheFilter: also where somebody took it away.
func TestReopenRestoresTheFilter(t *testing.T) {
	dir := wiresIn(t)
	id := newID()
	l := open(t, dir, id)
	l.Tap.Close()
	inside(t, l.Wire, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: filterTable, Family: nftables.TableFamilyNetdev})
		return c.Flush()
	})
	l2, err := Reopen(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Tap.Close()
	inside(t, l2.Wire, func() error { return filters(l2.Tap) })
	inside(t, l2.Wire, func() error { // and Probe would have noticed
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushTable(&nftables.Table{Name: filterTable, Family: nftables.TableFamilyNetdev})
		if err := c.Flush(); err != nil {
			return err
		}
		if err := filters(l2.Tap); !errors.Is(err, errNoFilter) {
			t.Errorf("a filter that drops everything: %v", err)
		}
		c.DelTable(&nftables.Table{Name: filterTable, Family: nftables.TableFamilyNetdev})
		if err := c.Flush(); err != nil {
			return err
		}
		if err := filters(l2.Tap); !errors.Is(err, errNoFilter) {
			t.Errorf("no filter: %v", err)
		}
		return nil
	})
}

// TestKilled kills whoever makes or removes a wire at each of its steps. What is
// left has a name, is a wire only if it is whole, and goes without a trace.
func TestKilled(t *testing.T) {
	for _, c := range []struct {
		do, point string
		whole     bool
	}{
		{"open", "wire.open/after-name", false},
		{"open", "wire.open/after-mount", false},
		{"open", "wire.open/after-tap", false},
		{"open", "wire.open/after-filter", false},
		{"open", "wire.open/after-address", false},
		{"open", "wire.open/after-persist", true},
		{"remove", "wire.remove/after-link", false},
		{"remove", "wire.remove/after-unmount", false},
	} {
		t.Run(strings.NewReplacer(".", "-", "/", "-").Replace(c.point), func(t *testing.T) {
			dir := wiresIn(t)
			id := newID()
			if c.do == "remove" {
				open(t, dir, id).Tap.Close()
			}
			h := start(t, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, failpoint.Env+"="+c.point) }, c.do, dir, id)
			h.killed(t)
			if ids, err := List(dir); err != nil || !slices.Equal(ids, []string{id}) {
				t.Errorf("List = %v, %v", ids, err)
			}
			if _, err := Open(dir, id); sandbox.KindOf(err) != sandbox.KindExists {
				t.Errorf("Open of what is left: %v", err)
			}
			l, err := Reopen(dir, id)
			switch {
			case c.whole && err != nil:
				t.Errorf("Reopen: %v", err)
			case c.whole:
				inside(t, l.Wire, func() error { return filters(l.Tap) })
				l.Tap.Close()
			case sandbox.KindOf(err) != sandbox.KindNotFound:
				t.Errorf("Reopen of what is left: %v, %v", l, err)
			}
			removed(t, dir, id)
		})
	}
}

// TestPowerCut: a restarted machine has the name and nothing else.
func TestPowerCut(t *testing.T) {
	dir := wiresIn(t)
	id := newID()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, id), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Reopen(dir, id); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("Reopen: %v", err)
	}
	removed(t, dir, id)
}

// TestRemoveCutsTheGuestOff: whoever has the far end open, and whoever is inside.
func TestRemoveCutsTheGuestOff(t *testing.T) {
	dir := wiresIn(t)
	id := newID()
	l := open(t, dir, id)
	h := start(t, nil, "inhabit", dir, id)
	if said := h.says(t); said != "ready" {
		t.Fatal(said)
	}
	for range 2 {
		objects, err := Remove(dir, id)
		if sandbox.KindOf(err) != sandbox.KindInternal {
			t.Errorf("Remove of a namespace with a process in it: %v", err)
		}
		for _, o := range objects {
			if o.Gone != (o.Kind == "link") || !o.Gone && o.Detail == "" {
				t.Errorf("%+v", o)
			}
		}
		if n, err := l.Tap.Read(make([]byte, 2000)); err == nil {
			t.Errorf("the far end gives %d bytes", n)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", h.Process.Pid))
		if err != nil || strings.Contains(string(b), LinkName) {
			t.Errorf("the guest has a device: %s %v", b, err)
		}
	}
	h.stop()
	removed(t, dir, id)
}

// TestFifty makes, serves and removes fifty wires at a time.
func TestFifty(t *testing.T) {
	dir := wiresIn(t)
	const n = 50
	var wg sync.WaitGroup
	links := make([]*Link, n)
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() { links[i], errs[i] = Open(dir, newID()) })
	}
	wg.Wait()
	inodes := map[uint64]bool{}
	for i, l := range links {
		if errs[i] != nil {
			t.Errorf("Open: %v", errs[i])
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(l.Wire.NetNS, &st); err != nil {
			t.Error(err)
		}
		inodes[st.Ino] = true
		inside(t, l.Wire, func() error { return ping(DNSPort) })
	}
	if len(inodes) != n {
		t.Errorf("%d namespaces", len(inodes))
	}
	for _, l := range links {
		if l == nil {
			continue
		}
		if f := frame(t, l.Tap); f[atProtocol] != unix.IPPROTO_UDP {
			t.Errorf("% x", f)
		}
		wg.Go(func() {
			if _, err := Remove(dir, filepath.Base(l.Wire.NetNS)); err != nil {
				t.Errorf("Remove: %v", err)
			}
			l.Tap.Close()
		})
	}
	wg.Wait()
}

// TestThreadsStay: no thread of the process stays in a wire's namespace, its main
// thread, which could never be given up, before all.
func TestThreadsStay(t *testing.T) {
	dir := wiresIn(t)
	h := start(t, nil, "threads", dir, newID())
	if said := h.says(t); said != "ready" {
		t.Error(said)
	}
}

// threadsStay is TestThreadsStay in a process whose main goroutine is on its main
// thread, as in a program.
func threadsStay(dir string) error {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	ids := make([]string, 40)
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = newID()
		do := func() {
			if l, err := Open(dir, ids[i]); err == nil {
				l.Tap.Close()
			}
		}
		if i%2 == 0 {
			do() // from the main thread
		} else {
			wg.Go(do)
		}
	}
	wg.Wait()
	defer func() {
		for _, id := range ids {
			Remove(dir, id)
		}
	}()
	made, err := List(dir)
	if err != nil || len(made) != len(ids) {
		return fmt.Errorf("%d wires, %v", len(made), err)
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) < 2 {
		return fmt.Errorf("%d threads, %v", len(threads), err)
	}
	for _, path := range threads {
		if ns, err := os.Readlink(path); err == nil && ns != home {
			return fmt.Errorf("%s is %s, not %s", path, ns, home)
		}
	}
	return nil
}

// TestNotRoot: wires are refused, with a reason.
func TestNotRoot(t *testing.T) {
	needWires(t)
	dir, err := os.MkdirTemp("", "wire")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	nobody := func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	for _, do := range []string{"open", "probe"} {
		said := start(t, nobody, do, filepath.Join(dir, "wires"), newID()).says(t)
		if !strings.HasPrefix(said, "error: unsupported") || !strings.Contains(said, "as root") {
			t.Errorf("%s: %q", do, said)
		}
	}
	if ids, err := List(filepath.Join(dir, "wires")); err != nil || len(ids) != 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
}

// TestExplain: what a machine lacks has a kind and a way out.
func TestExplain(t *testing.T) {
	for want, err := range map[string]error{
		"CONFIG_NETFILTER_EGRESS": fmt.Errorf("%w: %w", errNoFilter, unix.EOPNOTSUPP),
		"modprobe tun":            &os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.ENOENT},
		"privileged":              fmt.Errorf("make a network namespace: %w", unix.EPERM),
	} {
		var e *sandbox.Error
		got := explain("open wire", "id", err)
		if os.Geteuid() != 0 {
			want = "as root"
		}
		if !errors.As(got, &e) || e.Kind != sandbox.KindUnsupported || !strings.Contains(e.Hint, want) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if k := sandbox.KindOf(explain("open wire", "id", unix.ENOSPC)); k != sandbox.KindCapacity {
		t.Errorf("too many namespaces: %s", k)
	}
}

// BenchmarkOpen is the set-up of one wire: at most 3 ms in the median.
func BenchmarkOpen(b *testing.B) {
	needWires(b)
	dir := filepath.Join(b.TempDir(), "wires")
	var took []time.Duration
	for b.Loop() {
		id := newID()
		began := time.Now()
		l, err := Open(dir, id)
		took = append(took, time.Since(began))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		l.Tap.Close()
		if _, err := Remove(dir, id); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	median := took[len(took)/2]
	b.ReportMetric(float64(median.Microseconds()), "µs/median")
	if len(took) >= 20 && median > 3*time.Millisecond {
		b.Errorf("the median of %d is %v, the promise 3 ms", len(took), median)
	}
}
