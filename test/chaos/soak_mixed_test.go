//go:build linux

package chaos

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// kept is a sandbox as its callers know it.
type kept struct {
	id string

	mu    sync.Mutex
	ended bool              // guarded by mu; somebody destroys it
	files map[string]string // guarded by mu; what was acknowledged
	names map[string]bool   // guarded by mu; those somebody reads or writes
}

// mix is the load of TestMixedLoad.
type mix struct {
	t      *testing.T
	w      *world
	server atomic.Pointer[server]

	mu        sync.Mutex
	sandboxes []*kept           // guarded by mu
	down      []interval        // guarded by mu; when the server was not there
	killed    map[string]string // guarded by mu; what was killed, by sandbox
	kills     map[string]int    // guarded by mu; by what was killed
	history   []string          // guarded by mu; the kills in order
	done      map[string]int    // guarded by mu; operations that succeeded
	explained map[string]int    // guarded by mu; failures, by what explains them
	failed    int               // guarded by mu
}

type interval struct{ from, to time.Time }

// outage reports whether the server was away at any time since begun.
func (m *mix) outage(begun time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range m.down {
		if i.to.IsZero() || i.to.After(begun) {
			return true
		}
	}
	return false
}

// judge decides whether an operation on a sandbox went well, or why not. err
// is what was wrong with an answer that says it did.
func (m *mix) judge(op, id string, ended bool, begun time.Time, a answer, err error) bool {
	away := m.outage(begun)
	if id == "" { // a create learns of its id when it fails
		id = a.about
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	why := ""
	switch kind := a.reply.Error.Kind; {
	case a.status/100 == 2 && err == nil:
		m.done[op]++
		return true
	case m.killed[id] != "": // noted before it was done
		why = m.killed[id] + " killed"
	case away && (a.status == 0 || kind == "unavailable"):
		why = "server killed"
	case kind == "capacity":
		why = "told to come back"
	case ended && (kind == "gone" || kind == "not_found" || a.reply.Reason == "operator"):
		why = "destroyed meanwhile"
	}
	if why != "" {
		m.explained[why]++
		return false
	}
	if m.failed++; m.failed < 20 {
		m.t.Errorf("unexplained: %s %s, after %s: %v; %v\nlast kills: %v\n%s", op, id, time.Since(begun).Round(time.Millisecond), a, err,
			m.history[max(0, len(m.history)-6):], m.server.Load().troubles())
	}
	return false
}

// noteKill remembers a kill. Preconditions: m.mu is held.
func (m *mix) noteKill(what, whom string, pid int) {
	m.kills[what]++
	m.history = append(m.history, fmt.Sprintf("%s %s %s %d", time.Now().Format("15:04:05.000"), what, whom, pid))
}

// troubles are the lines of the server's log that are no routine.
func (s *server) troubles() string {
	var b strings.Builder
	for line := range strings.Lines(s.log.String()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// over reports whether somebody destroys k.
func (k *kept) over() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended
}

// pick returns one of n sandboxes; nil if there is none.
func (m *mix) pick() (k *kept, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n = len(m.sandboxes); n == 0 {
		return nil, 0
	}
	return m.sandboxes[rand.IntN(n)], n
}

func (m *mix) forget(k *kept) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, o := range m.sandboxes {
		if o == k {
			m.sandboxes = append(m.sandboxes[:i], m.sandboxes[i+1:]...)
			return
		}
	}
}

// step does one operation.
func (m *mix) step() {
	begun := time.Now() // before the server is asked for: an outage counts from here
	s := m.server.Load()
	k, n := m.pick()
	dice := rand.IntN(100)
	switch {
	case k == nil || n < 4 || n < 10 && dice < 10:
		a := s.send("POST", "/v1/sandboxes", `{}`)
		if m.judge("create", "", false, begun, a, nil) {
			m.mu.Lock()
			m.sandboxes = append(m.sandboxes, &kept{id: a.reply.ID, files: map[string]string{}, names: map[string]bool{}})
			m.mu.Unlock()
		}
	case dice < 35:
		m.exec(s, k, begun)
	case dice < 55:
		m.write(s, k, begun)
	case dice < 75:
		m.read(s, k, begun)
	case dice < 80:
		m.run(s, begun)
	case dice < 86:
		m.judge("events", k.id, k.over(), begun, s.follow(k.id, 300*time.Millisecond), nil)
	case dice < 93:
		m.judge("list", "", false, begun, s.send("GET", "/v1/sandboxes", ""), nil)
	default:
		m.destroy(s, k, begun)
	}
}

func (m *mix) exec(s *server, k *kept, begun time.Time) {
	seed, lines := rand.IntN(1e6), 1+rand.IntN(3000)
	a := s.send("POST", "/v1/sandboxes/"+k.id+"/exec", fmt.Sprintf(`{"code":"for i in range(%d): print(%d*i)"}`, lines, seed))
	var b strings.Builder
	for i := range lines {
		fmt.Fprintln(&b, seed*i)
	}
	var err error
	if a.status == http.StatusOK && a.reply.Stdout != b.String() {
		err = fmt.Errorf("%d bytes of output, want %d; reason %q", len(a.reply.Stdout), b.Len(), a.reply.Reason)
	}
	m.judge("exec", k.id, k.over(), begun, a, err)
}

func (m *mix) write(s *server, k *kept, begun time.Time) {
	name := fmt.Sprintf("f%d", rand.IntN(6))
	k.mu.Lock()
	if k.names[name] {
		k.mu.Unlock()
		return
	}
	k.names[name] = true
	delete(k.files, name) // in doubt until acknowledged
	k.mu.Unlock()
	content := strings.Repeat(fmt.Sprintf("%d.", rand.IntN(1e9)), 1+rand.IntN(5000))
	a := s.send("PUT", "/v1/sandboxes/"+k.id+"/files?path="+name, content)
	ok := m.judge("write", k.id, k.over(), begun, a, nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.names, name)
	if ok {
		k.files[name] = content
	}
}

func (m *mix) read(s *server, k *kept, begun time.Time) {
	name := fmt.Sprintf("f%d", rand.IntN(6))
	k.mu.Lock()
	want, known := k.files[name]
	if !known || k.names[name] {
		k.mu.Unlock()
		return
	}
	k.names[name] = true // nobody writes it meanwhile
	k.mu.Unlock()
	a := s.send("GET", "/v1/sandboxes/"+k.id+"/files?path="+name, "")
	k.mu.Lock()
	delete(k.names, name)
	k.mu.Unlock()
	var err error
	if a.status == http.StatusOK && string(a.body) != want {
		err = fmt.Errorf("an acknowledged file of %d bytes reads as %d others", len(want), len(a.body))
	}
	m.judge("read", k.id, k.over(), begun, a, err)
}

// run is a run from request to result. Its sandbox is killed like others are.
func (m *mix) run(s *server, begun time.Time) {
	a := s.send("POST", "/v1/runs", `{"program":{"code":"open('a','w').write('x'*1000); print('done')"},"artifacts":["a"]}`)
	if a.status != http.StatusCreated {
		m.judge("run", "", false, begun, a, nil)
		return
	}
	var run struct {
		ID      string
		Sandbox string `json:"sandbox_id"`
	}
	if err := json.Unmarshal(a.body, &run); err != nil {
		m.judge("run", "", false, begun, answer{err: err}, nil)
		return
	}
	for patience := time.Now().Add(90 * time.Second); time.Now().Before(patience); time.Sleep(200 * time.Millisecond) {
		if a = m.server.Load().send("GET", "/v1/runs/"+run.ID+"?wait_ms=20000", ""); a.status == http.StatusOK && a.reply.State == "ended" {
			break
		}
	}
	var err error
	if a.status == http.StatusOK && (a.reply.State != "ended" || a.reply.Stdout != "done\n" || a.reply.Receipt == nil || !a.reply.Receipt.Clean) {
		err = fmt.Errorf("state %q, reason %q, output %q", a.reply.State, a.reply.Reason, a.reply.Stdout)
		if a.reply.State == "ended" && a.reply.Reason == "lost" && m.outage(begun) {
			a.status = 0 // a run may be lost with its server, if it says so
		}
	}
	m.judge("run", run.Sandbox, false, begun, a, err)
}

// destroy ends a sandbox. That works whatever was killed, only the server must
// be there.
func (m *mix) destroy(s *server, k *kept, begun time.Time) {
	k.mu.Lock()
	k.ended = true
	k.mu.Unlock()
	m.forget(k)
	for {
		a := s.send("DELETE", "/v1/sandboxes/"+k.id, "")
		if (a.status == 0 || a.reply.Error.Kind == "unavailable") && m.outage(begun) {
			time.Sleep(200 * time.Millisecond)
			begun, s = time.Now(), m.server.Load()
			continue
		}
		var err error
		if a.status == http.StatusOK && (a.reply.Receipt == nil || !a.reply.Receipt.Clean) {
			err = fmt.Errorf("no clean receipt")
		}
		a.about = "" // whatever was killed
		m.judge("destroy", "", false, begun, a, err)
		return
	}
}

// victims are what of a living instance can be killed, by role.
// A recorded pid may be somebody else's by now: those are left out.
func victims(dir string) (sandbox string, pids map[string]int) {
	var intent struct{ Sandbox string }
	b, err := os.ReadFile(filepath.Join(dir, "instance.json"))
	if err != nil || json.Unmarshal(b, &intent) != nil {
		return "", nil
	}
	var running struct {
		Processes []struct {
			PID   int
			Start uint64
			Role  string
		}
	}
	if b, err = os.ReadFile(filepath.Join(dir, "processes")); err != nil || json.Unmarshal(b, &running) != nil {
		return "", nil
	}
	pids = map[string]int{}
	stubs := map[uint64]int{}
	for _, p := range running.Processes {
		if startOf(p.PID) != p.Start {
			continue
		}
		if p.Role == "stub" {
			stubs[p.Start<<24|uint64(p.PID)] = p.PID
		} else {
			pids[p.Role] = p.PID
		}
	}
	var first, last uint64 // the oldest stub is the model of the others, which execute the agent
	for at := range stubs {
		if first == 0 || at < first {
			first = at
		}
		last = max(last, at)
	}
	if len(stubs) > 1 {
		pids["agent"] = stubs[last]
	}
	return intent.Sandbox, pids
}

// startOf is when a process started, as the kernel counts; 0 if there is none.
func startOf(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// kill ends something at random: the server, or a part of a sandbox.
func (m *mix) kill() {
	if rand.IntN(4) == 0 {
		m.killServer()
		return
	}
	dirs, _ := filepath.Glob(filepath.Join(m.w.data, "instances", "in*"))
	if len(dirs) == 0 {
		return
	}
	id, pids := victims(dirs[rand.IntN(len(dirs))])
	role := []string{"sentry", "gofer", "agent"}[rand.IntN(3)]
	if pid := pids[role]; pid > 0 && id != "" {
		m.mu.Lock()
		m.killed[id] = role
		m.noteKill(role, id, pid)
		m.mu.Unlock()
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// killServer kills the server and starts the next.
func (m *mix) killServer() {
	m.mu.Lock()
	m.noteKill("server", "", m.server.Load().cmd.Process.Pid)
	m.down = append(m.down, interval{from: time.Now()})
	m.mu.Unlock()
	old := m.server.Load()
	old.cmd.Process.Kill()
	old.wait()
	m.w.seeDirs(filepath.Join(m.w.data, "instances"))
	m.server.Store(m.w.serve(""))
	m.mu.Lock()
	m.down[len(m.down)-1].to = time.Now()
	m.mu.Unlock()
}

// TestMixedLoad uses a server in every way at once while guests, agents, gofers
// and the server itself are killed at random. Whatever fails has been killed;
// what was acknowledged is there; nothing stays.
func TestMixedLoad(t *testing.T) {
	d, pause := 12*time.Second, 1500*time.Millisecond
	if long() {
		d, pause = 10*time.Minute, 3*time.Second
	}
	w := newWorld(t, filepath.Join(t.TempDir(), "data"))
	w.tidy()
	m := &mix{t: t, w: w, killed: map[string]string{}, kills: map[string]int{}, done: map[string]int{}, explained: map[string]int{}}
	s := w.serve("")
	m.server.Store(s)
	if err := s.works(); err != nil {
		t.Fatal(err)
	}
	before := s.vitals()
	var load sync.WaitGroup
	end := time.Now().Add(d)
	for range 6 {
		load.Go(func() {
			for time.Now().Before(end) {
				m.step()
				if m.outage(time.Now()) { // it takes a moment to come back
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	for time.Now().Add(pause).Before(end) {
		time.Sleep(pause/2 + rand.N(pause))
		m.kill()
	}
	load.Wait()
	s = m.server.Load()
	t.Logf("kills: %v", m.kills)
	t.Logf("done: %v", m.done)
	t.Logf("failures explained: %v; unexplained: %d", m.explained, m.failed)
	s.sweep()
	s.flat(before)
	if left := w.seeDirs(filepath.Join(w.data, "instances")); left > 0 {
		t.Errorf("%d instances are left", left)
	}
	s.stop()
	w.verified()
}
