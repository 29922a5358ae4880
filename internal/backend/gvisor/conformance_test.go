//go:build linux

package gvisor

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

func TestConformance(t *testing.T) {
	root := minimalRoot(t)
	backendtest.Run(t, backendtest.Config{
		New:  func(t *testing.T, dir string) sandbox.Backend { return open(t, dir) },
		Root: func(*testing.T) sandbox.Root { return root },
		Frozen: func(t *testing.T, dir string) (sandbox.Backend, sandbox.Root) {
			b := open(t, dir)
			b.agent = []string{guest.AgentPath, "probe", "sleep", "1h"}
			return b, root
		},
		Kill: func(t *testing.T, b sandbox.Backend, id sandbox.InstanceID) {
			r, err := readRunning(b.(*Backend).dir(id))
			if err == nil {
				err = r.Sentry.kill()
			}
			if err != nil {
				t.Errorf("kill the sentry: %v", err)
			}
		},
		Wire: func(t *testing.T) backendtest.Wire {
			l, reopen := openWire(t)
			return backendtest.Wire{Wire: l.Wire, Tap: l.Tap, Reopen: func(t *testing.T) io.ReadWriteCloser { return reopen(t).Tap }}
		},
		Scope: func(dir string) residue.Scope { return residue.Scope{Dirs: []string{dir}} },
	})
}

// minimalRoot is a root file system with the mount points and no programs but
// those of the runtime.
func minimalRoot(t *testing.T) sandbox.Root {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"proc", "sys", "dev", "tmp", "etc", "usr", "home/user", "root", ".firebreak"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, perm := range map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "root": 0o700, ".": 0o755} {
		if err := os.Chmod(filepath.Join(dir, name), perm); err != nil {
			t.Fatal(err)
		}
	}
	home := filepath.Join(dir, "home/user")
	if err := os.Chown(home, guest.DefaultUID, guest.DefaultUID); err != nil { // not root: as templates do it
		if err := os.Chmod(home, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	for name, content := range map[string]string{"passwd": passwd, "hosts": "127.0.0.1 localhost\n", "resolv.conf": "# no network\n"} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return sandbox.Root{Digest: "sha256:test", Dir: dir}
}
