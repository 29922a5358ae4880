package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// alone is a `firebreak run` that brings its own server.
func (w *world) alone(code string) *exec.Cmd {
	cmd := w.command("run", "-c", code)
	cmd.Env = append(cmd.Env, "FIREBREAK_SOCKET="+filepath.Join(w.data, "none.sock"))
	return cmd
}

// TestNeighbours has a server with living sandboxes and eight runs at a time on
// one data directory, while the server is killed and started again and again and
// runs are killed at random. Those that live answer right, whoever reaps around
// them; of the dead nothing is left.
func TestNeighbours(t *testing.T) {
	_, seed := plan()
	length := 10 * time.Second
	if os.Getenv(envScope) == "full" {
		length = time.Minute
	}
	g := newGround(t)
	tr := g.trial(t, "neighbours")
	tr.say(t, "")
	tr.restart()
	for i := range 2 {
		sb := tr.newSandbox(client.CreateOptions{})
		text := fmt.Sprint("file of ", i)
		_, err := sb.WriteFile(tr.ctx, "file", strings.NewReader(text), 0o644)
		tr.must(err)
		tr.alive(sb.ID())
		tr.content(sb.ID(), "file", text)
	}
	tr.look()

	var wg sync.WaitGroup
	var lived, died atomic.Int64
	end := time.Now().Add(length)
	for i := range 8 {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for k := 0; time.Now().Before(end); k++ {
				doomed := rng.IntN(3) == 0
				if neighbour(t, tr.world, fmt.Sprintf("%d.%d", i, k), doomed, time.Duration(rng.IntN(2000))*time.Millisecond) {
					lived.Add(1)
				} else {
					died.Add(1)
				}
			}
		})
	}
	for time.Now().Before(end) {
		time.Sleep(time.Second)
		tr.kill()
		tr.kills++
		tr.restart()
		for _, p := range tr.promises {
			if err := p.holds(); err != nil {
				tr.errorf("%s: %v", p.what, err)
			}
		}
	}
	wg.Wait()
	t.Logf("%d runs lived, %d were killed, the server %d times", lived.Load(), died.Load(), tr.kills)
	if lived.Load() == 0 || died.Load() == 0 {
		t.Error("that proves nothing")
	}
	reapAll(t, tr.world)
	tr.examine(nil)
	tr.kill()
	tr.server = nil
	receipts(t, tr.world, int(died.Load())+tr.kills)
}

// neighbour does one run, and kills it meanwhile if it is doomed. It reports
// whether the run lived to its end.
func neighbour(t *testing.T, w *world, text string, doomed bool, after time.Duration) bool {
	cmd, out := w.alone("print('"+text+"')"), &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return false
	}
	if doomed {
		kill := time.AfterFunc(after, func() { cmd.Process.Kill() })
		defer kill.Stop()
	}
	err := cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return false
	}
	if err != nil || out.String() != text+"\n" {
		t.Errorf("run %s: %v, %q", text, err, out)
	}
	return true
}

// reapAll makes what dead runs left old enough to be reaped, whatever state it
// was in, and lets runs reap it.
func reapAll(t *testing.T, w *world) {
	t.Helper()
	dir := filepath.Join(w.data, "run")
	for try := 0; ; try++ {
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if try == 20 {
			t.Fatalf("left of dead runs: %v", left)
		}
		old := time.Now().Add(-time.Hour)
		for _, e := range left {
			_ = os.Chtimes(filepath.Join(dir, e.Name()), old, old) // gone meanwhile
		}
		if out, err := w.alone("print(6*7)").CombinedOutput(); err != nil || string(out) != "42\n" {
			t.Fatalf("the next run: %v, %q", err, out)
		}
	}
}

// receipts checks the evidence of all runs: each chain is whole, each instance
// has one receipt, and one more only where a crash came between the receipt and
// the final record.
func receipts(t *testing.T, w *world, crashes int) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(w.data, "audit", "run-*"))
	if err != nil {
		t.Fatal(err)
	}
	again, ids := 0, []string{}
	for _, dir := range logs {
		if _, err := audit.Verify(dir); err != nil {
			t.Error(err)
			continue
		}
		made, n := map[sandbox.InstanceID]bool{}, map[sandbox.InstanceID]int{}
		for e, err := range audit.Scan(dir, 1) {
			if err != nil {
				t.Fatal(err)
			}
			switch r := e.Record; r.Action {
			case "sandbox.create":
				made[r.Instance] = true
				ids = append(ids, string(r.Instance))
			case "sandbox.receipt":
				n[r.Instance]++
				if !made[r.Instance] || r.Outcome != sandbox.OutcomeDone {
					t.Errorf("%s: %+v", dir, r)
				}
			}
		}
		for id := range n {
			again += n[id] - 1
		}
	}
	if again > crashes {
		t.Errorf("%d receipts too many after %d crashes", again, crashes)
	}
	for _, f := range residue.Of(residue.Scope{}, ids...) {
		t.Errorf("left behind: %v", f)
	}
	t.Logf("%d runs on record, %d receipts made again", len(logs), again)
}
