package hostile

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/test/hostile/chaos"
)

// long also waits for what takes minutes: that a sandbox whose agent has fallen
// silent ends by itself.
var long = os.Getenv("FIREBREAK_HOSTILE") == "long"

// outcome is what the API may answer while a script plays, as a pattern over
// "status kind-or-reason", and whether the agent can be met again afterwards.
type outcome struct {
	answer string
	lives  bool
}

// usual are the scripts that run every time: one of each kind. The others need
// FIREBREAK_HOSTILE=long, and meet the same host in TestOverAPipe every time.
var usual = strings.Fields(`half-frame half-frame-silence negative-length bad-checksum deep-json odd-kind unknown-id replayed-replies
	over-credit ack-beyond forged-exit forged-reason result-endless tiny-flood blind-flood deaf-flood spin never-reads panic exit stall-file
	file-endless file-shorter file-reply-twice list-million list-names exit-after-hello hang-after-hello hello-twice replayed-session`)

func skipped(s chaos.Script) bool { return !long && !slices.Contains(usual, s.Name) }

const brokenSession = `200 (crashed|lost|done|timeout)|502 protocol|503 unavailable`

// outcomes are for the scripts that differ from the rule: the session breaks,
// the program is told about with reason crashed, and the next call meets an
// agent that works.
var outcomes = map[string]outcome{
	"half-frame":         {`200 (timeout|crashed|lost)`, true},
	"half-frame-silence": {`200 (timeout|crashed|lost)`, false},
	"deep-object":        {`200 (timeout|crashed|lost)`, true},
	"odd-kind":           {`502 protocol`, true},
	"empty-reply":        {`502 protocol`, true},
	"replayed-replies":   {`200 (timeout|crashed|lost)`, false},
	"ended-process":      {`200 done`, false},
	"forged-exit":        {`200 done`, true},
	"exit-twice":         {`200 (done|crashed|lost)`, true},
	"result-endless":     {`200 done`, false},
	"tiny-flood":         {`200 (timeout|crashed|lost)`, false},
	"blind-flood":        {`200 (timeout|crashed|lost)`, false},
	"empty-flood":        {`200 (timeout|crashed|lost)`, false},
	"window-flood":       {`200 (timeout|crashed|lost)`, false},
	"deaf-flood":         {`200 (timeout|crashed|lost)`, false},
	"started-mute":       {`200 (timeout|crashed|lost)`, false},
	"mute":               {`504 timeout|499 canceled|0 `, false},
	"spin":               {`200 (timeout|crashed|lost)`, false},
	"never-reads":        {`0 `, false},
	"panic":              {`200 crashed`, false},
	"exit":               {`200 crashed`, false},
	"exit-3":             {`410 gone|200 crashed`, false},
	"stall-file":         {`0 |504 timeout`, false},
	"file-endless":       {`200 `, false},
	"file-longer":        {`200 `, true},
	"file-shorter":       {`502 protocol`, true},
	"file-negative":      {`200 `, true},
	"file-without-reply": {`500 internal|502 protocol`, true},
	"file-reply-twice":   {`502 protocol`, true},
	"file-end-beyond":    {`502 protocol`, true},
	"list-million":       {`502 protocol`, false},
	"list-long-names":    {`413 too_large`, false},
	"list-names":         {`200 `, true},
	"list-odd":           {`200 |502 protocol`, true},
	"list-garbage":       {`502 protocol`, true},
	"deep-json":          {`502 protocol`, true},
	"odd-numbers":        {`502 protocol`, true},
}

// bound is how long a caller may wait for an answer: the program's deadline, the
// host's patience with it, and a machine that has other things to do.
const bound = 30 * time.Second

// TestChaos plays the scripts as PID 1 of real sandboxes, against a real server,
// eight at a time and beside two well-behaved neighbours.
func TestChaos(t *testing.T) {
	w := serve(t, chaotic(t))
	n := w.neighbours(t)
	n.alone(500 * time.Millisecond)
	goroutines, fds := w.metric("go_goroutines"), w.metric("process_open_fds")
	scripts := slices.DeleteFunc(slices.Clone(chaos.Scripts), func(s chaos.Script) bool {
		return s.At == chaos.Boot || skipped(s)
	})
	ids := make(map[string]string, len(scripts))
	for i, id := range w.createAll(t, len(scripts), `"limits":{"memory_bytes":67108864,"cpus":0.5}`) {
		ids[scripts[i].Name] = id
	}
	n.unharmed(t, func() {
		grown := w.memory()
		t.Run("scripts", func(t *testing.T) {
			for _, s := range chaos.Scripts {
				if s.At == chaos.Boot && !skipped(s) {
					t.Run(s.Name, func(t *testing.T) {
						t.Parallel()
						w.bootAttack(t, s)
					})
				}
			}
			slots := make(chan struct{}, 8)
			for _, s := range scripts {
				t.Run(s.Name, func(t *testing.T) {
					t.Parallel()
					slots <- struct{}{}
					defer func() { <-slots }()
					w.attack(t, n, s, ids[s.Name])
				})
			}
		})
		heap, resident := grown()
		t.Logf("the server's heap grew by %s at most, its resident set by %s", mib(heap), mib(resident))
		if heap > 40<<20 || resident > 64<<20 {
			t.Errorf("the server's heap grew by %s, its resident set by %s", mib(heap), mib(resident))
		}
	})
	w.quiet(t, goroutines, fds)
	left, err := os.ReadDir(w.dir + "/data/instances")
	if err != nil || len(left) != len(n.ids) {
		t.Errorf("instances are left: %v %v", left, err)
	}
	for _, s := range scripts {
		if got := w.records(ids[s.Name]); !slices.Contains(got, "sandbox.create") || !slices.Contains(got, "sandbox.receipt") {
			t.Errorf("%s: the evidence of its sandbox is %v", s.Name, got)
		}
	}
	for _, id := range n.ids {
		w.destroy(t, id)
	}
}

// attack triggers s in the sandbox id and looks at what the caller gets.
func (w *world) attack(t *testing.T, n *neighbours, s chaos.Script, id string) {
	instance := w.watch(t, id)
	start := time.Now()
	status, r := w.trigger(t, s, id)
	took := time.Since(start)
	want, special := outcomes[s.Name]
	if !special {
		want = outcome{brokenSession, true}
	}
	got := fmt.Sprintf("%d %s%s", status, r.Error.Kind, r.Reason)
	if !regexp.MustCompile(`^(` + want.answer + `)`).MatchString(got) {
		t.Errorf("%s, want %s: %.300s %s", got, want.answer, r.body, r.Error.Message)
	}
	if status >= 400 && r.Error.Hint == "" && r.Error.Kind != "internal" {
		t.Errorf("the error has no hint: %s", r.body)
	}
	if strings.ContainsFunc(r.Detail+r.Error.Message, func(c rune) bool { return c < ' ' || c == '\u202e' }) {
		t.Errorf("the answer carries what a terminal obeys: %q", r.body)
	}
	if took > bound && !long {
		t.Errorf("the answer took %v", took)
	}
	switch {
	case want.lives:
		if status, r := w.exec(id, 20*time.Second, "true"); status != http.StatusOK || r.Reason != "done" {
			t.Errorf("afterwards: %d %s", status, r.body)
		}
	case long && s.Name != "ended-process" && s.Name != "replayed-replies": // those floods end, and the agent comes back
		w.endsByItself(t, id)
	}
	w.end(t, n, id, instance, "sandbox.create", "sandbox.receipt")
}

// trigger makes the call that s is about.
func (w *world) trigger(t *testing.T, s chaos.Script, id string) (int, reply) {
	files := "/v1/sandboxes/" + id + "/files"
	switch {
	case s.At == chaos.Exec:
		return w.exec(id, time.Second, chaos.Program, s.Name)
	case s.At == chaos.List:
		return w.do("GET", files+"/list?path="+chaos.Dir+s.Name, "")
	case s.At == chaos.Write, s.Name == "stall-file":
		// Nobody waits for these but the caller: it gives up.
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		method, body := "GET", ""
		if s.At == chaos.Write {
			method, body = "PUT", strings.Repeat("x", 32<<20)
		}
		return w.doContext(ctx, method, files+"?path="+chaos.Dir+s.Name, body)
	}
	return w.do("GET", files+"?path="+chaos.Dir+s.Name, "")
}

// endsByItself waits until the sandbox is found out.
func (w *world) endsByItself(t *testing.T, id string) {
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(time.Second) {
		_, r := w.do("GET", "/v1/sandboxes/"+id, "")
		if r.State == "ended" {
			if r.Reason != "crashed" || r.Detail == "" {
				t.Errorf("it ended with %q (%s), want crashed and why", r.Reason, r.Detail)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("it still is %s after five minutes", r.State)
			return
		}
		w.exec(id, time.Second, "true") // only who uses it can find out
	}
}

// bootAttack plays an agent that is hostile before it has said hello, or right
// after it (case 39): create ends in time, with a type, and leaves nothing.
func (w *world) bootAttack(t *testing.T, s chaos.Script) {
	patience := 5 * time.Second
	if long {
		patience = 3 * time.Minute // the server's own is a minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	status, r := w.doContext(ctx, "POST", "/v1/sandboxes", `{"hostname":"`+chaos.HostPrefix+s.Name+`","limits":{"memory_bytes":67108864,"cpus":0.5}}`)
	t.Logf("create: %d %s %s", status, r.Error.Kind, r.Error.Message)
	switch {
	case status == http.StatusCreated: // it said hello: what comes then is the next call's to find out
		id, limit := r.ID, 3*time.Second
		if long {
			limit = 5 * time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		status, r := w.doContext(ctx, "POST", "/v1/sandboxes/"+id+"/exec", `{"command":"true","timeout_ms":1000}`)
		if status == http.StatusOK && r.Reason == "done" || long && status == 0 {
			t.Errorf("exec: %d %s", status, r.body)
		}
		w.destroy(t, id)
	case status == 0 && !long: // we gave up, and the server must tidy up
	case status < 400 || r.Error.Kind == "":
		t.Errorf("create: %d %s", status, r.body)
	}
}
