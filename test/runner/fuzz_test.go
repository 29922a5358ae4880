package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const gomod = `module example.test/m
go 1.26
`

const targets = `package m

import "testing"

func FuzzRight(f *testing.F) {
	f.Add("a")
	f.Fuzz(func(t *testing.T, s string) { _ = len(s) })
}

func FuzzWrong(f *testing.F) {
	f.Add("seed")
	f.Fuzz(func(t *testing.T, s string) {
		if s == "bad" || len(s) > 3 && s != "seed" {
			t.Fatal("found it")
		}
	})
}
`

// TestFuzzStage: a target that finds something is a failed test that says what
// and how to see it again; one that does not is a passed test.
func TestFuzzStage(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": gomod, "m.go": "package m\n", "m_test.go": targets} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	f := &fuzzer{time: 2 * time.Second, jobs: 1, tmp: t.TempDir(), cache: t.TempDir(), t: &tally{}, out: io.Discard}
	list, err := discover([]string{"./..."})
	if err != nil || len(list) != 2 {
		t.Fatalf("found %v, %v", list, err)
	}
	if list, err = f.build(list); err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		f.run(x)
	}
	if f.t.passed != 1 || f.t.failed != 1 || len(f.t.failures) != 1 {
		t.Fatalf("%+v", f.t)
	}
	for _, want := range []string{"found it", "go test fuzz v1", "-run='^FuzzWrong/"} {
		if !strings.Contains(f.t.failures[0].text, want) {
			t.Errorf("%q is missing in\n%s", want, f.t.failures[0].text)
		}
	}
}

// TestOnlyDeadline: the end of the time is no finding; a finding, a hang and a
// failure that mentions the deadline among other lines are.
func TestOnlyDeadline(t *testing.T) {
	end := "fuzz: elapsed: 21s, execs: 7 (0/sec), new interesting: 1 (total: 2)\n--- FAIL: FuzzX (21.03s)\n    context deadline exceeded\nFAIL\n"
	for _, c := range []struct {
		name, out string
		want      bool
	}{
		{"the end", end, true},
		{"a finding", strings.Replace(end, "FAIL\n", "    \n    Failing input written to testdata/fuzz/FuzzX/1\nFAIL\n", 1), false},
		{"a hang", strings.Replace(end, "context deadline exceeded", "fuzzing process hung or terminated unexpectedly: exit status 2", 1), false},
		{"the test's own words", strings.Replace(end, "    context", "    x_test.go:9: context", 1), false},
		{"nothing", "", false},
	} {
		if got := onlyDeadline([]byte(c.out)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
