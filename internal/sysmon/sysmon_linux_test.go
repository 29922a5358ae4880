package sysmon

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestSlack looks at the timers of all threads of this process: one thread's may be put
// off, and it is the runtime's monitor, which sleeps whenever it is looked at.
func TestSlack(t *testing.T) {
	tid := second()
	if tid == 0 {
		t.Fatal("this process has one thread only")
	}
	if got := slackOf(t, tid); got != slack {
		t.Errorf("the monitor's timers may be put off by %s ns, want %s", got, slack)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range threads {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if id == tid {
			continue
		}
		if got := slackOf(t, id); got == slack {
			t.Errorf("thread %d, too", id)
		}
	}
}

func slackOf(t *testing.T, tid int) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + decimal(tid) + "/timerslack_ns")
	if os.IsNotExist(err) {
		t.Skip("not run: the kernel does not say how exact a thread's timers are, or the thread has ended")
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestNumbers(t *testing.T) {
	for s, want := range map[string]int{"1": 1, "4194304": 4194304, ".": 0, "..": 0, "": 0, "12x": 0} {
		if got := number(s); got != want {
			t.Errorf("number(%q) = %d, want %d", s, got, want)
		}
		if want > 0 && decimal(want) != s {
			t.Errorf("decimal(%d) = %q", want, decimal(want))
		}
	}
}
