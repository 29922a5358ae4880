//go:build linux

package gvisor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// openWire opens a wire that is removed when the test ends.
func openWire(t *testing.T) (l *wire.Link, reopen func(*testing.T) *wire.Link) {
	t.Helper()
	if err := wire.Probe(); err != nil {
		t.Skipf("not run: %v", err)
	}
	dir, id := filepath.Join(t.TempDir(), "wires"), string(sandbox.NewInstanceID())
	l, err := wire.Open(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Tap.Close()
		if objects, err := wire.Remove(dir, id); err != nil {
			t.Errorf("Remove: %v %+v", err, objects)
		}
	})
	return l, func(t *testing.T) *wire.Link {
		t.Helper()
		l, err := wire.Reopen(dir, id)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

// TestWireIsAPathAndAFlag: what the runtime is told with a wire and without.
func TestWireIsAPathAndAFlag(t *testing.T) {
	b, err := New(Config{Dir: t.TempDir(), Runsc: "/bin/runsc", Runtime: "/runtime"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	i := newInstance(b, intent{Instance: sandbox.NewInstanceID()}, cgroup{})
	network := func(s sandbox.Spec) (flags []string, spec string) {
		for _, a := range runtimeArgs(i, s, probed{root: true}) {
			if strings.HasPrefix(a, "--network") || strings.Contains(a, "offload") || strings.Contains(a, "gso") || strings.Contains(a, "raw") || strings.Contains(a, "packet") {
				flags = append(flags, a)
			}
		}
		j, err := json.Marshal(b.buildSpec(i.dir, s))
		if err != nil {
			t.Fatal(err)
		}
		return flags, string(j)
	}
	flags, spec := network(sandbox.Spec{})
	if !slices.Equal(flags, []string{"--network=none"}) || !strings.Contains(spec, `{"type":"network"}`) || strings.Contains(spec, "resolv") || strings.Contains(spec, "hosts") {
		t.Errorf("without a wire: %q %s", flags, spec)
	}
	flags, spec = network(sandbox.Spec{Wire: &sandbox.Wire{NetNS: "/wires/x", Link: "eth0"}})
	if !slices.Equal(flags, []string{"--network=sandbox", "--rx-checksum-offload=true", "--gso=true"}) ||
		!strings.Contains(spec, `{"type":"network","path":"/wires/x"}`) {
		t.Errorf("with a wire: %q %s", flags, spec)
	}
}

// TestWireHostSide: the sentry is in the wire's namespace, with the rights it has
// without one, and the gofer is not.
func TestWireHostSide(t *testing.T) {
	l, _ := openWire(t)
	theirs, err := wireNamespace(l.Wire)
	if err != nil {
		t.Fatal(err)
	}
	x := create(t, open(t, t.TempDir()), sandbox.Spec{Root: minimalRoot(t), Wire: &l.Wire})
	for _, p := range x.running.Processes {
		status := statusFile(t, p.PID)
		ns, err := os.Readlink(filepath.Join("/proc", strings.Split(p.name(), "@")[0], "ns/net"))
		if err != nil {
			t.Error(err)
		}
		if in := ns == theirs; in != (p.Role != "gofer") {
			t.Errorf("%s is in the wire's namespace: %v", p.Role, in)
		}
		if status["NoNewPrivs"] != "1" || status["Seccomp"] != "2" {
			t.Errorf("%s: NoNewPrivs %s, Seccomp %s; want 1, 2", p.Role, status["NoNewPrivs"], status["Seccomp"])
		}
		if p.Role == "sentry" && (status["CapEff"] != "000000000008001f" || status["CapBnd"] != status["CapEff"]) {
			t.Errorf("the sentry has capabilities %s, bounding %s", status["CapEff"], status["CapBnd"])
		}
	}
	if slices.Contains(x.running.Namespaces, theirs) {
		t.Error("the instance takes the wire's namespace for its own")
	}
}

// TestWireWithoutTheMeans: what cannot be had is refused with the reason.
func TestWireWithoutTheMeans(t *testing.T) {
	why := sandbox.Errorf("probe wires", sandbox.KindUnsupported, "no such thing").WithHint("buy one")
	for name, c := range map[string]struct {
		wires func() error
		want  []string
	}{
		"not asked": {nil, []string{"cannot have a network", "attaches none"}},
		"missing":   {func() error { return why }, []string{"no such thing", "buy one"}},
	} {
		b := open(t, t.TempDir())
		b.cfg.Wires = c.wires
		info, err := b.Info(within(t))
		if err != nil || info.Capabilities.Wire {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		noted := strings.Contains(strings.Join(info.Notes, "\n"), "no network for sandboxes: ")
		if noted != (c.wires != nil) {
			t.Errorf("%s: notes %q", name, info.Notes)
		}
		_, err = b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t), Wire: &sandbox.Wire{}})
		if sandbox.KindOf(err) != sandbox.KindUnsupported {
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range c.want {
			if os.Geteuid() == 0 && !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v does not say %q", name, err, s)
			}
		}
	}
}

// TestNumbersOfNamespacesAreUsedAgain: a wire may have the number that a namespace
// of an instance had, and does not make a liar of its receipt. Another mount does.
func TestNumbersOfNamespacesAreUsedAgain(t *testing.T) {
	l, _ := openWire(t)
	number, err := wireNamespace(l.Wire)
	if err != nil {
		t.Fatal(err)
	}
	if boundNamespaces()(number) {
		t.Error("a wire holds another instance's namespace")
	}
	other := filepath.Join(t.TempDir(), "kept")
	put(t, other, "")
	if err := unix.Mount(l.Wire.NetNS, other, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if !boundNamespaces()(number) {
		t.Error("a mount does not hold it")
	}
	if err := unix.Unmount(other, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}
