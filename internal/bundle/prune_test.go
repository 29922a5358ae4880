//go:build linux

package bundle

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPrune: a set goes when neither a process holds it nor a sandbox uses it,
// and one that is opened again afterwards is whole.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	libexec := filepath.Join(dir, "libexec")
	make := func(content string) set {
		return set{{name: "runsc", perm: 0o755, source: pack(t, content), packing: ".gz"}}
	}
	held, used, idle := make("held"), make("used"), make("idle")
	_, _, hold, err := held.hold(libexec)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	for _, s := range []set{used, idle} {
		_, _, f, err := s.hold(libexec)
		if err != nil {
			t.Fatal(err)
		}
		f.Close() // its process has ended
	}
	if err := os.Mkdir(filepath.Join(libexec, "mine"), 0o700); err != nil {
		t.Fatal(err)
	}
	asked := func() (map[string]bool, error) { return map[string]bool{used.digest(): true}, nil }
	removed, err := Prune(dir, asked)
	if err != nil || len(removed) != 1 || removed[0] != idle.digest() {
		t.Fatal(removed, err)
	}
	for name, want := range map[string]bool{held.digest(): true, used.digest(): true, idle.digest(): false, "mine": true} {
		if _, err := os.Stat(filepath.Join(libexec, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, _, f, err := idle.hold(libexec)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(d, "runsc")); err != nil || string(b) != "idle" {
		t.Errorf("%q, %v", b, err)
	}
	if removed, err := Prune(dir, asked); err != nil || len(removed) != 0 {
		t.Error(removed, err)
	}
	f.Close()
	if removed, err := Prune(dir, asked); err != nil || len(removed) != 1 {
		t.Error(removed, err)
	}
	if left, _ := filepath.Glob(filepath.Join(libexec, ".unpack-*")); len(left) != 0 {
		t.Error(left)
	}
	if removed, err := Prune(t.TempDir(), asked); err != nil || removed != nil {
		t.Error(removed, err)
	}
}

// TestPruneAgainstOpen: whoever opens a set while it is pruned gets a whole one
// that stays.
func TestPruneAgainstOpen(t *testing.T) {
	dir := t.TempDir()
	s := set{{name: "runsc", perm: 0o755, source: pack(t, "program"), packing: ".gz"}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := Prune(dir, func() (map[string]bool, error) { return nil, nil }); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 50 {
		d, _, f, err := s.hold(filepath.Join(dir, "libexec"))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(d, "runsc")); err != nil || string(b) != "program" {
			t.Fatalf("%q, %v", b, err)
		}
		f.Close()
	}
	close(stop)
	<-stopped
}
