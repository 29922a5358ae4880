package orchestrator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest/driver"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// show is a TurnSink that keeps everything, in order.
type show struct {
	context  string
	turn     int
	out, err bytes.Buffer
	results  []*driver.Result
	failed   *driver.Error
	order    []string
	each     func(what string) error
}

func (s *show) note(what string) error {
	s.order = append(s.order, what)
	if s.each != nil {
		return s.each(what)
	}
	return nil
}

func (s *show) Begun(c string, n, _ int, _ uint64) error {
	s.context, s.turn = c, n
	return s.note("begun")
}
func (s *show) Stdout(b []byte, _ uint64) error { s.out.Write(b); return s.note("stdout") }
func (s *show) Stderr(b []byte, _ uint64) error { s.err.Write(b); return s.note("stderr") }
func (s *show) Result(r *driver.Result, _ uint64) error {
	s.results = append(s.results, r)
	return s.note("result")
}
func (s *show) Failed(e *driver.Error, _ uint64) error { s.failed = e; return s.note("failed") }

// sims makes code of directives.
func sims(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString("# sim: " + l + "\n")
	}
	return b.String()
}

func eval(t *testing.T, o *Orchestrator, id sandbox.ID, req EvalRequest) (TurnEnd, *show) {
	t.Helper()
	s := &show{}
	end, err := o.Eval(t.Context(), alice, string(id), req, s)
	if err != nil {
		t.Fatalf("eval: %v", err)
	}
	return end, s
}

// turned is the last event of a turn's end, and how many there are.
func (w *world) ends(id sandbox.ID) (n int) {
	for _, e := range w.told.of(id) {
		if e.Type == event.TurnEnd {
			n++
		}
	}
	return n
}

// Turns share what they name, in order, and leave evidence.
func TestContext(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	end, s := eval(t, o, sb.ID, EvalRequest{Code: sims("set a 42", "stdout one", "show x", "stdout two")})
	if end.Reason != sandbox.ReasonDone || !end.Alive || end.Count != 1 || end.Turn != 1 || end.Context != "python" || end.Error != nil {
		t.Errorf("%+v", end)
	}
	if s.out.String() != "one\ntwo\n" || !slices.Equal(s.order, []string{"begun", "stdout", "result", "stdout"}) || s.results[0].Text != "x" {
		t.Errorf("%q %v %+v", s.out.String(), s.order, s.results)
	}
	end, s = eval(t, o, sb.ID, EvalRequest{Code: sims("get a", `json {"k": [1]}`)})
	if len(s.results) != 2 || s.results[0].Text != "42" || !s.results[0].Main || string(s.results[1].JSON) != `{"k":[1]}` || end.Count != 2 {
		t.Errorf("%+v %+v", end, s.results)
	}
	end, s = eval(t, o, sb.ID, EvalRequest{Code: sims("raise ValueError wrong"), Context: "python"})
	if end.Reason != sandbox.ReasonDone || end.Error == nil || s.failed == nil || end.Error.Name != "ValueError" || end.Error.Value != "wrong" {
		t.Errorf("%+v", end)
	}
	// Another context knows nothing of it.
	c, err := o.CreateContext(t.Context(), alice, string(sb.ID), ContextRequest{Env: map[string]string{"K": "v"}})
	if err != nil || c.State != ContextReady || c.PID == 0 || !slices.Equal(c.EnvNames, []string{"K"}) {
		t.Fatalf("%+v, %v", c, err)
	}
	if end, _ := eval(t, o, sb.ID, EvalRequest{Code: sims("get a"), Context: c.ID}); end.Error == nil || end.Error.Name != "NameError" {
		t.Errorf("%+v", end)
	}
	list, err := o.ListContexts(t.Context(), alice.Tenant, string(sb.ID))
	if err != nil || len(list) != 2 || list[0].ID != "python" || list[0].Turns != 3 || list[1].ID != c.ID {
		t.Errorf("%+v, %v", list, err)
	}
	for name, err := range map[string]error{
		"unknown":        second(o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{Context: "nothing"}, &show{})),
		"another tenant": second(o.Eval(t.Context(), bob, string(sb.ID), EvalRequest{}, &show{})),
		"get":            second(o.GetContext(t.Context(), alice.Tenant, string(sb.ID), "nothing")),
	} {
		wantKind(t, err, sandbox.KindNotFound)
		_ = name
	}
	wantKind(t, second(o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{Context: c.ID, Language: "node"}, &show{})), sandbox.KindInvalid)
	wantKind(t, second(o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{Language: "shell"}, &show{})), sandbox.KindUnsupported)
	// Its process is not anybody's to write to.
	wantKind(t, second(o.WriteStdin(t.Context(), alice, string(sb.ID), fmt.Sprint(c.PID), []byte("{}\n"), false)), sandbox.KindConflict)
	if d, err := o.DeleteContext(t.Context(), alice, string(sb.ID), c.ID); err != nil || d.State != ContextDead || d.Reason != sandbox.ReasonOperator {
		t.Errorf("%+v, %v", d, err)
	}
	wantKind(t, second(o.DeleteContext(t.Context(), alice, string(sb.ID), c.ID)), sandbox.KindNotFound)
	actions := w.audit.actions(sb.ID)
	for _, want := range []string{"context.create allowed", "context.eval allowed", "context.eval done", "context.delete allowed"} {
		if !slices.Contains(actions, want) {
			t.Errorf("no %s in %q", want, actions)
		}
	}
	// What was shown is among the events, and no message is.
	kinds := map[event.Type]int{}
	for _, e := range w.told.of(sb.ID) {
		kinds[e.Type]++
		if bytes.ContainsRune(e.Data, 0x1e) {
			t.Errorf("a driver's chunk in %s: %q", e.Type, e.Data)
		}
	}
	if kinds[event.Turn] != 4 || kinds[event.TurnEnd] != 4 || kinds[event.Display] != 3 || kinds[event.Exception] != 2 {
		t.Errorf("%v", kinds)
	}
}

// A turn is interrupted by hand, by its caller's leaving, and by its limit, and
// the state stays; what does not mind is ended, and says so.
func TestContextInterrupt(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	eval(t, o, sb.ID, EvalRequest{Code: sims("set a 1")})
	s := &show{each: func(what string) error {
		if what == "stdout" {
			go o.InterruptContext(context.Background(), alice, string(sb.ID), "python")
		}
		return nil
	}}
	end, err := o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{Code: sims("stdout up", "sleep 600")}, s)
	if err != nil || end.Reason != sandbox.ReasonOperator || end.Detail != "interrupted by alice" || !end.Alive || end.Error.Name != "KeyboardInterrupt" {
		t.Errorf("%+v, %v", end, err)
	}
	gone := errors.New("gone")
	if _, err := o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{Code: sims("stdout up", "sleep 600")}, &show{each: func(what string) error {
		if what == "stdout" {
			return gone
		}
		return nil
	}}); !errors.Is(err, gone) {
		t.Error(err)
	}
	limit := 20 * time.Millisecond
	end, _ = eval(t, o, sb.ID, EvalRequest{Code: sims("sleep 600"), Timeout: &limit})
	if end.Reason != sandbox.ReasonTimeout || !end.Alive || end.Detail != "limit 20ms" {
		t.Errorf("%+v", end)
	}
	if end, s := eval(t, o, sb.ID, EvalRequest{Code: sims("get a")}); end.Error != nil || s.results[0].Text != "1" {
		t.Errorf("%+v", end)
	}
	if testing.Short() {
		return
	}
	end, _ = eval(t, o, sb.ID, EvalRequest{Code: sims("stubborn", "sleep 600"), Timeout: &limit})
	if end.Reason != sandbox.ReasonTimeout || end.Alive || end.Detail != "limit 20ms" {
		t.Errorf("%+v", end)
	}
	e := wantKind(t, second(o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{}, &show{})), sandbox.KindGone)
	if !strings.Contains(e.Error(), "timeout (limit 20ms)") || !strings.Contains(e.Hint, "restart") {
		t.Error(e)
	}
	c, err := o.RestartContext(t.Context(), alice, string(sb.ID), "python")
	if err != nil || c.State != ContextReady {
		t.Fatalf("%+v, %v", c, err)
	}
	if end, _ := eval(t, o, sb.ID, EvalRequest{Code: sims("get a")}); end.Error == nil || end.Turn != 1 {
		t.Errorf("it still knows: %+v", end)
	}
}

// However an interpreter ends in a turn, the turn ends with a reason, and so do
// those that wait.
func TestContextEnds(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	for name, ends := range map[string]struct {
		code   string
		act    func(id string) error
		reason sandbox.Reason
		detail string
	}{
		"exit":   {code: "exit 3", reason: sandbox.ReasonCrashed, detail: "the interpreter ended with exit code 3"},
		"signal": {code: "signalself 9", reason: sandbox.ReasonCrashed, detail: "the interpreter ended with exit code 137"},
		"killed": {act: func(id string) error {
			return second(o.SignalProcess(context.Background(), alice, id, "context:python", sigKill))
		}, reason: sandbox.ReasonOperator, detail: "killed by alice"},
		"restart": {act: func(id string) error { return second(o.RestartContext(context.Background(), alice, id, "python")) }, reason: sandbox.ReasonOperator, detail: "restarted by alice"},
		"delete":  {act: func(id string) error { return second(o.DeleteContext(context.Background(), alice, id, "python")) }, reason: sandbox.ReasonOperator, detail: "deleted by alice"},
		"sandbox": {act: func(id string) error { return second(o.Destroy(context.Background(), alice, id)) }, reason: sandbox.ReasonOperator, detail: "destroyed by alice"},
	} {
		sb := mustCreate(t, o, alice, CreateRequest{})
		eval(t, o, sb.ID, EvalRequest{Code: sims("set a 1")})
		var wg sync.WaitGroup
		code := sims("stdout up", "sleep 600")
		if ends.code != "" {
			code = sims("stdout up", ends.code)
		}
		s := &show{each: func(what string) error {
			if what != "stdout" {
				return nil
			}
			waits := make(chan struct{})
			wg.Go(func() {
				close(waits)
				_, err := o.Eval(context.Background(), alice, string(sb.ID), EvalRequest{Code: sims("get a")}, &show{})
				if k := sandbox.KindOf(err); k != sandbox.KindGone && (k != "" || name != "restart" && name != "delete") {
					t.Errorf("%s: one that waited: %v", name, err)
				}
			})
			<-waits
			if ends.act != nil {
				wg.Go(func() {
					if err := ends.act(string(sb.ID)); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			return nil
		}}
		end, err := o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{Code: code}, s)
		if err != nil || end.Reason != ends.reason || end.Detail != ends.detail || end.Alive {
			t.Errorf("%s: %+v, %v", name, end, err)
		}
		wg.Wait()
	}
}

// What user code makes of the token fools nobody but itself.
func TestContextForged(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	for _, forged := range []string{
		"T", "T3", "T3zzzz", "T30005{}", "T30002{}", "T30003nul", "T1ffff", "T2000a0123456789", "T40002{}", "x\x1ey", "T30016" + `{"type":"end","turn":9}`,
		"T30017" + `{"type":"result","x":1}`, "T30010" + `{"type":"ready"}`,
	} {
		end, _ := eval(t, o, sb.ID, EvalRequest{Code: sims("forge "+forged, "show after")})
		if end.Reason != sandbox.ReasonDone || !end.Alive {
			t.Errorf("%q: %+v", forged, end)
		}
	}
	// It can end its own turn early, and no other.
	c, err := o.GetContext(t.Context(), alice.Tenant, string(sb.ID), "python")
	if err != nil {
		t.Fatal(err)
	}
	early := fmt.Sprintf(`{"type":"end","turn":%d}`, c.Turns+1)
	eval(t, o, sb.ID, EvalRequest{Code: sims(fmt.Sprintf("forge T3%04x%s", len(early), early))})
	for i := range 3 {
		if end, s := eval(t, o, sb.ID, EvalRequest{Code: sims(fmt.Sprint("show ", i))}); !end.Alive || len(s.results) != 1 || s.results[0].Text != fmt.Sprint(i) {
			t.Errorf("%+v %+v", end, s.results)
		}
	}
}

// Many contexts and many turns at once: each turn gets its own output, in order,
// and what is too much is refused.
func TestContextsTogether(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	var ids []string
	for range 4 {
		c, err := o.CreateContext(t.Context(), alice, string(sb.ID), ContextRequest{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.ID)
	}
	var wg sync.WaitGroup
	for i, id := range ids {
		for k := range 8 {
			wg.Go(func() {
				want := fmt.Sprint(i, k)
				end, s := eval(t, o, sb.ID, EvalRequest{Context: id, Code: sims("stdout "+want, "show "+want)})
				if end.Reason != sandbox.ReasonDone || s.out.String() != want+"\n" || s.results[0].Text != want {
					t.Errorf("%+v %q %+v", end, s.out.String(), s.results)
				}
			})
		}
	}
	wg.Wait()
	for range maxContexts - len(ids) {
		if _, err := o.CreateContext(t.Context(), alice, string(sb.ID), ContextRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, second(o.CreateContext(t.Context(), alice, string(sb.ID), ContextRequest{})), sandbox.KindCapacity)
	wantKind(t, second(o.Eval(t.Context(), alice, string(sb.ID), EvalRequest{}, &show{})), sandbox.KindCapacity)
	var refused sync.Map
	ctx, cancel := context.WithCancel(t.Context())
	for range maxTurns + 8 {
		wg.Go(func() {
			_, err := o.Eval(ctx, alice, string(sb.ID), EvalRequest{Context: ids[0], Code: sims("sleep 600")}, &show{})
			if sandbox.KindOf(err) == sandbox.KindCapacity {
				refused.Store(err, true)
			}
		})
	}
	eventually(t, "too many wait", func() bool {
		n := 0
		refused.Range(func(any, any) bool { n++; return true })
		return n >= 7
	})
	cancel()
	wg.Wait()
}

// Idleness and age end a context, and say so; a context keeps no sandbox from
// being idle.
func TestContextTime(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	idle := 50 * time.Millisecond
	sb := mustCreate(t, o, alice, CreateRequest{})
	for want, req := range map[sandbox.Reason]ContextRequest{sandbox.ReasonIdle: {IdleTimeout: &idle}, sandbox.ReasonTimeout: {MaxLife: &idle}} {
		c, err := o.CreateContext(t.Context(), alice, string(sb.ID), req)
		if err != nil {
			wantKind(t, err, sandbox.KindGone) // on a slow machine
		}
		eventually(t, "it ends", func() bool {
			c, err = o.GetContext(t.Context(), alice.Tenant, string(sb.ID), c.ID)
			return err == nil && c.State == ContextDead
		})
		if c.Reason != want {
			t.Errorf("%+v", c)
		}
	}
	short := 300 * time.Millisecond
	sb = mustCreate(t, o, alice, CreateRequest{IdleTimeout: &short})
	eval(t, o, sb.ID, EvalRequest{Code: sims("show x")})
	eventually(t, "the sandbox is idle", func() bool {
		got, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
		return err == nil && got.Reason == sandbox.ReasonIdle
	})
}

// A context outlives servers: its names are kept, a turn that is under way goes
// on, and its end is among the events.
func TestContextOverRestarts(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	eval(t, o, sb.ID, EvalRequest{Code: sims("set a 42")})
	for i := range 3 {
		w.abandon(o)
		o.work.Wait()
		o = w.start()
		if end, s := eval(t, o, sb.ID, EvalRequest{Code: sims("get a", "stdout x")}); end.Error != nil || s.results[0].Text != "42" || s.out.String() != "x\n" || end.Count != i+2 {
			t.Fatalf("%+v %+v", end, s.results)
		}
	}
	// In a turn.
	begun := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := o.Eval(context.Background(), alice, string(sb.ID), EvalRequest{Code: sims("set b 7", "stdout up", "sleep 1", "stdout done", "show last")}, &show{each: func(what string) error {
			if what == "stdout" {
				close(begun)
			}
			return nil
		}})
		wantKind(t, err, sandbox.KindUnavailable)
	})
	<-begun
	ended := w.ends(sb.ID)
	w.abandon(o)
	wg.Wait()
	o.work.Wait()
	w.cfg = nil
	o = w.start()
	if c, err := o.GetContext(t.Context(), alice.Tenant, string(sb.ID), "python"); err != nil || c.Turns < 5 {
		t.Errorf("%+v, %v", c, err)
	}
	if end, s := eval(t, o, sb.ID, EvalRequest{Code: sims("get b", "get a")}); end.Error != nil || s.results[0].Text != "7" || s.results[1].Text != "42" {
		t.Errorf("%+v", end)
	}
	if n := w.ends(sb.ID) - ended; n != 2 {
		t.Errorf("%d ends of two turns", n)
	}
	if out, _ := w.printed(sb.ID); !strings.HasSuffix(out, "up\ndone\n") {
		t.Errorf("%q", out)
	}
	if _, err := o.DeleteContext(t.Context(), alice, string(sb.ID), "python"); err != nil {
		t.Error(err)
	}
	eventually(t, "the journal is empty", func() bool { return w.journalled() == 0 })
}
