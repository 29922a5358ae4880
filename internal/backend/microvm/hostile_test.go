//go:build linux

package microvm

import (
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
