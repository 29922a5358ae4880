//go:build linux

package gvisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestOwnDir(t *testing.T) {
	for _, c := range []struct{ mount, root, own, want string }{
		{"/sys/fs/cgroup", "/", "/a/b.scope", "/sys/fs/cgroup/a/b.scope"},
		{"/sys/fs/cgroup", "/", "/", "/sys/fs/cgroup"},
		{"/sys/fs/cgroup", "/docker/x", "/docker/x/y", "/sys/fs/cgroup/y"}, // a container without a namespace
		{"/sys/fs/cgroup", "/docker/x", "/docker/xy", ""},
		{"/sys/fs/cgroup", "/docker/x", "/", ""},
		{"/sys/fs/cgroup", "/../..", "/", ""}, // mounted outside of our namespace
		{"/c", "/", "/a b (deleted)", "/c/a b"},
	} {
		got, err := ownDir(c.mount, c.root, "3:memory:/elsewhere\n0::"+c.own+"\n")
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s with root %s, in %s: %q, %v; want %q", c.mount, c.root, c.own, got, err, c.want)
		}
	}
	if _, err := ownDir("/c", "/", "3:memory:/\n"); err == nil {
		t.Error("a process in no version 2 hierarchy has a directory in one")
	}
}

// TestTerritory: which directory is ours, on hosts of every kind.
func TestTerritory(t *testing.T) {
	const (
		manager = "user.slice/user-1.slice/user@1.service"
		scope   = manager + "/app.slice/run-1.scope"
		session = "user.slice/user-1.slice/session-1.scope"
		service = "system.slice/firebreak.service"
	)
	for name, c := range map[string]struct {
		own     string
		root    bool
		marked  []string // delegated by systemd
		manages []string // holds a service manager
		may     []string // this user may write, with everything below
		want    string   // "-" for none
	}{
		"root in a session":                    {session, true, []string{manager}, []string{".", manager}, nil, "."},
		"root in a delegated service":          {service, true, []string{service}, []string{"."}, nil, service},
		"root in that service's own subgroup":  {service + "/" + supervisorLeaf, true, []string{service}, []string{"."}, nil, service},
		"root in an ordinary service":          {service, true, nil, []string{"."}, nil, "."},
		"root in a container":                  {".", true, []string{"."}, nil, nil, "."},
		"root of a container with a manager":   {"init.scope", true, []string{"."}, []string{"."}, nil, "."},
		"user in a delegated scope":            {scope, false, []string{scope, manager}, []string{".", manager}, []string{manager}, scope},
		"user below a delegated scope":         {scope + "/a/b", false, []string{scope, manager}, []string{".", manager}, []string{manager}, scope},
		"user in an ordinary scope":            {scope, false, []string{manager}, []string{".", manager}, []string{manager}, "-"},
		"user in a session":                    {session, false, []string{manager}, []string{".", manager}, []string{manager}, "-"},
		"user in a scope of an old systemd":    {scope, false, nil, []string{".", manager}, []string{manager}, scope},
		"user beside the manager of that":      {manager + "/init.scope", false, nil, []string{".", manager}, []string{manager}, manager + "/init.scope"},
		"user in a session of an old systemd":  {session, false, nil, []string{".", manager}, []string{manager}, "-"},
		"user with a directory of his own":     {"given/a", false, nil, nil, []string{"given"}, "given"},
		"user in the middle of what is root's": {"given/a", false, nil, nil, []string{"other"}, "-"},
		"user to whom all belongs":             {"a", false, nil, nil, []string{"."}, "."},
	} {
		t.Run(name, func(t *testing.T) {
			mount := t.TempDir()
			at := func(d string) string { return filepath.Join(mount, d) }
			for _, d := range append([]string{c.own}, append(c.marked, c.manages...)...) {
				if err := os.MkdirAll(at(d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range c.manages {
				if err := os.MkdirAll(at(d)+"/init.scope", 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, d := range c.marked {
				if err := unix.Setxattr(at(d), "user.delegate", []byte("1"), 0); err != nil {
					t.Skipf("not run: no extended attributes here: %v", err)
				}
			}
			may := func(dir string) bool {
				return slices.ContainsFunc(c.may, func(m string) bool { return dir == at(m) || strings.HasPrefix(dir, at(m)+"/") })
			}
			got, err := territory(mount, at(c.own), c.root, may)
			if c.want == "-" {
				var no *notDelegatedError
				if !errors.As(err, &no) {
					t.Errorf("%q, %v; want none", got, err)
				}
				return
			}
			if err != nil || got != at(c.want) {
				t.Errorf("%q, %v; want %q", got, err, at(c.want))
			}
		})
	}
}

// fakeKernel does what the kernel does with a version 2 directory's files: a
// process is in one directory, and a directory with processes hands nothing
// down. It returns what went wrong with the order of things.
func fakeKernel(t *testing.T, dir string) (broken func() error) {
	t.Helper()
	leaf := filepath.Join(dir, supervisorLeaf)
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{dir + "/cgroup.type", dir + "/cgroup.subtree_control", leaf + "/cgroup.procs"} {
		put(t, f, "")
	}
	put(t, dir+"/cgroup.procs", strconv.Itoa(os.Getpid())+"\n")
	var mu sync.Mutex
	var seen error
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-done })
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			in, _ := os.ReadFile(dir + "/cgroup.procs")
			on, _ := os.ReadFile(dir + "/cgroup.subtree_control")
			mu.Lock()
			if strings.HasPrefix(string(on), "+") && len(strings.TrimSpace(string(in))) > 0 {
				seen = errors.New("controllers were handed down by a directory with processes: EBUSY")
			}
			mu.Unlock()
			moved, _ := os.ReadFile(leaf + "/cgroup.procs")
			if pid := strings.TrimSpace(string(moved)); pid != "" {
				_ = os.WriteFile(dir+"/cgroup.procs", []byte(strings.ReplaceAll(string(in), pid+"\n", "")), 0o644)
			}
		}
	}()
	return func() error { mu.Lock(); defer mu.Unlock(); return seen }
}

func TestHandDownMovesOurselvesOnly(t *testing.T) {
	dir := t.TempDir()
	broken := fakeKernel(t, dir)
	if err := handDown(dir, []string{"memory", "pids"}); err != nil {
		t.Fatal(err)
	}
	if err := broken(); err != nil {
		t.Error(err)
	}
	if got := get(t, dir+"/cgroup.subtree_control"); got != "+memory +pids" {
		t.Errorf("handed down %q", got)
	}
	if got := get(t, filepath.Join(dir, supervisorLeaf, "cgroup.procs")); got != strconv.Itoa(os.Getpid()) {
		t.Errorf("%q in the leaf", got)
	}
	put(t, dir+"/cgroup.subtree_control", "cpu memory pids\n") // as the kernel shows it
	put(t, dir+"/cgroup.procs", "1\n")
	if err := handDown(dir, []string{"memory", "pids"}); err != nil {
		t.Errorf("what is handed down already needs nothing: %v", err)
	}
}

// TestForeignProcess: a directory with somebody else's process in it is left
// alone, whoever owns it.
func TestForeignProcess(t *testing.T) {
	dir := t.TempDir()
	fakeKernel(t, dir)
	// Process 1 has been there for longer than a fork takes; 0 is one that our
	// PID namespace does not show.
	for _, pid := range []int{1, 0} {
		put(t, dir+"/cgroup.procs", strconv.Itoa(pid)+"\n")
		var no *notDelegatedError
		if err := handDown(dir, []string{"memory"}); !errors.As(err, &no) || !strings.Contains(err.Error(), "process "+strconv.Itoa(pid)+", which is not ours") {
			t.Errorf("with process %d in it: %v", pid, err)
		}
		if got := get(t, dir+"/cgroup.subtree_control"); got != "" {
			t.Errorf("it was divided: %q", got)
		}
		if got := get(t, filepath.Join(dir, supervisorLeaf, "cgroup.procs")); got != "" {
			t.Errorf("%q was moved", got)
		}
	}
}

// TestGoHome: the last one out leaves the directory as it was; anybody else in
// the leaf keeps it.
func TestGoHome(t *testing.T) {
	dir := t.TempDir()
	leaf := filepath.Join(dir, supervisorLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	h := hierarchy{top: dir, controllers: []string{"cpu", "memory"}}
	put(t, dir+"/cgroup.procs", "")
	put(t, dir+"/cgroup.subtree_control", "cpu memory\n")
	put(t, leaf+"/cgroup.procs", fmt.Sprintf("%d\n1\n", os.Getpid()))
	if err := goHome(h); !errors.Is(err, unix.EBUSY) || get(t, dir+"/cgroup.procs") != "" || get(t, dir+"/cgroup.subtree_control") != "cpu memory\n" {
		t.Errorf("with another process in the leaf: %v", err)
	}
	put(t, leaf+"/cgroup.procs", fmt.Sprintln(os.Getpid()))
	_ = goHome(h) // removing the leaf fails: here it is a directory with a file in it
	if got := get(t, dir+"/cgroup.subtree_control"); got != "-cpu -memory" {
		t.Errorf("handed down: %q", got)
	}
	if got := get(t, dir+"/cgroup.procs"); got != strconv.Itoa(os.Getpid()) {
		t.Errorf("at home: %q", got)
	}
}

// TestOtherParent: an instance is found where its maker's cgroups were, by a
// Backend that would put it elsewhere; one that finds no cgroups at all still
// sees it alive.
func TestOtherParent(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	enforcing(t, b, sandbox.LimitMemory|sandbox.LimitPIDs)
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t), Limits: sandbox.Limits{Memory: 64 << 20}})
	x.Session.Close()
	dirs := x.intent.Cgroups
	cfg := b.cfg
	cfg.Cgroup = testCgroups + "-other"
	next, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	all, err := next.List(within(t))
	if err != nil || len(all) != 1 || !all[0].Alive || all[0].Usage.Memory == 0 {
		t.Fatalf("List = %+v, %v", all, err)
	}
	y, err := next.Attach(within(t), x.ID())
	if err != nil {
		t.Fatal(err)
	}
	if st, err := y.Status(within(t)); err != nil || st.Usage.PIDs == 0 || st.Usage.CPU == 0 || st.Usage.Memory == 0 {
		t.Errorf("usage is not measured where it is: %+v, %v", st.Usage, err)
	}
	r, err := y.Destroy(within(t))
	if err != nil || !r.Clean {
		t.Errorf("Destroy: %+v, %v", r, err)
	}
	for _, d := range dirs {
		if _, err := os.Lstat(d); err == nil {
			t.Errorf("%s is left", d)
		}
		if !slices.ContainsFunc(r.Objects, func(o sandbox.Object) bool { return o.Name == d }) {
			t.Errorf("the receipt does not name %s", d)
		}
	}
}

// TestCannotLook: what cannot be looked at is neither dead nor absent.
func TestCannotLook(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	x := create(t, b, sandbox.Spec{Root: minimalRoot(t)})
	next, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	// A directory in the place of a file cannot be read by root either.
	for _, name := range []string{fileProcesses, fileIntent} {
		file := filepath.Join(b.dir(x.ID()), name)
		aside := file + ".aside"
		if err := errors.Join(os.Rename(file, aside), os.Mkdir(file, 0o700)); err != nil {
			t.Fatal(err)
		}
		if all, err := next.List(within(t)); sandbox.KindOf(err) != sandbox.KindUnavailable {
			t.Errorf("List without %s: %+v, %v", name, all, err)
		}
		if _, err := next.Attach(within(t), x.ID()); sandbox.KindOf(err) != sandbox.KindUnavailable {
			t.Errorf("Attach without %s: %v", name, err)
		}
		if err := errors.Join(os.Remove(file), os.Rename(aside, file)); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := next.List(within(t)); err != nil || len(all) != 1 || !all[0].Alive {
		t.Errorf("List afterwards = %+v, %v", all, err)
	}
	// With its programs gone a Backend makes nothing, and sees what there is.
	cfg := b.cfg
	cfg.Runsc = "/nonexistent/runsc"
	blind, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer blind.Close()
	if info, err := blind.Info(within(t)); err != nil || info.Available {
		t.Errorf("Info = %+v, %v", info, err)
	}
	if all, err := blind.List(within(t)); err != nil || len(all) != 1 || !all[0].Alive {
		t.Errorf("List of a backend that does not work = %+v, %v", all, err)
	}
}
