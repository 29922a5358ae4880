package hostile

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const small = `"memory_bytes":67108864,"cpus":0.5,"pids":64,"disk_bytes":67108864`

// programs are the cases of one program in one sandbox. Where two limits are met
// at once either may be the reason: THREATS.md says so.
var programs = []attack{
	{number: 28, name: "fork bomb of small processes", verdict: kill, run: []string{"fork_bomb.sh"}, reasons: "pids|memory"},
	{number: 28, name: "fork bomb of large processes", verdict: kill, run: []string{"fork_bomb.py"}, reasons: "pids|memory"},
	{number: 28, name: "thread bomb", verdict: kill, run: []string{"thread_bomb.py"}, reasons: "pids|memory"},
	{number: 29, name: "balloon", verdict: kill, run: []string{"balloon.py"}, reasons: "memory"},
	{number: 29, name: "memfd", verdict: kill, run: []string{"memfd.py"}, reasons: "memory"},
	{number: 29, name: "shm", verdict: contain, run: []string{"shm.py"}, limits: `"memory_bytes":134217728`, reasons: "done|memory", prints: `stopped 6\d ENOSPC|^$`},
	{number: 29, name: "page cache", verdict: contain, run: []string{"page_cache.py"}, limits: `"disk_bytes":268435456`, timeout: 60 * time.Second, reasons: "done", prints: "read 320"},
	{number: 30, name: "spin and timer storm", verdict: kill, run: []string{"spin.py"}, timeout: 3 * time.Second, reasons: "timeout", check: endsOnTime},
	{number: 31, name: "disk", verdict: contain, run: []string{"disk_fill.py"}, reasons: "done", prints: `(?s)/home/user [3-6]\d ENOSPC.*/tmp \d+ ENOSPC`, check: hostDisk},
	{number: 31, name: "sparse files", verdict: contain, run: []string{"sparse.py"}, reasons: "done|disk", check: hostDisk},
	{number: 31, name: "small files", verdict: contain, run: []string{"small_files.py"}, reasons: "done|disk|memory", prints: `made|stopped|^$`, check: hostDisk},
	{number: 32, name: "endless output", verdict: survive, run: []string{"output.py", "endless"}, timeout: 2 * time.Second, reasons: "timeout", check: truncated},
	{number: 32, name: "one line", verdict: survive, run: []string{"output.py", "line", "64"}, timeout: time.Minute, reasons: "done", check: truncated},
	{number: 32, name: "binary", verdict: survive, run: []string{"output.py", "binary"}, reasons: "done", check: func(t *testing.T, _ *world, _ string, r reply, _ time.Duration) {
		if !strings.Contains(r.body, `"stdout_data"`) || !strings.Contains(r.body, `"stderr_data"`) {
			t.Errorf("bytes that are not text are not given as bytes: %.300s", r.body)
		}
	}},
	{number: 34, name: "ends before its children", verdict: contain, run: []string{"stubborn.py", "leave"}, reasons: "done", prints: "started"},
	{number: 34, name: "ignores signals", verdict: kill, run: []string{"stubborn.py", "stay"}, timeout: 2 * time.Second, reasons: "timeout", prints: "started", check: nothingRemains},
	{number: 37, name: "impersonation", verdict: deny, run: []string{"impersonate.py"}, reasons: "done", prints: "tried", check: noFindings},
	{number: 43, name: "log lines", verdict: contain, run: []string{"log_lines.py"}, reasons: "done", check: logLines},
	{number: 47, also: []int{48, 50}, name: "probes", verdict: deny, run: []string{"probes.py"}, timeout: time.Minute, reasons: "done", prints: "probed", check: noFindings},
	{number: 51, name: "information", verdict: deny, run: []string{"info.py"}, timeout: time.Minute, reasons: "done", check: identifiesNobody},
}

// TestPrograms runs every case in a sandbox of its own, three at a time and
// beside neighbours. Afterwards the sandbox still works or has ended for a
// reason, its receipt is clean and its evidence is there.
func TestPrograms(t *testing.T) {
	w := serve(t, built(t))
	n := w.neighbours(t)
	goroutines, fds := w.metric("go_goroutines"), w.metric("process_open_fds")
	n.unharmed(t, func() {
		grown := w.memory()
		t.Run("cases", func(t *testing.T) {
			slots := make(chan struct{}, 3)
			for _, p := range programs {
				t.Run(p.title(), func(t *testing.T) {
					t.Parallel()
					slots <- struct{}{}
					defer func() { <-slots }()
					w.carryOut(t, n, p)
				})
			}
		})
		// Most of it are answers of 16 MiB, of which two are made at a time.
		if heap, resident := grown(); heap > 96<<20 || resident > 128<<20 {
			t.Errorf("the server's heap grew by %s, its resident set by %s", mib(heap), mib(resident))
		} else {
			t.Logf("the server's heap grew by %s at most, its resident set by %s", mib(heap), mib(resident))
		}
	})
	w.quiet(t, goroutines, fds)
}

// upload brings one of the programs into a sandbox.
func (w *world) upload(t *testing.T, id, name string) {
	t.Helper()
	code, err := os.ReadFile(filepath.Join("programs", name))
	if err != nil {
		t.Fatal(err)
	}
	if status, r := w.do("PUT", "/v1/sandboxes/"+id+"/files?path="+name, string(code)); status/100 != 2 {
		t.Fatalf("upload: %d %s", status, r.body)
	}
}

// endsOnTime: the deadline is kept by whoever hears no signal, within a second
// and what a loaded machine adds.
func endsOnTime(t *testing.T, _ *world, _ string, r reply, took time.Duration) {
	if r.ExitCode != 124 || r.Duration < 3000 || r.Duration > 4000+1500 {
		t.Errorf("exit code %d after %.0f ms (%v for the caller), want 124 after 3000 to 4000", r.ExitCode, r.Duration, took)
	}
}

// hostDisk: what the sandbox occupies here is within its limit.
func hostDisk(t *testing.T, w *world, id string, _ reply, _ time.Duration) {
	var used int64
	_, about := w.do("GET", "/v1/sandboxes/"+id, "")
	instance := instanceID.FindString(about.body)
	dir := filepath.Join(w.dir, "data", "instances", instance)
	if instance == "" {
		dir = filepath.Join(w.dir, "data", "instances") // of all sandboxes, then
	}
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil // it goes on living
		}
		if st, err := d.Info(); err == nil {
			if s, ok := st.Sys().(*syscall.Stat_t); ok && (instance != "" || s.Blocks*512 > used) {
				if instance != "" {
					used += s.Blocks * 512
				} else {
					used = s.Blocks * 512 // the largest file
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if used > 64<<20+8<<20 {
		t.Errorf("it takes %s of the host's disk, its limit is 64 MiB", mib(used))
	}
}

func truncated(t *testing.T, _ *world, _ string, r reply, _ time.Duration) {
	if r.Reason == "timeout" && r.Duration > 2000+3000 {
		t.Errorf("it ended after %.0f ms, its limit is 2000", r.Duration)
	}
	marked := strings.Contains(r.body, `"stdout_truncated":true`)
	slow := r.Reason == "timeout" && len(r.Stdout) < 8<<20 // it had no time to print more
	if len(r.Stdout) > 8<<20 || !marked && !slow {
		t.Errorf("%d bytes of output, marked as truncated: %v", len(r.Stdout), marked)
	}
}

// nothingRemains: after the deadline no process of the program is there, whatever
// it did to get away.
func nothingRemains(t *testing.T, w *world, id string, _ reply, _ time.Duration) {
	w.upload(t, id, "remains.py")
	status, r := w.exec(id, 20*time.Second, "python3", "remains.py")
	if status != http.StatusOK || r.Stdout != "" || r.ExitCode != 0 {
		t.Errorf("left after the deadline: %d %s %s", status, r.Stdout, r.Stderr)
	}
}

func noFindings(t *testing.T, _ *world, _ string, r reply, _ time.Duration) {
	for line := range strings.Lines(r.Stdout) {
		if strings.HasPrefix(line, "FINDING") {
			t.Error(strings.TrimSpace(line))
		}
	}
}

// logLines: what a program prints is one event's text, escaped wherever it is
// listed, and never a record.
func logLines(t *testing.T, w *world, id string, r reply, _ time.Duration) {
	out, errs, code := w.cli("events", id)
	if code != 0 {
		t.Fatalf("events: %d %s", code, errs)
	}
	if bad := obeyed(out); bad != "" {
		t.Errorf("`firebreak events` prints %s:\n%q", bad, out)
	}
	for line := range strings.Lines(out) {
		if !regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3} +\d+  (state|started|stdout|stderr|exit|limit|receipt) `).MatchString(line) {
			t.Errorf("a line of `firebreak events` is not an event: %q", line)
		}
	}
	_, sse := w.do("GET", "/v1/sandboxes/"+id+"/events?no_follow=true", "")
	for _, line := range []string{"\nid: 99", "\nevent: exit\ndata: {\"exit_code\":0}"} {
		if strings.Contains(sse.body, line) {
			t.Errorf("a program forged an event: %q", line)
		}
	}
	if strings.Contains(w.text(), "forged") {
		t.Errorf("a program's output is in the server's log:\n%s", w.text())
	}
	if !strings.Contains(r.Stdout, "\x1b[2J") {
		t.Error("a program's output is not passed on as it is")
	}
}

// identifiesNobody: nothing inside names the host, other sandboxes or paths here.
func identifiesNobody(t *testing.T, w *world, id string, r reply, _ time.Duration) {
	secrets := map[string]string{"the data directory": w.dir, "the product": "instances/in"}
	read := func(what, path string) {
		if b, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(b))) > 5 {
			secrets[what] = strings.TrimSpace(string(b))
		}
	}
	read("the boot id", "/proc/sys/kernel/random/boot_id")
	read("the machine id", "/etc/machine-id")
	read("the product's serial number", "/sys/class/dmi/id/product_uuid")
	read("the product's name", "/sys/class/dmi/id/product_name")
	read("the kernel's release", "/proc/sys/kernel/osrelease")
	read("the kernel's version", "/proc/sys/kernel/version")
	if links, err := filepath.Glob("/sys/class/net/*/address"); err == nil {
		for _, l := range links {
			if b, _ := os.ReadFile(l); !strings.HasPrefix(string(b), "00:00:00:00") {
				read("the address of "+filepath.Base(filepath.Dir(l)), l)
			}
		}
	}
	if h, err := os.Hostname(); err == nil && len(h) > 3 {
		secrets["the host's name"] = h
	}
	_, others := w.do("GET", "/v1/sandboxes?page_size=100", "")
	for _, other := range regexp.MustCompile(`\bsb[a-z0-9]{18,}\b`).FindAllString(others.body, -1) {
		if other != id {
			secrets["another sandbox "+other] = other
		}
	}
	for what, s := range secrets {
		if i := strings.Index(r.Stdout, s); i >= 0 {
			t.Errorf("%s (%q) is known inside: …%q…", what, s, r.Stdout[max(0, i-120):min(len(r.Stdout), i+len(s)+40)])
		}
	}
	if m := instanceID.FindString(r.Stdout); m != "" {
		t.Errorf("an instance's id is known inside: %s", m)
	}
	if len(r.Stdout) < 10_000 {
		t.Errorf("the program looked at little: %.2000s %s", r.Stdout, r.Stderr)
	}
}

// obeyed names the first character of s that a terminal obeys, but for what ends
// a line.
func obeyed(s string) string {
	for _, c := range s {
		if c < ' ' && c != '\n' && c != '\t' || c >= 0x7f && c < 0xa0 || c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069 || c == 0x2028 || c == 0x2029 {
			return fmt.Sprintf("%U", c)
		}
	}
	return ""
}
