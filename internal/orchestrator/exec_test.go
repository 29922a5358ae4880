package orchestrator

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func code(pack, text string) ExecRequest { return ExecRequest{Code: &text, Pack: pack} }

func within(req ExecRequest, d time.Duration) ExecRequest {
	req.Timeout = &d
	return req
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Limits: sandbox.Limits{Memory: 64 << 20, PIDs: 16}})
	in := func(req ExecRequest, s string) ExecRequest { req.Stdin = strings.NewReader(s); return req }
	with := func(req ExecRequest, f func(*ExecRequest)) ExecRequest { f(&req); return req }
	cat := "cat"
	for name, c := range map[string]struct {
		req    ExecRequest
		code   int
		reason sandbox.Reason
		detail string
		out    string
	}{
		"code":           {code("", "print(6*7) # sim: stdout 42"), 0, "done", "", "42\n"},
		"code in a file": {code("python", strings.Repeat("#\n", inlineCode)), 127, "done", "", ""}, // the model cannot run what is in it
		"exit code":      {sh("exit 7"), 7, "done", "", ""},
		"stdin":          {in(ExecRequest{Command: &cat}, "typed"), 0, "done", "", "typed"},
		"no stdin":       {ExecRequest{Command: &cat}, 0, "done", "", ""},
		"directory":      {with(sh("pwd"), func(r *ExecRequest) { r.Dir = "/tmp" }), 0, "done", "", "/tmp\n"},
		"environment":    {with(sh("echo $X"), func(r *ExecRequest) { r.Env = map[string]string{"X": "y"} }), 0, "done", "", "y\n"},
		"timeout":        {within(verb("sleep", "60s"), 300*time.Millisecond), 124, "timeout", "limit 300ms", ""},
		"own 124":        {sh("exit 124"), 124, "done", "", ""},
		"memory":         {verb("alloc", "1000000000"), 137, "memory", "limit 64 MiB", ""},
		"own 137":        {sh("exit 137"), 137, "done", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			exit, out := mustExec(t, o, alice, sb.ID, c.req)
			if exit.Code != c.code || exit.Reason != c.reason || exit.Detail != c.detail || out.out.String() != c.out || exit.Duration <= 0 {
				t.Errorf("%+v, stdout %.100q, stderr %.200q", exit, out.out.String(), out.err.String())
			}
		})
	}
	list, _, err := o.ListFiles(t.Context(), alice, string(sb.ID), "/tmp", guest.ListOptions{})
	if err != nil || len(list) != 0 {
		t.Errorf("left in /tmp: %v, %v", list, err)
	}
}

func TestExecRefuses(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	neg, empty, missing, huge := -time.Second, "", "no-such-program", strings.Repeat("x", maxCode+1)
	for name, c := range map[string]struct {
		req  ExecRequest
		kind sandbox.Kind
		hint bool
	}{
		"nothing":            {ExecRequest{}, sandbox.KindInvalid, false},
		"both":               {ExecRequest{Code: &missing, Command: &missing}, sandbox.KindInvalid, false},
		"empty command":      {ExecRequest{Command: &empty}, sandbox.KindInvalid, false},
		"missing program":    {ExecRequest{Command: &missing}, sandbox.KindNotFound, false},
		"missing directory":  {ExecRequest{Command: &missing, Dir: "/nowhere"}, sandbox.KindNotFound, false},
		"unknown pack":       {code("cobol", "x"), sandbox.KindInvalid, true},
		"pack not there":     {code("node", "x"), sandbox.KindInvalid, true},
		"root":               {ExecRequest{Command: &missing, User: "root"}, sandbox.KindDenied, true},
		"uid 0":              {ExecRequest{Command: &missing, User: "0"}, sandbox.KindDenied, true},
		"odd user":           {ExecRequest{Command: &missing, User: "a b"}, sandbox.KindInvalid, true},
		"negative timeout":   {ExecRequest{Command: &missing, Timeout: &neg}, sandbox.KindInvalid, true},
		"NUL in an argument": {ExecRequest{Command: &missing, Args: []string{"a\x00"}}, sandbox.KindInvalid, false},
		"NUL in environment": {ExecRequest{Command: &missing, Env: map[string]string{"A": "\x00"}}, sandbox.KindInvalid, true},
		"huge code":          {code("python", huge), sandbox.KindTooLarge, true},
		"huge arguments":     {ExecRequest{Command: &missing, Args: []string{strings.Repeat("x", 300<<10)}}, sandbox.KindTooLarge, false},
	} {
		_, err := o.Exec(t.Context(), alice, string(sb.ID), c.req, &collect{})
		var e *sandbox.Error
		if sandbox.KindOf(err) != c.kind || !errors.As(err, &e) || c.hint && e.Hint == "" {
			t.Errorf("%s: %v (%s), want %s", name, err, sandbox.KindOf(err), c.kind)
		}
	}
}

func TestResults(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	for in, bad := range map[string]string{
		`{"ok": 1}`:       "",
		`{"a":1,"a":2}`:   "twice",
		`{"a":NaN}`:       "not valid JSON",
		`{} trailing`:     "follows",
		`{"unterminated"`: "too early",
		strings.Repeat("[", 101) + strings.Repeat("]", 101): "deeper",
	} {
		req := verb("result", in)
		exit, _ := mustExec(t, o, alice, sb.ID, req)
		if bad == "" && (string(exit.Result) != in || exit.ResultError != "") || bad != "" && (exit.Result != nil || !strings.Contains(exit.ResultError, bad)) {
			t.Errorf("result %.40q: %q, %q", in, exit.Result, exit.ResultError)
		}
		if exit.Code != 0 || exit.Reason != sandbox.ReasonDone {
			t.Errorf("result %.40q changed the exit: %+v", in, exit)
		}
	}
	if exit, _ := mustExec(t, o, alice, sb.ID, sh("true")); exit.Result != nil || exit.ResultError != "" {
		t.Errorf("a result from before: %+v", exit)
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	begun := time.Now()
	_, err := o.Exec(ctx, alice, string(sb.ID), verb("sleep", "60s"), &collect{})
	wantKind(t, err, sandbox.KindCanceled)
	bad := errors.New("the connection is gone")
	_, err = o.Exec(t.Context(), alice, string(sb.ID), verb("out", "10000000"), &collect{each: func([]byte) error { return bad }})
	if !errors.Is(err, bad) {
		t.Errorf("the sink's error: %v", err)
	}
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
	l := o.find(alice.Tenant, string(sb.ID))
	s, err := l.session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "no process is left", func() bool {
		procs, err := s.Processes(t.Context())
		for _, p := range procs {
			if p.Exit == nil {
				return false
			}
		}
		return err == nil
	})
	kills := 0
	for _, a := range w.audit.actions(sb.ID) {
		if a == "process.kill done" {
			kills++
		}
	}
	if kills != 2 {
		t.Errorf("%d kills in the evidence", kills)
	}
}

func TestExecEndsWithItsSandbox(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	second := time.Second
	for name, c := range map[string]struct {
		req    CreateRequest
		end    func(Sandbox)
		code   int
		reason sandbox.Reason
	}{
		"destroyed": {CreateRequest{}, func(sb Sandbox) {
			if _, err := o.Destroy(t.Context(), bob, string(sb.ID)); sandbox.KindOf(err) != sandbox.KindNotFound {
				t.Error("bob destroyed it")
			}
			if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
				t.Error(err)
			}
		}, 137, sandbox.ReasonOperator},
		"expired": {CreateRequest{Timeout: &second}, func(Sandbox) {}, 124, sandbox.ReasonTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			sb := mustCreate(t, o, alice, c.req)
			started := make(chan struct{})
			sink := &signalSink{started: started}
			var wg sync.WaitGroup
			wg.Go(func() {
				exit, err := o.Exec(t.Context(), alice, string(sb.ID), verb("sleep", "60s"), sink)
				if err != nil || exit.Code != c.code || exit.Reason != c.reason {
					t.Errorf("exec: %+v, %v", exit, err)
				}
			})
			<-started
			c.end(sb)
			wg.Wait()
			eventually(t, "it has ended", func() bool {
				got, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
				return err == nil && got.Reason == c.reason && got.Receipt != nil && got.Receipt.Clean
			})
		})
	}
}

type signalSink struct {
	collect
	started chan struct{}
}

func (s *signalSink) Started(int, uint64) error { close(s.started); return nil }

// A caller that does not read must not keep another sandbox's output back, nor
// another process's in the same sandbox.
func TestSlowCallerStallsNobodyElse(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	slow, other := mustCreate(t, o, alice, CreateRequest{}), mustCreate(t, o, alice, CreateRequest{})
	ctx, cancel := context.WithCancel(t.Context())
	stuck, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = o.Exec(ctx, alice, string(slow.ID), verb("out", "50000000"), &collect{each: func([]byte) error {
			once.Do(func() { close(stuck) })
			<-release
			return ctx.Err()
		}})
	})
	<-stuck
	for _, id := range []sandbox.ID{other.ID, slow.ID} {
		if _, c := mustExec(t, o, alice, id, verb("out", "3000000")); c.out.Len() != 3000000 {
			t.Errorf("%d bytes", c.out.Len())
		}
	}
	cancel()
	close(release)
	wg.Wait()
}

func TestSessionIsReopened(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	l := o.find(alice.Tenant, string(sb.ID))
	for range 3 {
		s, err := l.session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if _, c := mustExec(t, o, alice, sb.ID, sh("echo still")); c.out.String() != "still\n" {
			t.Errorf("%q", c.out.String())
		}
	}
}

func TestOutputIsWhole(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	const n = 20_000_000
	count, largest := 0, 0
	c := &collect{}
	c.each = func(b []byte) error {
		count += len(b)
		largest = max(largest, len(b))
		c.out.Reset()
		return nil
	}
	exit, err := o.Exec(t.Context(), alice, string(sb.ID), verb("out", "20000000"), c)
	if err != nil || exit.Code != 0 || count != n || largest > chunk {
		t.Errorf("%d bytes, largest piece %d, %+v, %v", count, largest, exit, err)
	}
	total := 0
	for _, e := range w.told.of(sb.ID) {
		if e.Type == "stdout" {
			total += len(e.Data)
		}
	}
	if total != n {
		t.Errorf("%d bytes in events", total)
	}
}

// pieces is a stream on which one piece arrives at a time.
type pieces struct {
	in    []string
	there string
}

func (p *pieces) Peek(seen, limit int) ([]byte, error) {
	for len(p.there) <= seen {
		if len(p.in) == 0 {
			return []byte(p.there), io.EOF
		}
		p.there, p.in = p.there+p.in[0], p.in[1:]
	}
	return []byte(p.there), nil
}

func (p *pieces) Discard(n int) { p.there = p.there[n:] }

func TestPiecesEndBetweenCharacters(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	for _, c := range []struct{ in, want []string }{
		{[]string{"a\xe2", "\x82", "\xac", "b"}, []string{"a", "\u20ac", "b"}},
		{[]string{"\xf0\x9f\x98", "\x80\xf0"}, []string{"\U0001F600", "\xf0"}}, // the last is never finished
		{[]string{"\xff\xfe", "\x80\x80\x80\x80"}, []string{"\xff\xfe", "\x80\x80\x80\x80"}},
		{[]string{"\xe2\x28", "x"}, []string{"\xe2\x28", "x"}},
		{[]string{"", "\u00e9"}, []string{"\u00e9"}},
	} {
		x := &execution{l: o.newLive(Sandbox{Sandbox: store.Sandbox{ID: sandbox.NewID()}}, nil, nil), entry: &entry{PID: 1}}
		out := make(chan output)
		go func() { x.pump(chanStdout, &pieces{in: c.in}, out); close(out) }()
		var got []string
		for o := range out {
			got = append(got, string(o.data))
			o.taken <- struct{}{}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q came as %q, want %q", c.in, got, c.want)
		}
	}
}
