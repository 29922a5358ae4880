package gvisor

import "testing"

// TestStubsByAge: the model is found also when pids began anew while the
// sandbox started.
func TestStubsByAge(t *testing.T) {
	stub := func(pid int, start uint64) process { return process{PID: pid, Start: start, Role: "stub"} }
	for name, procs := range map[string][]process{
		"in order": {stub(110, 7), stub(105, 7), stub(103, 6), {PID: 100, Start: 5, Role: "sentry"}},
		"wrapped":  {stub(301, 7), stub(32767, 7), {PID: 32760, Start: 5, Role: "sentry"}, stub(302, 7)},
		"by time":  {stub(32767, 9), stub(400, 8), {PID: 300, Start: 5, Role: "sentry"}},
	} {
		want := map[string]int{"in order": 103, "wrapped": 32767, "by time": 400}[name]
		if got := stubs(procs)[0].PID; got != want {
			t.Errorf("%s: the model is %d, want %d", name, got, want)
		}
	}
}
