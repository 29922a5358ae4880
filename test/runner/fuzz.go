package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
)

// fuzzEnv sets the default of -fuzztime.
const fuzzEnv = "FIREBREAK_FUZZTIME"

// defaultFuzz is how long each target is fuzzed.
const defaultFuzz = 10 * time.Second

// fuzzTime is what the environment says, or the default.
func fuzzTime() time.Duration {
	v := os.Getenv(fuzzEnv)
	if v == "" {
		return defaultFuzz
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		fmt.Fprintf(os.Stderr, "%s=%q is not a duration such as 20s, or 0 for none\n", fuzzEnv, v)
		os.Exit(2)
	}
	return d
}

// target is a function that fuzzes.
type target struct {
	pkg, dir, name string
	bin            string // its package's test binary
}

// fuzzer runs fuzz targets, a bounded number at a time: each has one worker, so
// that two cores run two targets.
type fuzzer struct {
	time  time.Duration
	jobs  int
	tmp   string
	cache string // of inputs that reach something new; go's own place
	out   io.Writer

	mu sync.Mutex // also of what is printed
	t  *tally     // guarded by mu
}

// fuzz runs every target of the packages and counts each as a test. An error
// is one of building, or of the runner.
func (t *tally) fuzz(packages []string, each time.Duration) error {
	f := &fuzzer{time: each, jobs: runtime.NumCPU(), t: t, out: os.Stdout}
	cache, err := exec.Command("go", "env", "GOCACHE").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	f.cache = filepath.Join(strings.TrimSpace(string(cache)), "fuzz")
	if f.tmp, err = os.MkdirTemp("", "firebreak-fuzz-"); err != nil {
		return err
	}
	defer os.RemoveAll(f.tmp)
	targets, err := discover(packages)
	if err != nil {
		return err
	}
	if targets, err = f.build(targets); err != nil {
		return err
	}
	work := make(chan target)
	var workers sync.WaitGroup
	for range f.jobs {
		workers.Go(func() {
			for x := range work {
				f.run(x)
			}
		})
	}
	for _, x := range targets {
		work <- x
	}
	close(work)
	workers.Wait()
	return nil
}

// discover finds the targets as `go test -list` would, but without linking
// every test binary of the module: in the test files that belong to this system.
func discover(packages []string) (targets []target, err error) {
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles"}, packages...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return targets, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
			names, err := fuzzFuncs(filepath.Join(p.Dir, name))
			if err != nil {
				return nil, err
			}
			for _, n := range names {
				targets = append(targets, target{pkg: p.ImportPath, dir: p.Dir, name: n})
			}
		}
	}
}

// fuzzFuncs lists the fuzz targets of a test file.
func fuzzFuncs(file string) (names []string, err error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") && fn.Type.Params.NumFields() == 1 {
			names = append(names, fn.Name.Name)
		}
	}
	return names, nil
}

// build makes each package's test binary once, instrumented for fuzzing.
func (f *fuzzer) build(targets []target) ([]target, error) {
	bins := map[string]string{}
	for i, x := range targets {
		bin, ok := bins[x.pkg]
		if !ok {
			bin = filepath.Join(f.tmp, strings.ReplaceAll(x.pkg, "/", "_")+".test")
			bins[x.pkg] = bin
			cmd := exec.Command("go", "test", "-c", "-vet=off", "-fuzz=.", "-o", bin, x.pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				return nil, fmt.Errorf("building %s for fuzzing: %w\n%s", x.pkg, err, out)
			}
		}
		targets[i].bin = bin
	}
	return targets, nil
}

// spare is what a target may take beyond its time: to begin, to minimise what
// it found, to end.
const spare = 2 * time.Minute

// run fuzzes one target.
func (f *fuzzer) run(x target) {
	ctx, cancel := context.WithTimeout(context.Background(), f.time+spare)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.bin, "-test.run=^$", "-test.fuzz=^"+x.name+"$", "-test.fuzztime="+f.time.String(), "-test.parallel=1",
		"-test.fuzzminimizetime=2s", "-test.fuzzcachedir="+filepath.Join(f.cache, x.pkg))
	cmd.Dir = x.dir
	cmd.WaitDelay = 10 * time.Second // its worker has the same pipe
	out, err := cmd.CombinedOutput()
	f.mu.Lock()
	defer f.mu.Unlock()
	name := strings.TrimPrefix(x.pkg, module) + " " + x.name
	if err == nil || onlyDeadline(out) {
		f.t.passed++
		fmt.Fprintf(f.out, "fuzz\t%s\t%s\n", name, progress(out))
		return
	}
	f.t.failed++
	f.t.failures = append(f.t.failures, failure{suspect{x.pkg, x.name}, fmt.Sprintf("fuzz %s: %v", name, err), string(out) + x.reproduce(out)})
}

// deadline is all that a target prints when its time ends in a race of Go
// 1.26's fuzzing coordinator, which then reports the end as a failure
// (https://go.dev/issue/75804; Go 1.27 has the fix, and this can go then).
var deadline = regexp.MustCompile(`(?m)^--- FAIL: Fuzz\w+ \([0-9.]+s\)\n    context deadline exceeded\nFAIL\n?\z`)

// onlyDeadline reports whether the fuzzing found nothing and failed by its own
// end only. A program that hangs or dies on an input says other words.
func onlyDeadline(out []byte) bool {
	return deadline.Match(out) && !written.Match(out)
}

var (
	written = regexp.MustCompile(`Failing input written to (\S+)`)
	execs   = regexp.MustCompile(`execs: (\d+) .*new interesting: (\d+)`)
)

// progress picks from the output how much was done.
func progress(out []byte) string {
	all := execs.FindAllSubmatch(out, -1)
	if len(all) == 0 {
		return "no execs reported"
	}
	last := all[len(all)-1]
	return fmt.Sprintf("%s execs, %s new inputs", last[1], last[2])
}

// reproduce shows the input that failed, which is all that a machine that is
// thrown away leaves, and how to run it again.
func (x target) reproduce(out []byte) string {
	m := written.FindSubmatch(out)
	if m == nil {
		return "to reproduce: go test " + x.pkg + " -run='^$' -fuzz='^" + x.name + "$'\n"
	}
	file := string(m[1])
	input, err := os.ReadFile(filepath.Join(x.dir, file))
	if err != nil {
		input = []byte(err.Error())
	}
	return fmt.Sprintf("input, as %s:\n%s\nto reproduce: go test %s -run='^%s/%s$'\n", file, input, x.pkg, x.name, filepath.Base(file))
}
