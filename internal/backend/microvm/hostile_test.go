//go:build linux

package microvm

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestHostileAgent: machines whose agent was taken over. Each script ends the call
// that met it, none keeps the machine from being destroyed, and one that ends the
// agent ends the machine with a reason.
func TestHostileAgent(t *testing.T) {
	good := machines(t)
	runtime := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(runtime, filepath.Base(guest.AgentPath)), "./test/hostile/agent")
	build.Dir, build.Env = "../../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cfg := good.cfg
	cfg.Runtime = runtime
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, c := range []struct {
		name    string
		scripts []string
		ends    bool
	}{
		{"frames", []string{"half-frame", "negative-length", "bad-checksum", "forged-exit", "blind-flood"}, false},
		{"spins", []string{"spin"}, false},
		{"panics", []string{"panic"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.name != "frames" {
				t.Skip("not run: -short, and it boots a machine")
			}
			inst, err := b.Create(patient(t), sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)})
			if err != nil {
				t.Fatal(err)
			}
			for _, script := range c.scripts {
				meet(t, inst, script)
			}
			if c.ends {
				if exit, err := inst.Wait(patient(t)); err != nil || exit.Reason != sandbox.ReasonCrashed || exit.Detail == "" {
					t.Errorf("%+v, %v", exit, err)
				}
			}
			began := time.Now()
			if r, err := inst.Destroy(context.Background()); err != nil || !r.Clean {
				t.Errorf("Destroy: %+v, %v", r, err)
			}
			if took := time.Since(began); took > destroyTimeout {
				t.Errorf("Destroy took %s", took)
			}
		})
	}
}

// meet has a session run a script, and waits for the call's end.
func meet(t *testing.T, inst sandbox.Instance, script string) {
	t.Helper()
	conn, err := inst.Dial(patient(t))
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	defer conn.Close()
	s, err := guest.Open(patient(t), conn, guest.Config{})
	if err != nil {
		t.Fatalf("%s: the agent before it: %v", script, err)
	}
	defer s.Close()
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		p, err := s.Exec(ctx, guest.Command{Argv: []string{"chaos", script}})
		if err == nil {
			stop := context.AfterFunc(ctx, func() { p.Close() })
			defer stop()
			go io.Copy(io.Discard, p.Stderr())
			io.Copy(io.Discard, p.Stdout())
			_, err = p.Wait(ctx)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Logf("%s: %v", script, err)
	case <-time.After(time.Minute):
		t.Fatalf("%s: the call hangs", script)
	}
}

// TestManyStreams: as many transfers as a caller can open, none of which it reads,
// and as many programs. What does not fit is refused with a type, the host holds
// nothing for any of them, and all is as before when they are gone.
func TestManyStreams(t *testing.T) {
	b := machines(t)
	_, s := boot(t, b)
	if _, err := s.WriteFile(patient(t), "/tmp/big", bytes.NewReader(make([]byte, 2<<20)), guest.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := descriptors()
	var readers []*guest.FileReader
	var refused error
	for len(readers) < 200 && refused == nil {
		r, err := s.ReadFile(patient(t), "/tmp/big", guest.ReadOptions{})
		if err != nil {
			refused = err
			break
		}
		readers = append(readers, r)
	}
	if sandbox.KindOf(refused) != sandbox.KindCapacity || len(readers) < 8 {
		t.Errorf("after %d transfers that nobody reads: %v", len(readers), refused)
	}
	var programs []*guest.Process
	for range 4 {
		p, err := s.Exec(patient(t), guest.Command{Argv: []string{guest.AgentPath, "probe", "out", "10000000"}})
		if err != nil {
			t.Fatalf("a program beside them: %v", err)
		}
		programs = append(programs, p)
	}
	if n := descriptors(); n > before+8 {
		t.Errorf("the host has %d descriptors, it had %d", n, before)
	}
	if err := s.Ping(patient(t)); sandbox.KindOf(err) != sandbox.KindCapacity { // a call like the others
		t.Errorf("the machine did not survive it: %v", err)
	}
	for _, r := range readers {
		r.Close()
	}
	for _, p := range programs {
		s.Signal(patient(t), p.ID(), 9)
		p.Close()
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := s.ReadAll(patient(t), "/tmp/big", "", 16<<20)
		if err == nil {
			break
		}
		if sandbox.KindOf(err) != sandbox.KindCapacity || time.Now().After(end) {
			t.Fatalf("when they are gone: %v", err)
		}
	}
}
