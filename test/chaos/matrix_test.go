package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// The environment of the crash matrix.
const (
	envScope  = "FIREBREAK_CHAOS"        // "full": more hits of each point, and many more pairs
	envSeed   = "FIREBREAK_CHAOS_SEED"   // of what is sampled; default 1
	envReport = "FIREBREAK_CHAOS_REPORT" // file that gets the table, in Markdown
	envOnly   = "FIREBREAK_CHAOS_ONLY"   // name of the one operation to look at
)

// sample is how much of the matrix a run visits.
type sample struct {
	each  int // hits of a point, at most
	again int // points per operation that a basic one was killed at already; -1: all
	pairs int // per operation: killed in it and then in its recovery
	times int // per operation: killed in it, and then this often in recoveries
}

func plan() (s sample, seed uint64) {
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err != nil {
		seed = 1
	}
	if os.Getenv(envScope) == "full" {
		return sample{each: 8, again: -1, pairs: 24, times: 5}, seed
	}
	return sample{each: 1, again: 3, pairs: 1}, seed
}

// tally is a row of the report.
type tally struct {
	name               string
	points, hits       int
	single, pair, more int // kills: in the operation; in the recovery after one; in later ones
	missed             int // crashes that did not happen where they were planned, but right after
	trials             int
	whole, gone        int
	promises           int
	lost, residues     int
	took               time.Duration
}

func (a *tally) add(tr *trial) {
	a.trials++
	a.whole += tr.whole
	a.gone += tr.gone
	a.promises += len(tr.promises)
	a.lost += tr.lost
	a.residues += tr.residues
}

// TestCrashMatrix kills a server at each step of each operation, and again while
// it recovers. The steps are found by counting, so a failpoint that is added
// anywhere is visited from then on.
func TestCrashMatrix(t *testing.T) {
	size, seed := plan()
	t.Logf("seed %d (%s)", seed, envSeed)
	grounds := make(chan *ground, 2)
	for range cap(grounds) {
		grounds <- newGround(t)
	}
	rows := make([]*tally, len(operations))
	var mu sync.Mutex
	known := map[string]bool{} // points of the basic operations
	for _, basic := range []bool{true, false} {
		t.Run(map[bool]string{true: "basic", false: "more"}[basic], func(t *testing.T) {
			for i, op := range operations {
				if only := os.Getenv(envOnly); op.basic != basic || only != "" && only != op.name {
					continue
				}
				rows[i] = &tally{name: op.name}
				t.Run(strings.ReplaceAll(op.name, " ", "-"), func(t *testing.T) {
					t.Parallel()
					g := <-grounds
					defer func() { grounds <- g }()
					m := &matrix{t: t, g: g, of: op.of, row: rows[i], size: size, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
					if !basic {
						m.known = known
					}
					seen := m.run()
					mu.Lock()
					defer mu.Unlock()
					for p := range seen {
						if basic {
							known[p] = true
						}
					}
				})
			}
		})
	}
	report(t, slices.DeleteFunc(rows, func(r *tally) bool { return r == nil }))
}

// matrix is one operation's part.
type matrix struct {
	t    *testing.T
	g    *ground
	of   func(*trial) scenario
	row  *tally
	size sample
	rng  *rand.Rand
	// known are the points at which basic operations are killed; of these this
	// one visits a few. nil: it is basic itself.
	known map[string]bool
}

// run fills the row, and returns the points of the operation.
func (m *matrix) run() map[string][]string {
	begun := time.Now()
	defer func() {
		m.row.took = time.Since(begun)
		if m.g.server != nil { // it belongs to this test, which ends
			m.g.server.cmd.Process.Kill()
			m.g.server.wait()
			m.g.server = nil
		}
	}()
	// The first time has the data directory as others left it. What only one of
	// the two reaches is work in the background.
	first, _ := m.trial("no crash", "count")
	hits, _ := m.trial("no crash", "count")
	hits = slices.DeleteFunc(hits, func(h string) bool { return !slices.Contains(first, h) })
	m.row.hits, m.row.points = len(hits), len(points(hits))
	if len(hits) == 0 {
		m.t.Fatal("the operation reaches no failpoint")
	}
	all := points(hits)
	var pairs [][2]string
	for _, h := range m.choose(hits) {
		_, recovery := m.trial(h, h)
		for _, r := range recovery {
			pairs = append(pairs, [2]string{h, r})
		}
	}
	m.rng.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	for _, p := range pairs[:min(len(pairs), m.size.pairs)] {
		m.trial(p[0]+", then "+p[1], p[0], p[1])
	}
	if m.size.times > 0 && len(pairs) > 0 {
		for range 2 {
			p := []string{pairs[m.rng.IntN(len(pairs))][0]}
			for range m.size.times {
				p = append(p, pairs[m.rng.IntN(len(pairs))][1])
			}
			m.trial(strings.Join(p, ", then "), p...)
		}
	}
	return all
}

// choose takes some hits of each point, the first and the last among them.
func (m *matrix) choose(hits []string) (chosen []string) {
	of := points(hits)
	if m.size.again >= 0 {
		var known []string
		for p := range of {
			if m.known[p] {
				known = append(known, p)
			}
		}
		slices.Sort(known)
		m.rng.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
		for _, p := range known[min(len(known), m.size.again):] {
			delete(of, p)
		}
	}
	for _, h := range hits { // in the order of the first hits
		p := pointOf(h)
		all := of[p]
		delete(of, p)
		switch n := m.size.each; {
		case len(all) <= n: // or none: visited, or not to be

			chosen = append(chosen, all...)
		case n == 1:
			chosen = append(chosen, all[m.rng.IntN(len(all))])
		default:
			for i := range n {
				chosen = append(chosen, all[i*(len(all)-1)/(n-1)])
			}
		}
	}
	return chosen
}

func pointOf(hit string) string { return hit[:strings.LastIndexByte(hit, ':')] }

func points(hits []string) map[string][]string {
	of := map[string][]string{}
	for _, h := range hits {
		of[pointOf(h)] = append(of[pointOf(h)], h)
	}
	return of
}

// trial does the operation once: with crashes at the given hits, the first in
// the operation, each later one in a recovery; or with "count" alone. It returns
// the hits of the operation and of the last recovery.
func (m *matrix) trial(name string, crashes ...string) (hits, recovery []string) {
	tr := m.g.trial(m.t, m.row.name+" / "+name)
	if tr.server == nil {
		tr.say(m.t, "")
		if !tr.start() {
			m.t.Fatalf("%s: the server was killed", tr.name)
		}
	} else {
		tr.follow()
	}
	sc := m.of(tr)
	if sc.before != nil {
		sc.before()
	}
	tr.hits()
	tr.say(m.t, crashes[0])
	sc.act()
	tr.look()
	if crashes[0] == "count" {
		hits = tr.settled()
		tr.say(m.t, "")
		if tr.over() {
			tr.restart()
		}
	} else {
		m.crash(tr, crashes[0], &m.row.single)
		for i, c := range crashes[1:] {
			tr.say(m.t, c)
			count := &m.row.pair
			if i > 0 {
				count = &m.row.more
			}
			tr.start()
			m.crash(tr, c, count)
			tr.look()
		}
		tr.say(m.t, "count")
		tr.restart()
		tr.say(m.t, "")
		recovery = tr.hits() // it was over when the server was ready
	}
	tr.examine(sc.after)
	m.row.add(tr)
	return hits, recovery
}

// crash waits for the planned crash. Work in the background does not come in
// the same order, or number, each time: a server that did not come by the point
// is killed where it is.
func (m *matrix) crash(tr *trial, at string, count *int) {
	if !tr.dead() {
		m.row.missed++
		m.t.Logf("%s: the crash at %s did not come", tr.name, at)
		tr.kill()
	}
	tr.kills++
	*count++
}

// restart starts a server that nothing kills.
func (tr *trial) restart() {
	tr.t.Helper()
	if !tr.start() {
		tr.t.Fatalf("%s: the server was killed", tr.name)
	}
}

// over reports whether the server has ended.
func (tr *trial) over() bool {
	select {
	case <-tr.server.dead:
		return true
	default:
		return false
	}
}

var reporting sync.Mutex

// report prints the table, and keeps it where that is asked for.
func report(t *testing.T, rows []*tally) {
	reporting.Lock()
	defer reporting.Unlock()
	sum := &tally{name: "all"}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprint(w, "operation\tfailpoints\thits\tkilled in it\tin its recovery\tin later ones\twhole\tgone\tacknowledged\tlost\tresidues\t\n")
	for _, r := range append(rows, sum) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", r.name, r.points, r.hits, r.single, r.pair, r.more,
			r.whole, r.gone, r.promises, r.lost, r.residues)
		if r == sum {
			break
		}
		sum.points += r.points
		sum.hits += r.hits
		sum.single += r.single
		sum.pair += r.pair
		sum.more += r.more
		sum.missed += r.missed
		sum.whole += r.whole
		sum.gone += r.gone
		sum.promises += r.promises
		sum.lost += r.lost
		sum.residues += r.residues
	}
	w.Flush()
	for _, r := range rows {
		fmt.Fprintf(&b, "%s: %d trials, %d crashes elsewhere than planned, %.1f s\n", r.name, r.trials, r.missed, r.took.Seconds())
	}
	t.Logf("\n%s", b.String())
	if path := os.Getenv(envReport); path != "" {
		if err := os.WriteFile(path, []byte(guide(append(rows, sum))), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// guide is docs/guides/crash-matrix.md.
func guide(rows []*tally) string {
	var b strings.Builder
	b.WriteString(guideText)
	b.WriteString("| operation | failpoints | hits | kills in it | kills in its recovery | kills in later recoveries | sandboxes whole | sandboxes gone | acknowledged | of these lost | residues |\n")
	b.WriteString("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %d | %d | %d | %d | %d | %d |\n", r.name, r.points, r.hits, r.single, r.pair, r.more,
			r.whole, r.gone, r.promises, r.lost, r.residues)
	}
	return b.String()
}

const guideText = `# The crash matrix

This file is written by ` + "`make chaos`" + `. A part of the matrix runs in ` + "`make test`" + `: every failpoint once, and pairs by sample.

A *failpoint* is a named place in the program before or after a durable effect or a host object. For each operation a test
counts which failpoints it passes, and how often. Then, for each of them, a server does the operation again and is killed
(SIGKILL, to itself) exactly there; the next server starts on what is left, and is, in part of the trials, killed at a failpoint
of its recovery, and the one after that again. When at last one is allowed to live:

- every sandbox is *whole* (a program runs in it) or *gone* (it has ended, and its receipt names nothing that is left);
- what was *acknowledged* is there: a created sandbox, a written file, output that a caller has seen, an idempotency key, an
  API key and its revocation, a destroy with its receipt, a run with its result and its artifacts. What was not is done in full or not at all;
- a process that was running runs on, and its output is in the sandbox's events, whole and once;
- the audit log's chain is whole, each effect is on record, and nothing of a sandbox comes before the record of its making. A receipt
  is on record once, and once more at most for each crash: between its record and the final one lies a step, too;
- after everything is destroyed, an oracle that does not ask Firebreak finds nothing: no process, cgroup, mount, socket or file,
  and nothing temporary in the data directory.

A crash planned at a place that work in the background did not reach this time happens right after the operation instead. Of a
failpoint that is hit often, eight hits are visited, the first and the last among them. Every trial kills once in the operation, also
those that kill again in a recovery: the three columns of kills add up to all there were.

` + "`FIREBREAK_CHAOS_SEED`" + ` chooses another sample, ` + "`FIREBREAK_CHAOS_ONLY`" + ` one operation.

`
