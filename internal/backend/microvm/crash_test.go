//go:build linux

package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/egress/wire"
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
	// Save has it take over the instance and save it there, and From make it of that.
	Save string
	From sandbox.Snapshot
	// Wire it has.
	Wire *sandbox.Wire
	// Fake: the monitor is the test's stand-in for Firecracker, with this kernel.
	Fake   *fireVMM
	Kernel string
}

// runHelper says "ready" once the instance is made, and ends when it may.
func runHelper(arg string) error {
	var h helper
	if err := json.Unmarshal([]byte(arg), &h); err != nil {
		return err
	}
	h.Config.Wires = wire.Machines{}
	b, err := New(h.Config)
	if err != nil {
		return err
	}
	if h.Fake != nil {
		b.look = pretend(b, h.Fake, h.Kernel)
	}
	if h.Save != "" {
		inst, err := b.Attach(context.Background(), h.ID)
		if err == nil {
			_, err = inst.(sandbox.Snapshotter).Snapshot(context.Background(), h.Save)
		}
		return err
	}
	var inst sandbox.Instance
	if spec := (sandbox.Spec{Instance: h.ID, Root: h.Root, Wire: h.Wire}); h.From.Dir != "" {
		inst, err = b.Restore(context.Background(), spec, h.From)
	} else {
		inst, err = b.Create(context.Background(), spec)
	}
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
	h.Config.Log = nil
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
	machines(t)
	root := minimalRoot(t)
	for _, c := range []struct {
		point string
		destroy,
		boots bool
	}{
		{"microvm.create/after-mkdir", false, false},
		{"microvm.create/after-intent", false, false},
		{"microvm.create/after-cgroup", false, false},
		{"wire.plug/after-tap:2", false, false}, // the first is the look around
		{"wire.plug/after-join:2", false, false},
		{"microvm.create/after-plug", false, false},
		{"microvm.create/after-files", false, false},
		{"microvm.create/after-start", false, false},
		{"microvm.create/after-processes", false, false},
		{"microvm.create/after-answer", false, true},
		{"microvm.destroy/after-kill", true, true},
		{"microvm.destroy/after-cgroup", true, true},
	} {
		t.Run(filepath.Base(filepath.Dir(c.point))+"-"+filepath.Base(c.point), func(t *testing.T) {
			if c.boots && testing.Short() {
				t.Skip("not run: -short, and it boots a machine")
			}
			dir := t.TempDir()
			b := open(t, dir)
			l, _ := openWire(t)
			h := helper{Config: b.cfg, Root: root, ID: sandbox.NewInstanceID(), Destroy: c.destroy, Wire: &l.Wire}
			cmd, _, _ := startHelper(t, h, failpoint.Env+"="+c.point)
			err := cmd.Wait()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
				t.Fatalf("the creator ended with %v, not by its failpoint", err)
			}
			if c.point == "microvm.create/after-mkdir" { // it has no name yet: the next Backend sweeps it away
				open(t, dir)
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
				return
			}
			all, err := b.List(patient(t))
			if err != nil || len(all) != 1 || all[0].Alive || all[0].Exit.Reason != sandbox.ReasonLost {
				t.Errorf("List = %+v, %v; want one, dead and lost", all, err)
			}
			checkRemoved(t, b, h.ID)
			if links := linksIn(t, l.Wire); !slices.Equal(links, []string{"lo", wire.LinkName}) {
				t.Errorf("the wire's namespace has %q", links)
			}
		})
	}
}

// checkRemoved attaches to an instance, whatever its state, destroys it and looks
// for what is left.
func checkRemoved(t *testing.T, b *Backend, id sandbox.InstanceID) {
	t.Helper()
	inst, err := b.Attach(patient(t), id)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	r, err := inst.Destroy(patient(t))
	if err != nil || !r.Clean {
		t.Errorf("Destroy: %+v, %v", r, err)
	}
	for _, f := range residue.Of(residue.Scope{Dirs: []string{b.cfg.Dir}}, string(id)) {
		t.Errorf("left: %s", f)
	}
	if p := named(id); len(p) > 0 {
		t.Errorf("processes are left: %v", p)
	}
	if _, err := os.Lstat(b.dir(id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
}

// TestOutlivesItsCreator is the other promise of a crash: what was handed out goes
// on, and the next Backend takes it over.
func TestOutlivesItsCreator(t *testing.T) {
	machines(t)
	b := open(t, t.TempDir())
	h := helper{Config: b.cfg, Root: minimalRoot(t), ID: sandbox.NewInstanceID()}
	_, out, kill := startHelper(t, h)
	if line, err := out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the creator says %q, %v", line, err)
	}
	kill()
	all, err := b.List(patient(t))
	if err != nil || len(all) != 1 || !all[0].Alive {
		t.Fatalf("List = %+v, %v; want one, alive", all, err)
	}
	inst, err := b.Attach(patient(t), h.ID)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := inst.Dial(patient(t))
	if err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(patient(t), func() { conn.Close() })
	defer stop()
	if err := handshake(conn); err != nil {
		t.Errorf("the agent does not answer the next host: %v", err)
	}
	checkRemoved(t, b, h.ID)
	if exit, err := inst.Wait(patient(t)); err != nil || exit.Reason != sandbox.ReasonOperator {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}
