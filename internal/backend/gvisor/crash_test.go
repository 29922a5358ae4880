//go:build linux

package gvisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// helperEnv makes the test binary a process that creates and destroys one
// instance, to be killed while it does.
const helperEnv = "FIREBREAK_TEST_HELPER"

// helper is what it is told.
type helper struct {
	Config  Config
	Root    sandbox.Root
	ID      sandbox.InstanceID
	Destroy bool

	Explicit sandbox.LimitSet
	Wire     *sandbox.Wire
}

// runHelper says "ready" once the instance is made, and ends when it may.
func runHelper(arg string) error {
	var h helper
	if err := json.Unmarshal([]byte(arg), &h); err != nil {
		return err
	}
	b, err := New(h.Config)
	if err != nil {
		return err
	}
	inst, err := b.Create(context.Background(), sandbox.Spec{Instance: h.ID, Root: h.Root, Explicit: h.Explicit, Wire: h.Wire})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if h.Destroy {
		_, err := inst.Destroy(context.Background())
		return err
	}
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// startHelper starts the process; kill ends it like kill -9 and waits.
func startHelper(t *testing.T, h helper, env ...string) (cmd *exec.Cmd, out *bufio.Reader, kill func()) {
	t.Helper()
	arg, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, helperEnv+"="+string(arg))...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	return cmd, bufio.NewReader(stdout), kill
}

// TestKilledWhileCreating kills the creator at each of its steps: the next one
// finds the instance, dead, and removes it whole.
func TestKilledWhileCreating(t *testing.T) {
	root := minimalRoot(t)
	for _, c := range []struct {
		point   string
		destroy bool
	}{
		{"gvisor.create/after-intent", false},
		{"gvisor.create/after-cgroup", false},
		{"gvisor.create/after-files", false},
		{"gvisor.create/after-start", false},
		{"gvisor.create/after-created", false},
		{"gvisor.create/after-answer", false},
		{"gvisor.destroy/after-kill", true},
		{"gvisor.destroy/after-cgroup", true},
	} {
		t.Run(filepath.Base(filepath.Dir(c.point))+"-"+filepath.Base(c.point), func(t *testing.T) {
			dir := t.TempDir()
			b := open(t, dir)
			h := helper{Config: b.cfg, Root: root, ID: sandbox.NewInstanceID(), Destroy: c.destroy}
			h.Config.Log = nil
			cmd, _, _ := startHelper(t, h, failpoint.Env+"="+c.point)
			err := cmd.Wait()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("the creator ended with %v, not by its failpoint", err)
			}
			checkDead(t, b, h.ID)
			checkRemoved(t, b, h.ID)
		})
	}
}

// TestKilledAnywhere does the same at moments nobody chose.
func TestKilledAnywhere(t *testing.T) {
	root := minimalRoot(t)
	n := 12
	if testing.Short() {
		n = 4
	}
	for range n {
		dir := t.TempDir()
		b := open(t, dir)
		h := helper{Config: b.cfg, Root: root, ID: sandbox.NewInstanceID()}
		h.Config.Log = nil
		_, _, kill := startHelper(t, h)
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		kill()
		if _, err := os.Lstat(b.dir(h.ID)); err != nil {
			continue // it had not begun
		}
		checkRemoved(t, b, h.ID)
	}
}

// TestOutlivesItsCreator is the other promise of a crash: what was handed out
// goes on, and the next Backend takes it over.
func TestOutlivesItsCreator(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	h := helper{Config: b.cfg, Root: minimalRoot(t), ID: sandbox.NewInstanceID()}
	h.Config.Log = nil
	_, out, kill := startHelper(t, h)
	if line, err := out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the creator says %q, %v", line, err)
	}
	kill()
	ctx := within(t)
	all, err := b.List(ctx)
	if err != nil || len(all) != 1 || !all[0].Alive {
		t.Fatalf("List = %+v, %v; want one, alive", all, err)
	}
	inst, err := b.Attach(ctx, h.ID)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := inst.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(conn); err != nil {
		t.Errorf("the agent does not answer the next host: %v", err)
	}
	checkRemoved(t, b, h.ID)
	if exit, err := inst.Wait(ctx); err != nil || exit.Reason != sandbox.ReasonOperator {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

// TestCanceledAnywhere cancels creations at random moments: what fails has left
// nothing, what succeeds works.
func TestCanceledAnywhere(t *testing.T) {
	root, dir := minimalRoot(t), t.TempDir()
	b := open(t, dir)
	base, err := residue.Take(residue.Scope{Dirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	n := 30
	if testing.Short() {
		n = 6
	}
	began := time.Now()
	inst, err := b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	boot := time.Since(began)
	if _, err := inst.Destroy(within(t)); err != nil {
		t.Fatal(err)
	}
	var made, failed int
	for range n {
		ctx, cancel := context.WithCancel(context.Background())
		stop := time.AfterFunc(rand.N(boot*5/4), cancel)
		id := sandbox.NewInstanceID()
		inst, err := b.Create(ctx, sandbox.Spec{Instance: id, Root: root})
		stop.Stop()
		cancel()
		if err != nil {
			failed++
			if k := sandbox.KindOf(err); k != sandbox.KindCanceled {
				t.Errorf("a canceled Create: %v, kind %s", err, k)
			}
			if _, err := os.Lstat(b.dir(id)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left", b.dir(id))
			}
			continue
		}
		made++
		if r, err := inst.Destroy(context.Background()); err != nil || !r.Clean {
			t.Errorf("Destroy: %+v, %v", r, err)
		}
	}
	t.Logf("%d made, %d canceled", made, failed)
	for _, f := range base.Diff() {
		t.Errorf("left behind: %s", f)
	}
}

// TestManyAtOnce creates eight at once, on the way to which every one of them
// joins and leaves cgroups on threads of this process.
func TestManyAtOnce(t *testing.T) {
	root, dir := minimalRoot(t), t.TempDir()
	b := open(t, dir)
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	insts := make([]sandbox.Instance, 8)
	for k := range insts {
		wg.Go(func() {
			var err error
			if insts[k], err = b.Create(within(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: root}); err != nil {
				t.Errorf("Create: %v", err)
			}
		})
	}
	wg.Wait()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		got, err := os.ReadFile(filepath.Join("/proc/self/task", task.Name(), "cgroup"))
		if err == nil && string(got) != string(self) {
			t.Errorf("thread %s was left in\n%s", task.Name(), got)
		}
	}
	for _, inst := range insts {
		if inst != nil {
			checkRemoved(t, b, inst.ID())
		}
	}
}

// checkDead asserts that id is listed, and not alive.
func checkDead(t *testing.T, b *Backend, id sandbox.InstanceID) {
	t.Helper()
	all, err := b.List(within(t))
	if err != nil || len(all) != 1 || all[0].Instance != id {
		t.Fatalf("List = %+v, %v; want %s", all, err, id)
	}
	if all[0].Alive || all[0].Exit.Reason == "" {
		t.Errorf("%+v: want dead with a reason", all[0])
	}
}

// checkRemoved destroys id and asserts that nothing is left.
func checkRemoved(t *testing.T, b *Backend, id sandbox.InstanceID) {
	t.Helper()
	inst, err := b.Attach(within(t), id)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	r, err := inst.Destroy(within(t))
	if err != nil || !r.Clean {
		t.Errorf("Destroy: %+v, %v", r, err)
	}
	for _, f := range residue.Of(residue.Scope{Dirs: []string{b.cfg.Dir}}, string(id)) {
		t.Errorf("left behind: %s", f)
	}
	if all, err := b.List(within(t)); err != nil {
		t.Error(err)
	} else {
		for _, st := range all {
			if st.Instance == id {
				t.Errorf("%s is still listed", id)
			}
		}
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestNeverTakenForCrashed lists while others create: an instance shows up as
// alive or not at all.
func TestNeverTakenForCrashed(t *testing.T) {
	dir := t.TempDir()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				entries, err := os.ReadDir(dir)
				if err != nil {
					t.Error(err)
				}
				for _, e := range entries {
					d := filepath.Join(dir, e.Name())
					if _, err := os.Lstat(d); err == nil && sandbox.InstanceID(e.Name()).Valid() {
						making, err := beingMade(d)
						if making || err != nil {
							continue
						}
						if _, err := os.Lstat(d); err == nil { // it is still there: not removed meanwhile
							t.Errorf("%s looks crashed", e.Name())
						}
					}
				}
			}
		})
	}
	for range 300 {
		id := sandbox.NewInstanceID()
		d := filepath.Join(dir, string(id))
		lock, err := writeIntent(d, intent{Instance: id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := writeIntent(d, intent{Instance: id}); !errors.Is(err, os.ErrExist) {
			t.Errorf("a second maker: %v", err)
		}
		gone := filepath.Join(dir, ".gone")
		if err := errors.Join(os.Rename(d, gone), os.RemoveAll(gone)); err != nil {
			t.Fatal(err)
		}
		lock.Close()
	}
	close(stop)
	wg.Wait()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestRootless creates and destroys as a user without any privilege. Limits
// that need cgroups are not claimed, and not accepted when asked for.
func TestRootless(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root, to become somebody else")
	}
	const nobody = 65534
	shared, err := os.MkdirTemp("", "fb") // t.TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shared) })
	b := open(t, t.TempDir()) // skips where nothing can run
	copyTo := func(from, to string) {
		if out, err := exec.Command("cp", "-r", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	self, root := filepath.Join(shared, "test"), minimalRoot(t)
	copyTo(os.Args[0], self)
	copyTo(b.cfg.Runsc, filepath.Join(shared, "runsc"))
	copyTo(b.cfg.Runtime, filepath.Join(shared, "runtime"))
	copyTo(root.Dir, filepath.Join(shared, "root"))
	root.Dir = filepath.Join(shared, "root")
	own := filepath.Join(shared, "own")
	if err := errors.Join(os.Mkdir(own, 0o700), os.Chown(own, nobody, nobody), os.Chmod(shared, 0o755), os.Chmod(root.Dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	h := helper{Root: root, ID: sandbox.NewInstanceID(), Destroy: true, Config: Config{
		Dir: filepath.Join(own, "instances"), Runsc: filepath.Join(shared, "runsc"), Runtime: filepath.Join(shared, "runtime")}}
	run := func(h helper) (string, error) {
		arg, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(within(t), self)
		cmd.Dir = shared
		cmd.Env = append(os.Environ(), helperEnv+"="+string(arg))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(h); err != nil || out != "ready\n" {
		t.Errorf("as nobody: %v: %s", err, out)
	}
	h.ID, h.Explicit = sandbox.NewInstanceID(), sandbox.LimitMemory
	if out, err := run(h); err == nil || !strings.Contains(out, "cannot enforce the memory limit") {
		t.Errorf("an explicit memory limit: %v: %s", err, out)
	}
	h.ID, h.Explicit, h.Wire = sandbox.NewInstanceID(), 0, &sandbox.Wire{}
	if out, err := run(h); err == nil || !strings.Contains(out, "networks for root only") {
		t.Errorf("a wire: %v: %s", err, out)
	}
	for _, f := range residue.Of(residue.Scope{Dirs: []string{own}}, string(h.ID)) {
		t.Errorf("left behind: %s", f)
	}
	if entries, err := os.ReadDir(h.Config.Dir); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
