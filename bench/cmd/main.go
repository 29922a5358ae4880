// Command cmd runs the benches of issue-independent promises in
// SPECIFICATION.md and stores the results in bench/results.
//
//	go run ./bench/cmd [-only REGEXP] [-rounds N] [-out FILE] [-draw]
//
// With -only, rows that are not run stay in the file as they were. What is in the
// file that is committed is drawn in docs.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/bench"
	"github.com/firebreak-dev/firebreak/internal/template"
)

// latest are the results that documents speak of.
const latest = "bench/results/latest.json"

func main() {
	bench.ServeBare()
	bench.ServeRelay()
	bench.ServeReaper()
	only := flag.String("only", ".", "run the rows whose name matches")
	rounds := flag.Int("rounds", 40, "rounds per row")
	out := flag.String("out", latest, "where to store the results")
	binary := flag.String("firebreak", "bin/firebreak", "the program to measure")
	drawn := flag.Bool("draw", false, "measure nothing, draw what is stored")
	flag.Parse()
	if *drawn {
		if err := draw(*out); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *out, *only != ".", regexp.MustCompile(*only), *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// report is what is stored.
type report struct {
	Time    time.Time      `json:"time"`
	Go      string         `json:"go"`
	CPUs    int            `json:"cpus"`
	Kernel  string         `json:"kernel"`
	Load    string         `json:"load_before"`
	Results []bench.Result `json:"results"`
	Memory  []measure      `json:"memory"`
	Bounds  []bounded      `json:"bounds,omitempty"`
	Figures []figure       `json:"figures,omitempty"`
}

// measure is a single figure with a bound, not a ratio.
type measure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value_mib"`
	Goal  float64 `json:"goal_mib"`
	Met   bool    `json:"met"`
}

// bounded is a measure in other units.
type bounded struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Goal  float64 `json:"at_most"`
	Unit  string  `json:"unit,omitempty"`
	Met   bool    `json:"met"`
}

// figure is one that is told and has no bound.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// set is everything the rows share.
type set struct {
	d         *bench.Daemon
	runsc     *bench.Runsc  // nil until a row needs it
	net       *bench.Egress // nil until a row needs it
	templates *template.Store
	dir       string
	binary    string
	rounds    int
	want      *regexp.Regexp
	rep       *report
}

func run(ctx context.Context, binary, out string, keep bool, want *regexp.Regexp, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "firebreak-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d, err := bench.StartDaemon(ctx, binary, dir, nil)
	if err != nil {
		return err
	}
	defer d.Stop()
	templates, err := template.New(filepath.Join(dir, "peer-templates"), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	rep := &report{Time: time.Now().UTC(), Go: runtime.Version(), CPUs: runtime.NumCPU(), Kernel: read("/proc/sys/kernel/osrelease"), Load: read("/proc/loadavg")}
	s := &set{d: d, templates: templates, dir: dir, binary: binary, rounds: rounds, want: want, rep: rep}
	defer func() { err = firstError(err, s.close()) }()
	for _, row := range []func(context.Context) error{s.create, s.exec, s.eval, s.audited, s.get, s.write, s.memory, s.fork, s.resume, s.wire, s.contact, s.flood, s.wires, s.pool, s.poolLoad, s.poolMemory} {
		if err := row(ctx); err != nil {
			return err
		}
	}
	if keep {
		if err := rep.keep(out); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, append(data, '\n'), 0o644); err != nil {
		return err
	}
	fmt.Println("stored in", out)
	if out != latest {
		return nil
	}
	return draw(out)
}

// keep takes over what an earlier report says of other rows, and its head.
func (r *report) keep(file string) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var was report
	if err == nil {
		err = json.Unmarshal(data, &was)
	}
	if err != nil {
		return fmt.Errorf("the report to add to: %w", err)
	}
	was.Results = merge(was.Results, r.Results, func(v bench.Result) string { return v.Name })
	was.Memory = merge(was.Memory, r.Memory, func(v measure) string { return v.Name })
	was.Bounds = merge(was.Bounds, r.Bounds, func(v bounded) string { return v.Name })
	was.Figures = merge(was.Figures, r.Figures, func(v figure) string { return v.Name })
	*r = was
	return nil
}

// merge puts each of next in the place of the one of its name, or at the end.
func merge[T any](list, next []T, name func(T) string) []T {
	for _, v := range next {
		if i := slices.IndexFunc(list, func(o T) bool { return name(o) == name(v) }); i >= 0 {
			list[i] = v
		} else {
			list = append(list, v)
		}
	}
	return list
}

// close ends what rows have started.
func (s *set) close() (err error) {
	if s.runsc != nil {
		s.runsc.Close()
	}
	if s.net != nil {
		err = s.net.Close()
	}
	return err
}

// peer is upstream's runtime, which is built for the first row that needs it.
func (s *set) peer(ctx context.Context) (*bench.Runsc, error) {
	if s.runsc != nil {
		return s.runsc, nil
	}
	runsc := filepath.Join(s.dir, "runsc")
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", runsc, "./bench/runsc")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the peer: %w", err)
	}
	host, err := s.templates.Resolve(ctx, "host")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.dir, "peer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s.runsc = bench.NewRunsc(runsc, dir, host.Root)
	return s.runsc, nil
}

func read(path string) string {
	data, _ := os.ReadFile(path)
	return string(bytes.TrimSpace(data))
}

func (s *set) measure(ctx context.Context, row bench.Row) error {
	begun, load := time.Now().UTC(), read("/proc/loadavg")
	r, err := bench.Measure(ctx, row)
	if err != nil {
		return err
	}
	r.Time, r.Load = begun, load
	fmt.Println(r)
	s.rep.Results = append(s.rep.Results, r)
	return nil
}

// create: a cold sandbox and its first exec against plain runsc.
func (s *set) create(ctx context.Context) error {
	const name = "cold create + exec true"
	if !s.want.MatchString(name) {
		return nil
	}
	peer, err := s.peer(ctx)
	if err != nil {
		return err
	}
	ours := func(ctx context.Context) (time.Duration, error) {
		start := time.Now()
		id, err := s.d.Create(ctx, `{"template":"host","backend":"gvisor"}`)
		if err != nil {
			return 0, err
		}
		err = s.d.ExecTrue(ctx, id)
		took := time.Since(start)
		return took, firstError(err, s.d.Destroy(ctx, id))
	}
	return s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 2, Base: 1, Goal: 1.4, Columns: []bench.Column{
		{Name: "floor: fork+exec true", Run: bench.ForkTrue},
		{Name: "peer: runsc run … true", Run: peer.RunTrue},
		{Name: "ours: POST sandboxes, POST exec", Run: ours},
	}})
}

// exec: one more command in a live sandbox.
func (s *set) exec(ctx context.Context) error {
	const name = "exec true on a live sandbox"
	if !s.want.MatchString(name) {
		return nil
	}
	peer, err := s.peer(ctx)
	if err != nil {
		return err
	}
	live, end, err := peer.Start(ctx)
	if err != nil {
		return err
	}
	defer end()
	id, err := s.d.Create(ctx, `{"template":"host","backend":"gvisor"}`)
	if err != nil {
		return err
	}
	err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 2, Base: 1, Goal: 0.7, Columns: []bench.Column{
		{Name: "floor: fork+exec true", Run: bench.ForkTrue},
		{Name: "peer: runsc exec true", Run: func(ctx context.Context) (time.Duration, error) { return peer.ExecTrue(ctx, live) }},
		{Name: "ours: POST exec", Run: func(ctx context.Context) (time.Duration, error) {
			start := time.Now()
			err := s.d.ExecTrue(ctx, id)
			return time.Since(start), err
		}},
	}})
	return firstError(err, s.d.Destroy(ctx, id))
}

// eval: a turn of a warm interpreter, against one that is started for it.
func (s *set) eval(ctx context.Context) error {
	const name = "eval on a warm context"
	if !s.want.MatchString(name) {
		return nil
	}
	id, err := s.d.Create(ctx, `{"template":"host","backend":"gvisor"}`)
	if err != nil {
		return err
	}
	if err := s.d.Eval(ctx, id); err != nil { // starts the interpreter
		return err
	}
	column := func(name string, f func(context.Context, string) error) bench.Column {
		return bench.Column{Name: name, Run: func(ctx context.Context) (time.Duration, error) {
			start := time.Now()
			err := f(ctx, id)
			return time.Since(start), err
		}}
	}
	err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Goal: 1. / 30, Columns: []bench.Column{
		column("base: python3 -c in the same sandbox", s.d.FreshPython), column("ours: POST eval", s.d.Eval)}})
	return firstError(err, s.d.Destroy(ctx, id))
}

// audited: what the log costs those who run programs.
func (s *set) audited(ctx context.Context) (err error) {
	const name = "16 execs, 8 at a time, audited"
	if !s.want.MatchString(name) {
		return nil
	}
	var columns []bench.Column
	for _, real := range []bool{false, true} {
		dir, label := filepath.Join(s.dir, "unaudited"), "base: nothing is recorded"
		if real {
			dir, label = filepath.Join(s.dir, "audited"), "ours: the real log"
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		c, end, err2 := bench.Audited(ctx, label, dir, s.templates, real)
		if err2 != nil {
			return err2
		}
		defer func() { err = firstError(err, end()) }()
		columns = append(columns, c)
	}
	return s.measure(ctx, bench.Row{Name: name, Rounds: 4 * s.rounds, Ours: 1, Base: 0, Rate: true, Goal: 0.95, Columns: columns})
}

// get: what authentication, tenancy, the store and the encoder cost.
func (s *set) get(ctx context.Context) error {
	const name = "GET /v1/sandboxes/{id} with auth"
	if !s.want.MatchString(name) {
		return nil
	}
	id, err := s.d.Create(ctx, `{"template":"host","backend":"gvisor"}`)
	if err != nil {
		return err
	}
	body, err := s.d.Do(ctx, http.MethodGet, "/v1/sandboxes/"+id, nil, 0)
	if err != nil {
		return err
	}
	bare, end, err := bench.BareHandler(body)
	if err != nil {
		return err
	}
	defer end()
	err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Goal: 2.5, Columns: []bench.Column{bare, s.d.GetColumn(id)}})
	return firstError(err, s.d.Destroy(ctx, id))
}

// write: a file through the whole stack into the guest.
func (s *set) write(ctx context.Context) error {
	const name, size = "16 MiB file write through the API", 16 << 20
	if !s.want.MatchString(name) {
		return nil
	}
	floor, end, err := bench.SocketToFile(s.dir, size)
	if err != nil {
		return err
	}
	defer end()
	id, err := s.d.Create(ctx, `{"template":"host","backend":"gvisor","limits":{"memory_bytes":536870912}}`)
	if err != nil {
		return err
	}
	err = s.measure(ctx, bench.Row{Name: name, Rounds: s.rounds, Ours: 1, Base: 0, Rate: true, Goal: 0.4, Columns: []bench.Column{floor, s.d.WriteColumn(id, size)}})
	return firstError(err, s.d.Destroy(ctx, id))
}

// memory: what a hundred idle sandboxes cost.
func (s *set) memory(ctx context.Context) error {
	if !s.want.MatchString("memory") {
		return nil
	}
	const n = 100
	var ids []string
	defer func() {
		for _, id := range ids {
			s.d.Destroy(context.WithoutCancel(ctx), id)
		}
	}()
	for range n {
		id, err := s.d.Create(ctx, `{"template":"host","backend":"gvisor","limits":{"memory_bytes":67108864}}`)
		if err != nil {
			return fmt.Errorf("after %d sandboxes: %w", len(ids), err)
		}
		ids = append(ids, id)
	}
	time.Sleep(2 * time.Second) // idle means idle
	pss, processes, err := s.d.SandboxPSS()
	if err != nil {
		return err
	}
	rss, err := s.d.RSS()
	if err != nil {
		return err
	}
	fmt.Printf("memory with %d idle sandboxes (%d processes)\n", n, processes)
	s.figure("idle sandbox, PSS of all its processes", float64(pss)/n/(1<<20), 16)
	s.figure("daemon, RSS", float64(rss)/(1<<20), 60)
	return nil
}

func (s *set) figure(name string, value, goal float64) {
	m := measure{name, value, goal, value <= goal}
	s.rep.Memory = append(s.rep.Memory, m)
	verdict := "met"
	if !m.Met {
		verdict = "NOT MET"
	}
	fmt.Printf("    %-40s %8.2f MiB   goal ≤ %g MiB: %s\n", name, value, goal, verdict)
}

// bound tells and keeps a figure that has to be at most goal.
func (s *set) bound(name string, value, goal float64, unit string) {
	b := bounded{name, value, goal, unit, value <= goal}
	s.rep.Bounds = append(s.rep.Bounds, b)
	verdict := "met"
	if !b.Met {
		verdict = "NOT MET"
	}
	fmt.Printf("    %-60s %10.2f %s   goal ≤ %g: %s\n", name, value, unit, goal, verdict)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
