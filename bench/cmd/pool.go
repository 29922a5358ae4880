package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/bench"
)

const (
	poolSize  = 20 // what the rows keep ready: as many as are claimed in a row
	poolBurst = 100
	// How long the cycles go on that the figures are of, and until how many there are,
	// or how much time has passed, for what is left behind of all.
	poolTime   = 60 * time.Second
	poolCycles = 2000
	poolMost   = 150 * time.Second
)

// pool: what is served from sandboxes that are ready. A daemon of its own keeps
// poolSize of them, and each claim of a row finds it full.
func (s *set) pool(ctx context.Context) (err error) {
	rows := []func(context.Context, *bench.Daemon) error{s.poolClaim, s.poolFirst, s.poolEval, s.poolInARow}
	var d *bench.Daemon
	defer func() {
		if d != nil {
			d.Stop()
		}
	}()
	for k, name := range [][]string{{"pool: claim"}, {"pool: claim + exec code", "pool: claim + exec code, whole", "pool: claim + exec true"},
		{"pool: eval on a context", "pool: eval on a context, whole"}, {"pool: 20 claims in a row", "pool: 20 claims in a row, whole"}} {
		if !slices.ContainsFunc(name, s.want.MatchString) {
			continue
		}
		if d == nil {
			if d, err = bench.StartPool(ctx, s.binary, filepath.Join(s.dir, "pool"), poolSize, 2*poolSize); err != nil {
				return err
			}
		}
		if err := rows[k](ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// claiming is a column that claims a sandbox of a full pool, does something in it,
// and ends it with the clock stopped. What is done says how long it took.
func claiming(name string, d *bench.Daemon, use timed) bench.Column {
	return bench.Column{Name: name, Run: func(ctx context.Context) (time.Duration, error) {
		if err := d.Filled(ctx, poolSize); err != nil {
			return 0, err
		}
		id, took, err := claimed(ctx, d, use)
		if id != "" {
			err = firstError(err, d.Destroy(ctx, id))
		}
		return took, err
	}}
}

// timed does something in a sandbox and says how long it took, to wherever the clock of
// its row stops.
type timed func(ctx context.Context, id string) (time.Duration, error)

// claimed claims a sandbox and does something in it, nil: nothing.
func claimed(ctx context.Context, d *bench.Daemon, use timed) (id string, took time.Duration, err error) {
	start := time.Now()
	if id, err = d.Claim(ctx); err != nil {
		return "", 0, err
	}
	if took = time.Since(start); use == nil {
		return id, took, nil
	}
	more, err := use(ctx, id)
	return id, took + more, err
}

// whole times what is over when it returns.
func whole(f func(ctx context.Context, id string) error) timed {
	return func(ctx context.Context, id string) (time.Duration, error) {
		start := time.Now()
		err := f(ctx, id)
		return time.Since(start), err
	}
}

// misses tells how many claims were not served from what was ready since an earlier
// look.
func (s *set) misses(ctx context.Context, d *bench.Daemon, name string, was bench.Shelf) error {
	now, err := d.Shelves(ctx)
	if err != nil {
		return err
	}
	s.figureOf(name+", misses", float64(now.Misses-was.Misses), fmt.Sprintf("of %d claims", now.Hits-was.Hits+now.Misses-was.Misses))
	return nil
}

// figureOf tells and keeps a figure that has no bound.
func (s *set) figureOf(name string, value float64, unit string) {
	fmt.Printf("    %-60s %10.2f %s\n", name, value, unit)
	s.rep.Figures = append(s.rep.Figures, figure{name, value, unit})
}

// poolClaim: a create by itself, against one flush of what it must record.
func (s *set) poolClaim(ctx context.Context, d *bench.Daemon) error {
	floor, end, err := bench.Flush(d.Dir)
	if err != nil {
		return err
	}
	defer end()
	was, err := d.Shelves(ctx)
	if err != nil {
		return err
	}
	const name = "pool: claim"
	err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Goal: 3, Columns: []bench.Column{
		floor, claiming("ours: POST sandboxes", d, nil)}})
	return firstError(err, s.misses(ctx, d, name, was))
}

// clocks are where the clock of a row of code stops: at the first byte that is printed,
// here and on the host, which is what is promised; and when either has told all, by a
// name of its own.
func clocks(d *bench.Daemon) []clock {
	return []clock{
		{"", "the host's python3 -c, first byte", bench.HostFirst, "first byte", d.ExecFirst, d.EvalFirst},
		{", whole", "the host's python3 -c", bench.HostPython, "the answer", whole(d.ExecCode), whole(d.Eval)},
	}
}

type clock struct {
	name       string // behind that of the row
	base       string
	host       func(context.Context) (time.Duration, error)
	until      string // of ours
	exec, eval timed
}

// poolFirst: a create and its first exec.
func (s *set) poolFirst(ctx context.Context, d *bench.Daemon) error {
	for _, c := range clocks(d) {
		name := "pool: claim + exec code" + c.name
		if !s.want.MatchString(name) {
			continue
		}
		was, err := d.Shelves(ctx)
		if err != nil {
			return err
		}
		err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Goal: 0.25, Columns: []bench.Column{
			{Name: "base: " + c.base, Run: c.host}, claiming("ours: POST sandboxes, POST exec, "+c.until, d, c.exec)}})
		if err := firstError(err, s.misses(ctx, d, name, was)); err != nil {
			return err
		}
	}
	const command = "pool: claim + exec true"
	if !s.want.MatchString(command) {
		return nil
	}
	peer, err := s.peer(ctx)
	if err != nil {
		return err
	}
	was, err := d.Shelves(ctx)
	if err != nil {
		return err
	}
	err = s.measure(ctx, bench.Row{Name: command, Rounds: s.rounds, Ours: 1, Base: 0, Goal: 0.2, Columns: []bench.Column{
		{Name: "peer: runsc run … true", Run: peer.RunTrue}, claiming("ours: POST sandboxes, POST exec", d, whole(d.ExecTrue))}})
	return firstError(err, s.misses(ctx, d, command, was))
}

// poolEval: a turn of a warm interpreter, against one that the host starts for it.
func (s *set) poolEval(ctx context.Context, d *bench.Daemon) error {
	id, err := d.Claim(ctx)
	if err != nil {
		return err
	}
	err = d.Eval(ctx, id) // starts the interpreter
	for _, c := range clocks(d) {
		name := "pool: eval on a context" + c.name
		if err != nil || !s.want.MatchString(name) {
			continue
		}
		err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Goal: 0.1, Columns: []bench.Column{
			{Name: "base: " + c.base, Run: c.host},
			{Name: "ours: POST eval, " + c.until, Run: func(ctx context.Context) (time.Duration, error) { return c.eval(ctx, id) }}}})
	}
	return firstError(err, d.Destroy(ctx, id))
}

// poolInARow: as many claims, one after the other without a pause, as are ready. What
// is waited for behind a first byte is within none of the clocks, and no pause: who
// claims next has waited for it.
func (s *set) poolInARow(ctx context.Context, d *bench.Daemon) error {
	for _, c := range clocks(d) {
		name := "pool: 20 claims in a row" + c.name
		if !s.want.MatchString(name) {
			continue
		}
		was, err := d.Shelves(ctx)
		if err != nil {
			return err
		}
		ours := func(ctx context.Context) (time.Duration, error) {
			if err := d.Filled(ctx, poolSize); err != nil {
				return 0, err
			}
			var ids []string
			total, err := many(func() (time.Duration, error) {
				id, took, err := claimed(ctx, d, c.exec)
				if id != "" {
					ids = append(ids, id)
				}
				return took, err
			})
			for _, id := range ids {
				err = firstError(err, d.Destroy(ctx, id))
			}
			return total, err
		}
		err = s.measure(ctx, bench.Row{Name: name, Rounds: max(5, s.rounds/8), Ours: 1, Base: 0, Goal: 0.25, Columns: []bench.Column{
			{Name: "base: " + c.base + ", 20 times", Run: func(ctx context.Context) (time.Duration, error) {
				return many(func() (time.Duration, error) { return c.host(ctx) })
			}},
			{Name: "ours: 20 × POST sandboxes, POST exec, " + c.until, Run: ours}}})
		if err := firstError(err, s.misses(ctx, d, name, was)); err != nil {
			return err
		}
	}
	return nil
}

// many sums what poolSize times f take.
func many(f func() (time.Duration, error)) (total time.Duration, err error) {
	for range poolSize {
		took, err := f()
		if err != nil {
			return 0, err
		}
		total += took
	}
	return total, nil
}

// poolLoad: two clients that create, exec and destroy without a pause, a burst, and
// what is left of all that.
func (s *set) poolLoad(ctx context.Context) error {
	if !s.want.MatchString("pool: sustained") {
		return nil
	}
	d, err := bench.StartPool(ctx, s.binary, filepath.Join(s.dir, "load"), 8, 24)
	if err != nil {
		return err
	}
	stopped := false
	defer func() {
		if !stopped {
			d.Stop()
		}
	}()
	gone, err := s.sustained(ctx, d)
	if err != nil {
		return err
	}
	more, err := s.burst(ctx, d)
	if err != nil {
		return err
	}
	d.Stop()
	stopped = true
	left, err := d.Leftovers(append(gone, more...))
	entries, err2 := os.ReadDir(filepath.Join(d.Dir, "data", "instances"))
	if err := firstError(err, err2); err != nil {
		return err
	}
	s.bound("pool: sustained, left behind", float64(left+len(entries)), 0, "objects")
	return nil
}

// cycle is create, exec and destroy of one sandbox.
func cycle(ctx context.Context, d *bench.Daemon) (answered time.Duration, gone []string, err error) {
	start := time.Now()
	id, err := d.Claim(ctx)
	if err != nil {
		return 0, nil, err
	}
	err = d.ExecCode(ctx, id)
	answered = time.Since(start)
	gone, err2 := d.Receipt(ctx, id)
	return answered, gone, firstError(err, err2)
}

func (s *set) sustained(ctx context.Context, d *bench.Daemon) (gone []string, err error) {
	const name = "pool: sustained"
	if _, _, err := cycle(ctx, d); err != nil { // what is made once is made
		return nil, err
	}
	was, err := d.Shelves(ctx)
	if err != nil {
		return nil, err
	}
	cpu, err := d.CPU()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var took []time.Duration
	var clients sync.WaitGroup
	begun := time.Now()
	during := func(more func(n int) bool) {
		for range 2 {
			clients.Go(func() {
				for {
					mu.Lock()
					on := err == nil && more(len(took))
					mu.Unlock()
					if !on {
						return
					}
					t, paths, err2 := cycle(ctx, d)
					mu.Lock()
					took, gone, err = append(took, t), append(gone, paths...), firstError(err, err2)
					mu.Unlock()
				}
			})
		}
		clients.Wait()
	}
	during(func(int) bool { return time.Since(begun) < poolTime/6 })
	early, err2 := d.RSS()
	during(func(int) bool { return time.Since(begun) < poolTime })
	if err := firstError(err, err2, d.Filled(ctx, 8)); err != nil {
		return gone, err
	}
	now, err := d.CPU()
	if err != nil {
		return gone, err
	}
	fmt.Println(name)
	s.bound(name+", CPU of all processes for a cycle", float64((now-cpu).Milliseconds())/float64(len(took)), 80, "ms")
	s.figureOf(name+", cycles", float64(len(took)), "in "+time.Since(begun).Round(time.Second).String())
	slices.Sort(took)
	s.figureOf(name+", create + exec, median", took[len(took)/2].Seconds()*1000, "ms")
	s.figureOf(name+", create + exec, p99", took[len(took)*99/100].Seconds()*1000, "ms")
	if err := s.misses(ctx, d, name, was); err != nil {
		return gone, err
	}
	during(func(n int) bool { return n < poolCycles && time.Since(begun) < poolMost })
	late, err2 := d.RSS()
	if err := firstError(err, err2); err != nil {
		return gone, err
	}
	s.bound(name+", growth of the daemon after a sixth of the time", float64(late-early)/(1<<20), 8, "MiB")
	s.figureOf(name+", cycles in all", float64(len(took)), "")
	return gone, nil
}

// burst: as many creates at once as no pool holds.
func (s *set) burst(ctx context.Context, d *bench.Daemon) (gone []string, err error) {
	const name = "pool: burst of 100"
	was, err := d.Shelves(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var took []time.Duration
	var ids []string
	var failed []error
	var clients sync.WaitGroup
	for range poolBurst {
		clients.Go(func() {
			start := time.Now()
			id, err := d.Claim(ctx)
			if err == nil {
				err = d.ExecCode(ctx, id)
			}
			mu.Lock()
			defer mu.Unlock()
			if took = append(took, time.Since(start)); id != "" {
				ids = append(ids, id)
			}
			if err != nil {
				failed = append(failed, err)
			}
		})
	}
	clients.Wait()
	slices.Sort(took)
	fmt.Println(name)
	s.figureOf(name+", create + exec, median", took[len(took)/2].Seconds()*1000, "ms")
	s.figureOf(name+", create + exec, p99", took[len(took)*99/100].Seconds()*1000, "ms")
	s.bound(name+", failures", float64(len(failed)), 0, "")
	if len(failed) > 0 {
		fmt.Println("    one of them:", failed[0])
	}
	if err := s.misses(ctx, d, name, was); err != nil {
		return nil, err
	}
	for _, id := range ids {
		paths, err := d.Receipt(ctx, id)
		if err != nil {
			return gone, err
		}
		gone = append(gone, paths...)
	}
	return gone, nil
}

// poolMemory: what one more that is ready costs, of fifty.
func (s *set) poolMemory(ctx context.Context) error {
	const name, few, many = "pool: memory of the 50th that is ready", 25, 50
	if !s.want.MatchString(name) {
		return nil
	}
	var pss, rss, available [2]float64
	for k, n := range []int{few, many} {
		before, err := availableMemory()
		if err != nil {
			return err
		}
		d, err := bench.StartPool(ctx, s.binary, filepath.Join(s.dir, fmt.Sprintf("ready-%d", n)), n, n)
		if err != nil {
			return err
		}
		time.Sleep(2 * time.Second) // idle means idle
		p, _, err := d.SandboxPSS()
		r, err2 := d.SandboxRSS()
		after, err3 := availableMemory()
		d.Stop()
		if err := firstError(err, err2, err3); err != nil {
			return err
		}
		pss[k], rss[k], available[k] = float64(p)/(1<<20), float64(r)/(1<<20), float64(before-after)/(1<<20)
	}
	fmt.Println(name)
	marginal := func(v [2]float64) float64 { return (v[1] - v[0]) / (many - few) }
	s.figure(name+", PSS", marginal(pss), 40)
	s.figureOf(name+", RSS, as if nothing were shared", marginal(rss), "MiB")
	s.figureOf(name+", less MemAvailable", marginal(available), "MiB")
	return nil
}

// availableMemory is MemAvailable of the machine, in bytes.
func availableMemory() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("no MemAvailable in /proc/meminfo")
}
