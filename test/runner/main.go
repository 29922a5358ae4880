// Command runner is what `make test` runs: every test of the module, with the
// race detector where a C compiler is at hand, and a verdict on what did not
// run.
//
// A test that cannot run here skips with a message starting "not run: ". On a
// Linux machine as root, such a skip fails the run unless the list in
// CONTRIBUTING.md names the test; elsewhere it is only counted. That way a
// missing tool can never pass for a passed test where everything is promised
// to run.
//
// Packages that measure a machine which they keep busy are tested one at a time,
// after the others. A test that failed is run again by itself: see again.go for when that
// counts.
//
// Then every fuzz target is fuzzed for -fuzztime (FIREBREAK_FUZZTIME; 0: not at
// all) and counts as one more test. An input that fails is printed, and stays in
// the package's testdata/fuzz.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type tally struct {
	passed, failed int
	skipped        []skip
	output         map[string][]string // by package and test, until its verdict
	failures       []failure
	flaky          []string
}

type skip struct{ name, reason string }

func main() {
	allow := flag.String("allow", "", "Markdown file whose section \"Not run\" lists the tests that may skip")
	short := flag.Bool("short", false, "pass -short, and do not fuzz")
	fuzz := flag.Duration("fuzztime", fuzzTime(), "how long to fuzz each target; 0: not at all")
	only := flag.Bool("fuzzonly", false, "run no tests, fuzz only")
	flag.Parse()
	allowed, err := readAllowed(*allow)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	start := time.Now()
	t := &tally{output: map[string][]string{}}
	ours, alone, sentry, runErr := packages(flag.Args())
	race := hasCompiler()
	for _, group := range []group{{packages: ours, race: race}, {packages: alone, race: race, alone: true}, {packages: sentry}} {
		if runErr == nil && len(group.packages) > 0 && !*only {
			group.short = *short
			runErr = t.run(group)
		}
	}
	if runErr == nil {
		runErr = t.again(func(s suspect, times int) (*tally, error) {
			second := &tally{output: map[string][]string{}}
			return second, second.run(group{packages: []string{s.pkg}, race: race, short: *short, alone: true, test: s.test, times: times})
		})
	}
	ours = append(ours, alone...)
	if runErr == nil && t.failed == 0 && !*short && *fuzz > 0 {
		runErr = t.fuzz(ours, *fuzz)
	}
	os.Exit(t.report(allowed, runErr, time.Since(start)))
}

// group is packages that are tested alike.
type group struct {
	packages []string
	race     bool
	short    bool
	alone    bool   // one package at a time
	test     string // the only one to run; "": all
	times    int    // how often; 0: once, or not at all if nothing has changed since
}

// module is what the names of packages begin with.
const module = "github.com/firebreak-dev/firebreak/"

// crowded are the packages that measure how a machine that is kept busy answers, or
// keep it so busy that others would. Two of them at once would measure each other.
var crowded = regexp.MustCompile(`^(internal/backend/(sim|microvm)|test/(hostile|model|overload))$`)

// packages lists what to test; apart from it what is tested by itself, and what
// links the sentry: that is built once, as the program is, and not again with the
// race detector.
func packages(patterns []string) (ours, alone, sentry []string, err error) {
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	out, err := exec.Command("go", append([]string{"list"}, patterns...)...).Output()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("go list: %w", err)
	}
	for _, p := range strings.Fields(string(out)) {
		switch {
		case strings.HasSuffix(p, "/cmd/firebreak-runsc") || strings.HasSuffix(p, "/bench/runsc"):
			sentry = append(sentry, p)
		case crowded.MatchString(strings.TrimPrefix(p, module)):
			alone = append(alone, p)
		default:
			ours = append(ours, p)
		}
	}
	return ours, alone, sentry, nil
}

// hasCompiler reports whether the race detector can be linked.
func hasCompiler() bool {
	_, err := exec.LookPath("gcc")
	if err != nil {
		fmt.Println("no C compiler: running without the race detector")
	}
	return err == nil
}

// run tests some packages. An error without a failed test is go's own.
func (t *tally) run(g group) error {
	args, cgo := []string{"test", "-json", "-vet=off", "-timeout=30m"}, "CGO_ENABLED=0"
	if g.race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	if g.short {
		args = append(args, "-short")
	}
	if g.alone {
		args = append(args, "-p=1")
	}
	if g.test != "" {
		args = append(args, "-run=^"+regexp.QuoteMeta(g.test)+"$")
	}
	if g.times > 0 {
		args = append(args, fmt.Sprint("-count=", g.times))
	}
	cmd := exec.Command("go", append(args, g.packages...)...)
	cmd.Env = append(os.Environ(), cgo)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // a build error, before any test
			continue
		}
		t.add(e)
	}
	if err := cmd.Wait(); err != nil && t.failed == 0 {
		return fmt.Errorf("go test: %w", err)
	}
	return nil
}

func (t *tally) add(e event) {
	key := e.Package + " " + e.Test
	name := strings.TrimPrefix(e.Package, module) + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if e.Test == "" {
			if s := e.Output; strings.HasPrefix(s, "ok ") || strings.HasPrefix(s, "FAIL\t") || strings.HasPrefix(s, "panic") || e.Action == "build-output" {
				fmt.Print(s)
			}
		}
		t.output[key] = append(t.output[key], e.Output)
		return
	case "pass":
		if e.Test != "" {
			t.passed++
		}
	case "skip":
		if e.Test != "" {
			t.skipped = append(t.skipped, skip{name, reason(t.output[key])})
		}
	case "fail":
		if e.Test != "" {
			t.failed++
		}
		top, _, _ := strings.Cut(e.Test, "/")
		t.failures = append(t.failures, failure{suspect{e.Package, top}, name, strings.Join(t.output[key], "")})
	default:
		return
	}
	delete(t.output, key)
}

var skipLine = regexp.MustCompile(`^\s+\S+_test\.go:\d+: |^\s+\S+\.go:\d+: `)

// reason extracts what t.Skip was told.
func reason(lines []string) string {
	for _, l := range lines {
		if loc := skipLine.FindStringIndex(l); loc != nil {
			return strings.TrimSpace(l[loc[1]:])
		}
	}
	return "no reason given"
}

func (t *tally) report(allowed []string, runErr error, took time.Duration) int {
	bad := runErr != nil || t.failed > 0
	for _, f := range t.flaky {
		fmt.Println(f)
	}
	for _, f := range t.failures {
		fmt.Println("--- " + f.name + "\n" + f.text)
	}
	strict := runtime.GOOS == "linux" && os.Geteuid() == 0
	for _, s := range t.skipped {
		ok := slices.ContainsFunc(allowed, func(a string) bool { return s.name == a || strings.HasPrefix(s.name, a+"/") })
		mark := ""
		if strict && !ok {
			mark, bad = "  <- not on the list in CONTRIBUTING.md: fails the run", true
		}
		fmt.Printf("%s: %s%s\n", s.name, s.reason, mark)
	}
	if runErr != nil {
		fmt.Println(runErr)
	}
	fmt.Printf("took %s\n", took.Round(time.Second))
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, t.failed, len(t.skipped))
	if bad {
		return 1
	}
	return 0
}

// readAllowed returns the `code` entries of the list below the heading
// "Not run": package path and test name.
func readAllowed(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	_, section, found := strings.Cut(string(data), "\n## Not run\n")
	if !found {
		return nil, fmt.Errorf("%s has no section \"Not run\"", file)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var names []string
	for _, m := range regexp.MustCompile("(?m)^- `([^`]+)`").FindAllStringSubmatch(section, -1) {
		names = append(names, m[1])
	}
	return names, nil
}
