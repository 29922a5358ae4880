//go:build linux

package chaos

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crowd does n things at once and returns what came back.
func crowd(n int, do func(i int) answer) []answer {
	answers := make([]answer, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { answers[i] = do(i) })
	}
	all.Wait()
	return answers
}

// mixed is one of many requests at once: creates, execs, files, lists.
func (s *server) mixed(i int, id string) answer {
	switch i % 5 {
	case 0:
		return s.send("POST", "/v1/sandboxes", `{}`)
	case 1:
		return s.send("POST", "/v1/sandboxes/"+id+"/exec", `{"code":"print('x'*10000)"}`)
	case 2:
		return s.send("PUT", fmt.Sprintf("/v1/sandboxes/%s/files?path=f%d", id, i), strings.Repeat("y", 100000))
	case 3:
		return s.send("GET", "/v1/sandboxes/"+id+"/files?path=/etc/passwd", "")
	}
	return s.send("GET", "/v1/sandboxes", "")
}

// sweep destroys every sandbox but those to keep.
func (s *server) sweep(keep ...string) {
	s.t.Helper()
	kept := map[string]bool{}
	for _, id := range keep {
		kept[id] = true
	}
	soon(s.t, "destroy everything", 60*time.Second, func() error {
		a := s.send("GET", "/v1/sandboxes?state=running&page_size=200", "")
		if a.status != http.StatusOK {
			return fmt.Errorf("list: %v", a)
		}
		s.see(string(a.body))
		left := 0
		for _, sb := range a.reply.Sandboxes {
			if kept[sb.ID] {
				continue
			}
			left++
			if a := s.send("DELETE", "/v1/sandboxes/"+sb.ID, ""); a.status != http.StatusOK || !a.reply.Receipt.Clean {
				return fmt.Errorf("destroy: %v", a)
			}
		}
		if left > 0 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
}

// cpu is what a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestFewDescriptors: a server that may open next to no files, and many
// callers. What it cannot do it refuses, connections wait their turn, nobody
// spins, and it is over when the crowd is.
func TestFewDescriptors(t *testing.T) {
	for name, c := range map[string]struct{ start, later int }{
		"from the start": {start: 320},
		"later":          {later: 112}, // only what the server has, not what it starts
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, filepath.Join(t.TempDir(), "data"))
			w.tidy()
			limit := max(c.start, c.later)
			if c.start > 0 {
				w.under(fmt.Sprintf("ulimit -n %d", limit))
			} else {
				w.under("ulimit -Sn 512")
			}
			s := w.serve("", "--stop-sandboxes")
			pid := s.cmd.Process.Pid
			id := s.create()
			if c.later > 0 {
				var old unix.Rlimit
				if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &old); err != nil {
					t.Fatal(err)
				}
				if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(limit), Max: old.Max}, nil); err != nil {
					t.Fatal(err)
				}
			}
			idle := descriptors(t, pid)
			outcome := map[string]int{}
			for i, a := range crowd(40, func(i int) answer { return s.mixed(i, id) }) {
				s.see(string(a.body))
				outcome[fmt.Sprintf("%d %s", a.status, a.reply.Error.Kind)]++
				if a.status/100 != 2 {
					a.refused(t, fmt.Sprint("request ", i), "capacity")
				}
			}
			t.Logf("%d descriptors idle, of %d; %v", idle, limit, outcome)
			s.execs(id)
			s.sweep(id)

			// More connections than it may have descriptors, which say nothing.
			var conns []net.Conn
			for range 2 * limit {
				c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
			}
			before := cpu(t, pid)
			time.Sleep(time.Second)
			if used := cpu(t, pid) - before; used > 500*time.Millisecond {
				t.Errorf("it used %s of CPU in a second of idle connections", used)
			}
			// The operator's socket is not theirs to take.
			if out, err := w.command("ls").CombinedOutput(); err != nil && c.start > 0 {
				t.Errorf("ls on the socket, among %d idle connections: %v %s", len(conns), err, out)
			}
			for _, c := range conns {
				c.Close()
			}
			soon(t, "after the crowd", 30*time.Second, s.works)
			s.http.CloseIdleConnections()
			soon(t, "descriptors as before", 10*time.Second, func() error {
				if n := descriptors(t, pid); n > idle+8 {
					return fmt.Errorf("%d descriptors, %d when idle", n, idle)
				}
				return nil
			})
			s.destroy(id)
			s.stop()
		})
	}
}

// group makes a control group of a controller for the world's next servers and
// returns its directory.
func (w *world) group(controller, limit, value string) string {
	w.t.Helper()
	root := filepath.Join("/sys/fs/cgroup", controller)
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		w.t.Skipf("not run: no cgroup v1 hierarchy of %s", controller)
	}
	dir, err := os.MkdirTemp(root, "firebreak-chaos-")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		soon(w.t, "remove the control group", 10*time.Second, func() error { return os.Remove(dir) })
	})
	if limit != "" {
		if err := os.WriteFile(filepath.Join(dir, limit), []byte(value), 0); err != nil {
			w.t.Fatal(err)
		}
	}
	w.under("echo $$ > " + dir + "/cgroup.procs")
	return dir
}

// only checks that nothing but the server is in a control group.
func (s *server) only(dir string) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(s.cmd.Process.Pid) {
		s.t.Errorf("in the server's control group are %q, %v; want %d alone", b, err, s.cmd.Process.Pid)
	}
}

// TestLittleMemory gives the server a memory limit and moves much more than
// that through it: files, output, events. It stays within it.
func TestLittleMemory(t *testing.T) {
	size := 30 << 20
	if long() {
		size = 1 << 30
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	group := w.group("memory", "memory.limit_in_bytes", strconv.Itoa(96<<20))
	s := w.serve("", "--stop-sandboxes")
	s.http.Timeout = 5 * time.Minute
	id := s.create()
	s.only(group)
	var load, readers sync.WaitGroup
	for range 32 {
		readers.Go(func() { s.follow(id, 5*time.Second) })
	}
	for i := range 3 {
		load.Go(func() {
			path := fmt.Sprintf("/v1/sandboxes/%s/files?path=f%d", id, i)
			if a := s.ask("PUT", path, io.LimitReader(zeros{}, int64(size))); a.status != http.StatusOK {
				t.Errorf("write: %v", a)
			}
			if n, err := s.discard("GET", path, ""); n != int64(size) {
				t.Errorf("read: %d bytes, %v", n, err)
			}
		})
	}
	for range 3 {
		load.Go(func() {
			a := s.send("POST", "/v1/sandboxes/"+id+"/exec", fmt.Sprintf(`{"code":"import sys\nfor i in range(%d): sys.stdout.write('x'*999+'\\n')"}`, size/1000))
			if a.status != http.StatusOK || a.reply.Reason != "done" {
				t.Errorf("exec: %v", a)
			}
		})
	}
	load.Wait()
	readers.Wait()
	peak, _ := os.ReadFile(filepath.Join(group, "memory.max_usage_in_bytes"))
	rss := s.vitals().rss
	t.Logf("peak of the group %s bytes (with the page cache), RSS now %d MiB", strings.TrimSpace(string(peak)), rss>>20)
	select {
	case <-s.dead:
		t.Errorf("the server was killed:\n%s", s.log)
	default:
	}
	if err := s.works(); err != nil {
		t.Error(err)
	}
	s.destroy(id)
	s.stop()
	w.verified()
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// discard counts the bytes of an answer.
func (s *server) discard(method, path, body string) (int64, error) {
	req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}

// TestFewTasks takes the tasks that the server may have away from it. Creates
// are refused, what lives goes on, and should the server itself fail for want
// of a thread, the next one finds everything.
func TestFewTasks(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	group := w.group("pids", "pids.max", "600")
	s := w.serve("")
	id := s.create()
	s.only(group)
	now, err := os.ReadFile(filepath.Join(group, "pids.current"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(group, "pids.max"), now, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // what the server knows may be a second old
	outcome := map[string]int{}
	for i, a := range crowd(40, func(i int) answer { return s.mixed(i, id) }) {
		outcome[fmt.Sprintf("%d %s", a.status, a.reply.Error.Kind)]++
		if a.status != 0 && a.status/100 != 2 {
			a.refused(t, fmt.Sprint("request ", i), "capacity")
		}
	}
	t.Logf("%s tasks and no more: %v", strings.TrimSpace(string(now)), outcome)
	if err := os.WriteFile(filepath.Join(group, "pids.max"), []byte("max"), 0); err != nil {
		t.Fatal(err)
	}
	// Dying takes a while, with that many stacks to print.
	patience := time.Duration(0)
	if outcome["0 "] > 0 {
		patience = time.Minute
	}
	select {
	case <-s.dead:
		t.Log("the Go runtime gave up for want of a thread")
		s = w.serve("")
	case <-time.After(patience):
		if outcome["0 "] > 0 {
			t.Errorf("the server lives and left requests without an answer: %v", outcome)
		}
	}
	s.execs(id)
	soon(t, "with tasks again", 20*time.Second, s.works)
	s.sweep()
	s.stop()
	w.verified()
}
