//go:build linux

package microvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/bundle"
	"github.com/firebreak-dev/firebreak/internal/egress/wire"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// programs is the unpacked bundle, or why there is none; cache is shared by all
// tests, as it is by all servers of a data directory.
var (
	programs    *bundle.Bundle
	noPrograms  error
	cache       string
	testCgroups = fmt.Sprintf("firebreak-test-%d", os.Getpid())
)

// testRate is one no test gets near to.
var testRate = Rate{Bytes: 512 << 20, Ops: 50000}

func TestMain(m *testing.M) {
	if os.Getenv(jailerEnv) != "" {
		fakeJailer(os.Args[1:])
	}
	if arg := os.Getenv(helperEnv); arg != "" {
		if err := runHelper(arg); err != nil {
			fmt.Fprintln(os.Stderr, "helper:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "fb")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cache = filepath.Join(dir, "cache")
	programs, noPrograms = bundle.Open(dir)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// open returns a Backend over dir, closed when the test ends. The test is not run
// where there is no monitor, no kernel or no agent.
func open(t testing.TB, dir string) *Backend {
	t.Helper()
	if noPrograms != nil {
		t.Skipf("not run: %v", noPrograms)
	}
	b, err := New(Config{Dir: dir, Cache: cache, Runtime: programs.Runtime, Cgroup: testCgroups, Wires: wire.Machines{}, Rate: testRate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// machines is open for tests that boot.
func machines(t testing.TB) *Backend {
	t.Helper()
	b := open(t, t.TempDir())
	info, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !info.Available {
		t.Skipf("not run: %s (%s)", info.Reason, info.Hint)
	}
	return b
}

// patient bounds a step of a test: emulation on a busy machine takes its time.
func patient(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// minimalRoot is a root file system with the mount points and no programs but
// those of the runtime.
func minimalRoot(t testing.TB) sandbox.Root {
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
	if err := os.Chown(filepath.Join(dir, "home/user"), guest.DefaultUID, guest.DefaultUID); err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	for name, content := range map[string]string{"passwd": passwd, "hosts": "127.0.0.1 localhost\n", "resolv.conf": "# no network\n"} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return sandbox.Root{Digest: "sha256:test", Dir: dir}
}
