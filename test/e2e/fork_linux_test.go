package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// forkedChild is what the API says became of one.
type forkedChild struct {
	Sandbox struct {
		ID, Name, State string
		Parent          string `json:"forked_from"`
		Metadata        map[string]string
		Timeout         int64 `json:"timeout_ms"`
	}
	Error struct{ Kind, Message, Hint string }
}

func (s *server) fork(t testing.TB, id, body string) []forkedChild {
	t.Helper()
	status, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/fork", body)
	var r struct{ Children []forkedChild }
	if err := json.Unmarshal([]byte(answer), &r); err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s", status, answer)
	}
	return r.Children
}

// What a sandbox has to itself: each line is a name and a value that nobody else has.
const (
	ownPython = `import random, ssl, uuid, tempfile
print('random', random.random())
print('ssl', ssl.RAND_bytes(16).hex())
print('uuid1', str(uuid.uuid1())[14:])
print('uuid4', uuid.uuid4())
print('getnode', uuid.getnode())
print('tempfile', tempfile.mktemp())
try:
    import numpy
    print('numpy', numpy.random.random())
except ImportError:
    pass`
	ownNode = `console.log('Math.random', Math.random())
console.log('kept Math.random', draw())
console.log('randomBytes', require('crypto').randomBytes(16).toString('hex'))
console.log('kept randomBytes', bytes(16).toString('hex'))
console.log('randomFill', require('crypto').randomFillSync(Buffer.alloc(16)).toString('hex'))
console.log('randomUUID', require('crypto').randomUUID())
console.log('web randomUUID', crypto.randomUUID())
console.log('getRandomValues', crypto.getRandomValues(new Uint32Array(4)).join())
console.log('randomInt', require('crypto').randomInt(2 ** 47))`
	ownShell = `import os, random, socket
print('hostname', socket.gethostname())
print('machine-id', open('/etc/machine-id').read().strip())
print('boot id', open('/proc/sys/kernel/random/boot_id').read().strip())
print('hash', hash('x'))
print('fresh random', random.random())
print('urandom', os.urandom(16).hex())`
)

// own collects what a sandbox has to itself, from its contexts and from a new program.
// It must be named as the sandbox is, wherever a name is.
func (s *server) own(t testing.TB, id string) map[string]string {
	t.Helper()
	py := s.eval(t, id, "python", ownPython)
	node := s.eval(t, id, "node", ownNode)
	if py.Error != nil || node.Error != nil {
		t.Fatalf("%+v %+v", py, node)
	}
	out := map[string]string{}
	for line := range strings.Lines(py.Stdout + node.Stdout + s.stdout(t, id, ownShell)) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		out[line[:i]] = line[i+1:]
	}
	names := s.eval(t, id, "python", "import socket\nprint(socket.gethostname(), open('/etc/hostname').read().strip(), open('/etc/machine-id').read().strip(), open('/proc/sys/kernel/random/boot_id').read().strip())").Stdout
	if want := fmt.Sprintf("%s %s %s %s\n", id, id, out["machine-id"], out["boot id"]); names != want || out["hostname"] != id {
		t.Errorf("an old program of %s says it is %s, a new one %s", id, names, want)
	}
	return out
}

// skew is how far a sandbox's clock is from this machine's, at least.
func (s *server) skew(t testing.TB, id string) time.Duration {
	t.Helper()
	before := time.Now()
	e := s.eval(t, id, "python", "import time\ntime.time()")
	after := time.Now()
	at, err := strconv.ParseFloat(e.text(), 64)
	if err != nil {
		t.Fatalf("%+v", e)
	}
	whole, part := math.Modf(at)
	guest := time.Unix(int64(whole), int64(part*1e9))
	return max(before.Sub(guest), guest.Sub(after), 0)
}

// preparedFork is a sandbox with all that a fork has to carry on.
func (s *server) preparedFork(t testing.TB, body string) (id, pid string) {
	t.Helper()
	id = s.made(t, "/v1/sandboxes", body)
	pid = s.furnish(t, id)
	s.furnished(t, id, pid, 1)
	s.eval(t, id, "python", "import random, ssl, uuid, tempfile\nrandom.seed(7)\n[f() for f in (random.random, uuid.uuid1, uuid.getnode, tempfile.mktemp)], ssl.RAND_bytes(1)\nNone")
	if e := s.eval(t, id, "node", "var kept = 7, draw = Math.random, bytes = require('crypto').randomBytes; crypto.randomUUID(); require('crypto').randomInt(5); [draw(), bytes(1)]; undefined"); e.Error != nil {
		t.Fatalf("%+v", e)
	}
	return id, pid
}

// TestFork forks a sandbox with programs, interpreters and files into eight: each goes
// on where it was, as somebody else, with its own of all that a program takes for its
// own; and the parent, in the middle of a turn, does not notice.
func TestFork(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id, pid := s.preparedFork(t, `{"name":"parent","timeout_ms":3600000,"metadata":{"a":"1","b":"2"}}`)
	busy := s.made(t, "/v1/sandboxes/"+id+"/contexts", "{}")
	turn := make(chan string, 1)
	go func() {
		_, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/contexts/"+busy+"/eval", `{"code":"import time\nopen('/tmp/in-turn', 'w').close()\nt = time.monotonic()\nwhile time.monotonic() < t + 4: print('.', end='', flush=True); time.sleep(0.5)\n'over'"}`)
		turn <- answer
	}()
	s.stdout(t, id, "import os, time\nwhile not os.path.exists('/tmp/in-turn'): time.sleep(0.01)")

	children := s.fork(t, id, `{"count":8,"names":["first"],"metadata":{"b":"3"},"env":{"CHILD":"yes"}}`)
	if len(children) != 8 {
		t.Fatalf("%d children", len(children))
	}
	all := []string{id}
	for i, c := range children {
		sb := c.Sandbox
		if c.Error.Kind != "" || sb.State != "running" || sb.Parent != id || sb.Timeout != 3600000 || sb.Metadata["a"] != "1" || sb.Metadata["b"] != "3" || (sb.Name == "first") != (i == 0) {
			t.Fatalf("child %d: %+v", i, c)
		}
		if d := s.skew(t, sb.ID); d > 100*time.Millisecond {
			t.Errorf("the clock of child %d is wrong by %s", i, d)
		}
		all = append(all, sb.ID)
	}
	seen := map[string]string{}
	for i, box := range all {
		s.furnished(t, box, pid, 2)
		if e := s.eval(t, box, "node", "kept += 1"); e.text() != "8" {
			t.Errorf("%s: Node knows %+v", box, e)
		}
		for what, value := range s.own(t, box) {
			if other, taken := seen[what+" "+value]; taken {
				t.Errorf("%s and %s both have %s %s", box, other, what, value)
			}
			seen[what+" "+value] = box
		}
		want := "yes"
		if i == 0 {
			want = "None"
		}
		if got := strings.TrimSpace(s.stdout(t, box, fmt.Sprintf("import os\nprint(os.environ.get('CHILD'))\nopen('/home/user/kept', 'a').write('')\nopen('/home/user/own-%d', 'w').close()", i))); got != want {
			t.Errorf("%s: CHILD is %s", box, got)
		}
	}
	for i, box := range all {
		if got := strings.TrimSpace(s.stdout(t, box, "import os\nprint([f for f in os.listdir('/home/user') if f.startswith('own-')])")); got != fmt.Sprintf("['own-%d']", i) {
			t.Errorf("%s has %s", box, got)
		}
	}
	if answer := <-turn; !strings.Contains(answer, "'over'") {
		t.Errorf("the turn that ran meanwhile: %s", answer)
	}
	// The parent's end is not theirs.
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "")
	s.furnished(t, all[1], pid, 3)
	s.noImages(t)
	s.forkEvidence(t, id, all[1:])
}

func (s *server) noImages(t testing.TB) {
	t.Helper()
	for give := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // that nobody waits for
		left, err := filepath.Glob(filepath.Join(s.dir, "data", "snapshots", "*"))
		if err == nil && len(left) == 0 {
			break
		}
		if time.Now().After(give) {
			t.Errorf("left %v, %v", left, err)
			break
		}
	}
	if list := s.must(t, "GET", "/v1/snapshots", ""); strings.Contains(list, `"id"`) {
		t.Errorf("a fork left %s", list)
	}
}

// forkEvidence stops the server and looks at what it recorded.
func (s *server) forkEvidence(t testing.TB, parent string, children []string) {
	t.Helper()
	s.stop()
	made := map[string]bool{}
	var before, after int
	for _, e := range records(t.(*testing.T), s.serverLog()) {
		r := e.Record
		switch {
		case r.Action == "sandbox.create" && r.Detail["forked_from"] == parent:
			made[string(r.Sandbox)] = true
		case r.Action == "sandbox.fork" && string(r.Sandbox) == parent && r.Outcome == "allowed":
			before++
		case r.Action == "sandbox.fork" && r.Outcome == "done":
			after++
			if r.Detail["children"] != strings.Join(children, " ") || r.Detail["failed"] != "0" {
				t.Errorf("%+v", r)
			}
		}
	}
	if before != 1 || after != 1 || len(made) != len(children) {
		t.Errorf("%d forks, %d done, %d creates", before, after, len(made))
	}
}

// TestForkAgain forks a fork, and one that is paused, with a read-only root, by the
// command line; and what is made of a snapshot is somebody else, too, while one that was
// paused is not.
func TestForkAgain(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id, pid := s.preparedFork(t, `{"readonly_root":true}`)
	first := s.own(t, id)
	r := w.run("", "fork", id)
	child := strings.TrimSpace(r.stdout)
	if r.code != 0 || child == id {
		t.Fatalf("%+v", r)
	}
	s.must(t, "POST", "/v1/sandboxes/"+child+"/pause", "{}")
	var out struct {
		Children []struct {
			ID   string `json:"sandbox_id"`
			Name string
		}
	}
	r = w.run("", "fork", child, "--name", "left", "--name", "right", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 0 || len(out.Children) != 2 || out.Children[1].Name != "right" {
		t.Fatalf("%v %+v", err, r)
	}
	if st := s.state(t, child); st.State != "paused" {
		t.Errorf("its parent is %s", st.State)
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/snapshots", `{"name":"warm"}`)
	of := s.made(t, "/v1/sandboxes", `{"snapshot":"warm"}`)
	seen := map[string]string{}
	for _, box := range []string{id, child, out.Children[0].ID, out.Children[1].ID, of} {
		s.furnished(t, box, pid, 2)
		for what, value := range s.own(t, box) {
			if other, taken := seen[what+" "+value]; taken {
				t.Errorf("%s and %s both have %s %s", box, other, what, value)
			}
			seen[what+" "+value] = box
		}
	}
	s.must(t, "POST", "/v1/sandboxes/"+id+"/pause", "{}")
	again := s.own(t, id)
	for _, what := range []string{"hostname", "machine-id", "boot id", "getnode"} {
		if again[what] != first[what] {
			t.Errorf("its %s was %s, and is %s since it was paused", what, first[what], again[what])
		}
	}
	s.must(t, "DELETE", "/v1/snapshots/warm", "")
}

// TestForkOnce: a fork that is repeated under its key, at once, later, or at the next
// server, answers with the children that it made first, what has become of them since; the
// key is for no other.
func TestForkOnce(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", `{"name":"parent"}`)
	s.stdout(t, id, "open('kept', 'w').write('kept')")
	const body = `{"count":2,"names":["one"]}`
	ask := func(body string) (status int, ids []string, answer string) {
		t.Helper()
		status, answer, _ = s.do("POST", "/v1/sandboxes/parent/fork", body, "Idempotency-Key", "twins")
		var r struct{ Children []forkedChild }
		if status == http.StatusCreated {
			if err := json.Unmarshal([]byte(answer), &r); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range r.Children {
			ids = append(ids, c.Sandbox.ID)
		}
		return status, ids, answer
	}
	var all sync.WaitGroup
	var answers [3][]string
	for i := range answers {
		all.Go(func() { _, answers[i], _ = ask(body) })
	}
	all.Wait()
	first := answers[0]
	if len(first) != 2 || first[0] == "" || first[0] == first[1] || !slices.Equal(first, answers[1]) || !slices.Equal(first, answers[2]) {
		t.Fatalf("asked three times at once: %v", answers)
	}
	for _, child := range first {
		if got := s.stdout(t, child, "print(open('kept').read(), end='')"); got != "kept" {
			t.Errorf("%s has %q", child, got)
		}
	}
	if status, _, answer := ask(`{"count":3,"names":["one"]}`); status != http.StatusConflict {
		t.Errorf("another request under the key: %d %s", status, answer)
	}
	if status, answer, _ := s.do("POST", "/v1/sandboxes", "{}", "Idempotency-Key", "twins"); status != http.StatusConflict {
		t.Errorf("a create under the key: %d %s", status, answer)
	}
	s.must(t, "DELETE", "/v1/sandboxes/"+first[1], "")
	s.must(t, "DELETE", "/v1/sandboxes/"+id, "") // by name there is no such sandbox any more
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s = w.serve()
	status, again, answer := ask(body)
	if status != http.StatusCreated || !slices.Equal(first, again) || !strings.Contains(answer, `"state":"running"`) || !strings.Contains(answer, `"state":"ended"`) {
		t.Errorf("at the next server: %d %v %s", status, again, answer)
	}
	if got := s.stdout(t, first[0], "print(open('kept').read(), end='')"); got != "kept" {
		t.Errorf("the child has %q", got)
	}
	if status, answer, _ := s.do("GET", "/v1/sandboxes?state=all", ""); status != 200 || strings.Count(answer, `"id":"sb`) != 3 {
		t.Errorf("there are others: %s", answer)
	}
}

// TestForkShort: some children find no room, and say so; the others stand, and the
// parent is as it was.
func TestForkShort(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_TENANT_SANDBOXES=4")
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", `{"name":"box"}`)
	s.eval(t, id, "python", "x = 1")
	made := 0
	for i, c := range s.fork(t, id, `{"count":5,"names":["other"]}`) {
		switch {
		case c.Error.Kind == "":
			made++
			if e := s.eval(t, c.Sandbox.ID, "python", "x += 1\nx"); e.text() != "2" {
				t.Errorf("child %d: %+v", i, e)
			}
		case c.Error.Kind != "capacity" || c.Error.Message == "" || c.Error.Hint == "":
			t.Errorf("child %d: %+v", i, c)
		}
	}
	if made != 3 {
		t.Errorf("%d were made where three fit", made)
	}
	if r := w.run("", "fork", id, "-n", "2"); r.code == 0 || r.stdout != "" || !strings.Contains(r.stderr, "quota of sandboxes") {
		t.Errorf("where there is no room: %+v", r)
	}
	s.must(t, "DELETE", "/v1/sandboxes/other", "")
	if c := s.fork(t, id, `{"names":["box"]}`); len(c) != 1 || c[0].Error.Kind != "exists" {
		t.Errorf("with its parent's name: %+v", c)
	}
	if r := w.run("", "fork", id, "-n", "2", "--name", "last"); r.code == 0 || strings.Count(r.stdout, "\n") != 1 || !strings.Contains(r.stderr, "quota of sandboxes") {
		t.Errorf("where there is room for one: %+v", r)
	}
	if e := s.eval(t, id, "python", "x"); e.text() != "1" || s.state(t, id).State != "running" {
		t.Errorf("the parent knows %+v", e)
	}
	for body, want := range map[string]int{`{"count":65}`: 400, `{"count":-1}`: 400, `{"count":1,"names":["a","b"]}`: 400, `{"names":["a","a"]}`: 400, `{"timeout_ms":-1}`: 400} {
		if status, answer, _ := s.do("POST", "/v1/sandboxes/"+id+"/fork", body); status != want {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	s.noImages(t)
	if left, _ := os.ReadDir(filepath.Join(w.dir, "data", "snapshots")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestForkFresh: an interpreter that waits for the next program, as those of the pool's
// sandboxes have, is in no image. Or the first programs of two children would be copies
// of one another; and there is one again afterwards.
func TestForkFresh(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	w.env = append(w.env, "FIREBREAK_POOL_SIZE=1")
	s := w.serve()
	s.warm(t)
	id := s.made(t, "/v1/sandboxes", "{}")
	const draw = "import random\nprint(hash('x'), random.random())"
	seen := map[string]bool{}
	boxes := []string{id}
	for _, c := range s.fork(t, id, `{"count":3}`) {
		if c.Error.Kind != "" {
			t.Fatalf("%+v", c)
		}
		boxes = append(boxes, c.Sandbox.ID)
	}
	for range 2 {
		for _, box := range boxes {
			for _, v := range strings.Fields(s.stdout(t, box, draw)) {
				if seen[v] {
					t.Errorf("%s draws %s, as another did", box, v)
				}
				seen[v] = true
			}
		}
	}
	for _, box := range boxes {
		s.standsBy(t, box)
	}
}

// standsBy waits until an interpreter waits in a sandbox for its program: one that is
// used is older than the program that asks.
func (s *server) standsBy(t testing.TB, id string) {
	t.Helper()
	const age = "import os, time\nticks = int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19])\nprint(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK'))"
	for end := time.Now().Add(time.Minute); ; time.Sleep(2500 * time.Millisecond) {
		if f, err := strconv.ParseFloat(strings.TrimSpace(s.stdout(t, id, age)), 64); err == nil && f > 1 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("no interpreter waits in %s", id)
			return
		}
	}
}

// TestForkBites shows what the other tests look for: a program that nobody tells of the
// fork, and that keeps its randomness to itself, draws the same in every child.
func TestForkBites(t *testing.T) {
	enforcing(t)
	s := newWorld(t).serve()
	id := s.made(t, "/v1/sandboxes", "{}")
	s.must(t, "POST", "/v1/sandboxes/"+id+"/processes", `{"code":"import os, random, time\nrandom.random()\nopen('/tmp/up', 'w').close()\nwhile not os.path.exists('/tmp/draw'): time.sleep(0.01)\nopen('/tmp/part', 'w').write(str(random.random()))\nos.rename('/tmp/part', '/tmp/drawn')","language_pack":"python"}`)
	s.stdout(t, id, "import os, time\nwhile not os.path.exists('/tmp/up'): time.sleep(0.01)")
	var drawn []string
	for _, c := range s.fork(t, id, `{"count":2}`) {
		drawn = append(drawn, s.stdout(t, c.Sandbox.ID, "import os, time\nopen('/tmp/draw', 'w').close()\nwhile not os.path.exists('/tmp/drawn'): time.sleep(0.01)\nprint(open('/tmp/drawn').read())"))
	}
	if len(drawn) != 2 || drawn[0] != drawn[1] {
		t.Errorf("two copies of one generator drew %q", drawn)
	}
}
