package backendtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func testIsolation(t *testing.T, s *suite) {
	s.par(t, "User", s.testUser)
	s.par(t, "Base", s.testBase)
	s.par(t, "ReadonlyRoot", s.testReadonlyRoot)
	s.par(t, "Network", s.testNetwork)
	s.par(t, "Neighbours", s.testNeighbours)
	s.par(t, "Hostname", s.testHostname)
}

// identity is what a program finds out about its rights.
type identity struct {
	UID, EUID, GID, EGID int
	Groups               []int
	Core                 uint64
	CWD                  string
	CapInh, CapPrm       string
	CapEff, CapAmb       string
	NoNewPrivs           bool `json:"no_new_privs"`
}

func (s *suite) testUser(t *testing.T) {
	x := s.open(t)
	var id identity
	x.decode(&id, "id")
	if id.UID != guest.DefaultUID || id.EUID != guest.DefaultUID || id.GID != guest.DefaultUID || id.EGID != guest.DefaultUID {
		t.Errorf("user code runs as %+v, want uid and gid %d", id, guest.DefaultUID)
	}
	for name, set := range map[string]string{"inheritable": id.CapInh, "permitted": id.CapPrm, "effective": id.CapEff, "ambient": id.CapAmb} {
		if strings.Trim(set, "0") != "" || set == "" && name != "ambient" {
			t.Errorf("user code has %s capabilities %q, want none", name, set)
		}
	}
	if !id.NoNewPrivs {
		t.Error("user code can gain privileges: no_new_privs is not set")
	}
	if id.Core != 0 {
		t.Errorf("user code may dump %d bytes of core", id.Core)
	}
	if id.CWD != guest.DefaultHome {
		t.Errorf("user code starts in %q, want %s", id.CWD, guest.DefaultHome)
	}
	o := x.exec(guest.Command{Argv: x.argv("id"), User: "root"}, "")
	var root identity
	if err := json.Unmarshal([]byte(o.out), &root); err != nil || root.UID != 0 {
		t.Errorf("root inside, asked for: %+v, %v", root, err)
	}
}

// testBase: what is written to the root goes to a layer of its own.
func (s *suite) testBase(t *testing.T) {
	x := s.open(t)
	root := guest.WriteOptions{User: "root"}
	if _, err := x.WriteFile(deadline(t), "/etc/planted", strings.NewReader("x"), root); err != nil {
		t.Fatalf("root inside cannot write to the root: %v", err)
	}
	if got, err := x.read("/etc/planted"); err != nil || got != "x" {
		t.Errorf("read back: %q, %v", got, err)
	}
	if err := x.Remove(deadline(t), "/etc/passwd", guest.RemoveOptions{User: "root"}); err != nil {
		t.Errorf("removing a file of the base: %v", err)
	}
	if dir := x.spec.Root.Dir; dir != "" {
		if _, err := os.Lstat(filepath.Join(dir, "etc/planted")); err == nil {
			t.Error("the write reached the root directory on the host")
		}
		if _, err := os.Lstat(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Errorf("the removal reached the root directory on the host: %v", err)
		}
	}
	y := s.open(t)
	if _, err := y.read("/etc/planted"); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another sandbox sees what this one wrote: %v", err)
	}
	if _, err := y.read("/etc/passwd"); err != nil {
		t.Errorf("another sandbox misses what this one removed: %v", err)
	}
}

func (s *suite) testReadonlyRoot(t *testing.T) {
	if !s.info.Capabilities.ReadonlyRoot {
		spec := s.spec(t)
		spec.ReadonlyRoot = true
		s.refused(t, spec, sandbox.KindUnsupported)
		return
	}
	x := s.open(t, func(sp *sandbox.Spec) { sp.ReadonlyRoot = true })
	for _, path := range []string{"/etc/planted", "/usr/planted", "/planted"} {
		_, err := x.WriteFile(deadline(t), path, strings.NewReader("x"), guest.WriteOptions{User: "root"})
		if err == nil {
			t.Errorf("%s was written on a read-only root", path)
		}
	}
	for _, path := range []string{"/tmp/f", "/home/user/f"} {
		x.write(path, "x")
	}
	x.alive()
}

// testNetwork: without a wire there is no device, and no way to what clouds
// serve credentials from.
func (s *suite) testNetwork(t *testing.T) {
	x := s.open(t)
	var n struct {
		Interfaces []string
		Metadata   string
	}
	x.decode(&n, "net")
	if len(n.Interfaces) != 0 {
		t.Errorf("interfaces %q, want none but lo", n.Interfaces)
	}
	if n.Metadata == "connected" || n.Metadata == "" {
		t.Errorf("the metadata address: %q", n.Metadata)
	}
}

func (s *suite) testHostname(t *testing.T) {
	const file = "/proc/sys/kernel/hostname"
	x := s.open(t)
	if o := x.probe("read", file); strings.TrimSpace(o.out) != string(x.spec.Sandbox) {
		t.Errorf("the guest is called %q, want its sandbox id %s", o.out, x.spec.Sandbox)
	}
	x = s.open(t, func(sp *sandbox.Spec) { sp.Hostname = "box" })
	if o := x.probe("read", file); strings.TrimSpace(o.out) != "box" {
		t.Errorf("the guest is called %q, want box", o.out)
	}
}

// testNeighbours: two sandboxes share nothing.
func (s *suite) testNeighbours(t *testing.T) {
	x, y := s.open(t), s.open(t)
	x.write("/tmp/mine", "x")
	if _, err := y.read("/tmp/mine"); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("a neighbour's file: %v", err)
	}
	before := y.processes()
	p := x.start("fork", "12")
	until(t, p, `"forked":12`)
	if n := x.processes(); n < 13 {
		t.Errorf("%d processes are visible to their own sandbox, want at least 13", n)
	}
	if n := y.processes(); n > before {
		t.Errorf("%d processes are visible, %d before a neighbour made 13", n, before)
	}
	o := y.probe("ls", "/proc")
	for _, l := range strings.Split(o.out, "\n") {
		if strings.Contains(l, string(x.spec.Instance)) {
			t.Errorf("a neighbour's instance id is visible: %q", l)
		}
	}
	x.kill(p)
}
