package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Tests of which one fails once, one always, one every second time.
const shaky = `package m

import (
	"os"
	"strconv"
	"testing"
)

func count(t *testing.T) int {
	name := os.Getenv("COUNT") + "/" + t.Name()
	b, _ := os.ReadFile(name)
	n, _ := strconv.Atoi(string(b))
	if err := os.WriteFile(name, []byte(strconv.Itoa(n+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestGood(t *testing.T) {}

func TestOnce(t *testing.T) {
	n := count(t)
	t.Run("sub", func(t *testing.T) {
		if n == 0 {
			t.Error("too slow")
		}
	})
}
`

const (
	always = "\nfunc TestAlways(t *testing.T) { t.Error(\"wrong\") }\n"
	second = "\nfunc TestSecond(t *testing.T) {\n\tif count(t)%2 == 0 {\n\t\tt.Error(\"again\")\n\t}\n}\n"
	raced  = "\nfunc TestRace(t *testing.T) {\n\tif count(t) == 0 {\n\t\tt.Error(\"WARNING: DATA RACE\")\n\t}\n}\n"
	leaks  = "\nfunc TestMain(m *testing.M) {\n\tm.Run()\n\tif _, err := os.Stat(os.Getenv(\"COUNT\")+\"/left\"); err != nil {\n\t\tos.WriteFile(os.Getenv(\"COUNT\")+\"/left\", nil, 0o600)\n" +
		"\t\tprintln(\"a process is left\")\n\t\tos.Exit(1)\n\t}\n}\n"
	panics = "\nfunc TestPanic(t *testing.T) {\n\tif count(t) == 0 {\n\t\tpanic(\"at the first time\")\n\t}\n}\n"
	many   = "\nfunc TestA(t *testing.T) {\n\tif count(t) == 0 {\n\t\tt.Error(\"a\")\n\t}\n}\nfunc TestB(t *testing.T) {\n\tif count(t) == 0 {\n\t\tt.Error(\"b\")\n\t}\n}\n" +
		"func TestC(t *testing.T) {\n\tif count(t) == 0 {\n\t\tt.Error(\"c\")\n\t}\n}\nfunc TestD(t *testing.T) {\n\tif count(t) == 0 {\n\t\tt.Error(\"d\")\n\t}\n}\n"
)

// TestAgain: only a test that failed by itself, and passes every time when it is
// alone, is taken back; and it is named.
func TestAgain(t *testing.T) {
	for _, c := range []struct {
		name, more    string
		failed, flaky int
	}{
		{"once", "", 0, 1},
		{"always", always, 1, 1},
		{"every second time", second, 1, 1},
		{"a data race", raced, 3, 0},
		{"a panic", panics, 2, 0},
		{"something left behind", leaks, 2, 0},
		{"too many", many, 6, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range map[string]string{"go.mod": gomod, "m.go": "package m\n", "m_test.go": shaky + c.more} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Chdir(dir)
			t.Setenv("COUNT", t.TempDir())
			r := &tally{output: map[string][]string{}}
			if err := r.run(group{packages: []string{"./..."}}); err != nil {
				t.Fatal(err)
			}
			if r.failed == 0 {
				t.Fatal("nothing failed at first")
			}
			err := r.again(func(s suspect, times int) (*tally, error) {
				second := &tally{output: map[string][]string{}}
				return second, second.run(group{packages: []string{s.pkg}, alone: true, test: s.test, times: times})
			})
			if err != nil || r.failed < c.failed || c.failed == 0 && r.failed != 0 || len(r.flaky) != c.flaky {
				t.Errorf("%v; %d failed and %d flaky, want %d and %d: %+v", err, r.failed, len(r.flaky), c.failed, c.flaky, r.failures)
			}
			if c.flaky > 0 && !strings.Contains(r.flaky[0], "too slow") {
				t.Errorf("what it said at first is lost: %s", r.flaky[0])
			}
			if code := r.report(nil, nil, 0); (code != 0) != (c.failed > 0) {
				t.Errorf("exit code %d", code)
			}
		})
	}
}
