package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The machine that runs the tests is shared, and some of them watch a clock. One
// that failed beside others is therefore run again by itself: if it passes
// againTimes times in a row it has passed, and the report names it as flaky, with
// what it said at first, for somebody to look at. That is no way round a fault:
//
//   - more than againMost tests that failed are not noise, and none is run again;
//   - what no load explains is not run again: a data race, a panic, a time-out of
//     the whole package, a goroutine, process or file left behind (which a
//     package's TestMain reports);
//   - one failure in the repetitions and it has failed.
const (
	againMost  = 4
	againTimes = 3
)

// suspect is a test, without subtests, that failed.
type suspect struct{ pkg, test string }

// failure is what one failed test or subtest, or a package as a whole, has said.
type failure struct {
	suspect        // test: "" for the package's own
	name    string // for people
	text    string
}

// inexplicable is what is never run again.
var inexplicable = regexp.MustCompile(`WARNING: DATA RACE|race detected|(?m)^panic: |^fatal error: |\bgoleak\b|found unexpected goroutines`)

// ownWords is all that a package says by itself when nothing but its tests failed.
var ownWords = regexp.MustCompile(`\A(?:FAIL\n|FAIL\t\S+\t[0-9.]+s\n|exit status 1\n)*\z`)

// suspects are the tests to run again; none if a failure is not of that kind.
func (t *tally) suspects() (list []suspect) {
	for _, f := range t.failures {
		if inexplicable.MatchString(f.text) || f.test == "" && !ownWords.MatchString(f.text) {
			return nil
		}
		if f.test != "" && !slices.Contains(list, f.suspect) {
			list = append(list, f.suspect)
		}
	}
	if len(list) > againMost {
		return nil
	}
	return list
}

// again runs what failed once more. repeat runs one test the number of times and
// returns what failed of it.
func (t *tally) again(repeat func(s suspect, times int) (*tally, error)) error {
	for _, s := range t.suspects() {
		second, err := repeat(s, againTimes)
		if err != nil {
			return err
		}
		if second.failed > 0 || len(second.failures) > 0 || second.passed < againTimes {
			t.failures = append(t.failures, second.failures...)
			continue
		}
		t.clear(s)
	}
	t.failures = slices.DeleteFunc(t.failures, func(f failure) bool { // of packages whose tests have all passed
		return f.test == "" && !slices.ContainsFunc(t.failures, func(g failure) bool { return g.pkg == f.pkg && g.test != "" })
	})
	return nil
}

// clear counts what failed of s as passed, and notes it as flaky.
func (t *tally) clear(s suspect) {
	said := ""
	t.failures = slices.DeleteFunc(t.failures, func(f failure) bool {
		if f.suspect != s {
			return false
		}
		t.failed--
		t.passed++
		said += f.name + "\n" + f.text
		return true
	})
	t.flaky = append(t.flaky, fmt.Sprintf("flaky: %s %s failed beside others and passed %d of %d times by itself:\n%s",
		strings.TrimPrefix(s.pkg, module), s.test, againTimes, againTimes, quoted(said)))
}

// quoted marks text as what somebody said earlier: nothing that looks for the
// lines of failed tests is to find it.
func quoted(text string) string {
	return "  | " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  | ") + "\n"
}
