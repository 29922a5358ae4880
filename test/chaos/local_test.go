package chaos

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
)

// TestLocalRunKilled kills a `firebreak run` at each of its failpoints, and runs
// that reap what it left. The next run answers right and removes what is left.
func TestLocalRunKilled(t *testing.T) {
	size, seed := plan()
	dir := t.TempDir()
	w, arm := newWorld(t, filepath.Join(dir, "data")), filepath.Join(dir, "arm")
	g := &ground{world: w, arm: arm}
	rng := rand.New(rand.NewPCG(seed, 0))
	run := func(what string) (string, error) {
		g.hits()
		g.say(t, what)
		cmd := w.alone("print(6*7)")
		cmd.Env = append(cmd.Env, failpoint.Env+"=@"+arm)
		out, err := cmd.CombinedOutput()
		found, _ := filepath.Glob(filepath.Join(w.data, "run", "*", "instances", "*"))
		for _, f := range found {
			w.see(f)
		}
		return string(out), err
	}
	mustRun := func(what string) []string {
		t.Helper()
		if out, err := run(what); err != nil || out != "42\n" {
			t.Fatalf("%v, %q", err, out)
		}
		return g.hits()
	}
	mustRun("") // the first time, it unpacks and lays out
	hits := (&matrix{size: size, rng: rng}).choose(mustRun("count"))
	const midway = "exec/after-evidence:1"
	if out, err := run(midway); err == nil {
		t.Fatalf("it lived, and printed %q", out)
	}
	reaping := mustRun("count")
	rng.Shuffle(len(reaping), func(i, j int) { reaping[i], reaping[j] = reaping[j], reaping[i] })
	count := 30
	if size.again >= 0 { // the steps of a sandbox are the server's, too
		rest := slices.DeleteFunc(slices.Clone(hits), func(h string) bool { return strings.HasPrefix(h, "local/") })
		rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
		hits = slices.DeleteFunc(hits, func(h string) bool { return slices.Contains(rest[8:], h) })
		count = 4
	}
	var plans [][]string
	for _, h := range hits {
		plans = append(plans, []string{h})
	}
	for _, h := range reaping[:min(count, len(reaping))] {
		plans = append(plans, []string{midway, h})
	}
	killed := 0
	for _, p := range plans {
		for i, h := range p {
			out, err := run(h)
			switch {
			case err != nil:
				killed++
			case i == 0: // what reaping does beside the run may come a little later, or not
				t.Errorf("%s: it lived, and printed %q", h, out)
			}
		}
		// A run that is over does not wait for what it reaps beside itself, so
		// that more than one may be needed on a slow machine.
		for try := 0; ; try++ {
			if out, err := run(""); err != nil || out != "42\n" {
				t.Errorf("%s: the next run: %v, %q", p, err, out)
			}
			n, err := filepath.Glob(filepath.Join(w.data, "run", "2*", "instances", "*"))
			if err != nil || try == 10 {
				t.Errorf("%s: after ten runs there is %v, %v", p, n, err)
			}
			if len(n) == 0 || try == 10 {
				break
			}
		}
	}
	reapAll(t, w)
	receipts(t, w, killed)
	t.Logf("%d failpoints, %d kills", len(points(hits)), killed)
}
