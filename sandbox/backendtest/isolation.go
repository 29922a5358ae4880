package backendtest

import (
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
}

func (s *suite) testUser(t *testing.T) {
	x := s.open(t)
	o := x.probe("id")
	t.Logf("id: %s", o.out)
	if !strings.Contains(o.out, "1000") {
		t.Errorf("user code runs as %q, want uid 1000", o.out)
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

func (s *suite) testNetwork(t *testing.T) {
	x := s.open(t)
	o := x.probe("net")
	t.Logf("net: %s", o.out)
}

// testNeighbours: two sandboxes share nothing.
func (s *suite) testNeighbours(t *testing.T) {
	x, y := s.open(t), s.open(t)
	x.write("/tmp/mine", "x")
	if _, err := y.read("/tmp/mine"); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("a neighbour's file: %v", err)
	}
	x.start("spin")
	o := y.probe("ls", "/proc")
	for _, l := range strings.Split(o.out, "\n") {
		if strings.Contains(l, string(x.spec.Instance)) {
			t.Errorf("a neighbour's instance id is visible: %q", l)
		}
	}
}
