package orchestrator

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func mustStart(t *testing.T, o *Orchestrator, id sandbox.ID, req StartRequest) Process {
	t.Helper()
	p, err := o.StartProcess(t.Context(), alice, string(id), req)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// command is a program in the background.
func command(name string, args ...string) StartRequest {
	return StartRequest{ExecRequest: ExecRequest{Command: &name, Args: args}}
}

// waited is the process once it has ended.
func waited(t *testing.T, o *Orchestrator, id sandbox.ID, which string) Process {
	t.Helper()
	p, err := o.GetProcess(t.Context(), alice.Tenant, string(id), which, time.Minute)
	if err != nil || p.Exit == nil {
		t.Fatalf("%+v, %v", p, err)
	}
	return p
}

func (w *world) write(o *Orchestrator, id sandbox.ID, which, data string, end bool) {
	w.t.Helper()
	if _, err := o.WriteStdin(w.t.Context(), alice, string(id), which, []byte(data), end); err != nil {
		w.t.Fatal(err)
	}
}

// A program in the background needs nobody, has a name, an input and an end that
// can be asked for, and evidence of all that.
func TestBackground(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	id := string(sb.ID)
	req := command("cat")
	req.Tag, req.Open = "echo", true
	p := mustStart(t, o, sb.ID, req)
	if p.PID == 0 || p.Tag != "echo" || p.Program != "cat" || !p.Background || !p.Stdin || p.Exit != nil || p.Event == 0 || p.Timeout != 0 {
		t.Errorf("%+v", p)
	}
	if _, err := o.StartProcess(t.Context(), alice, id, req); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("a second one with its tag: %v", err)
	}
	w.write(o, sb.ID, "echo", "one\n", false)
	w.write(o, sb.ID, strconv.Itoa(p.PID), "two\n", false)
	eventually(t, "it comes back", func() bool { out, _ := w.printed(sb.ID); return out == "one\ntwo\n" })
	if got, err := o.GetProcess(t.Context(), alice.Tenant, id, "echo", time.Millisecond); err != nil || got.Exit != nil || !got.Stdin {
		t.Errorf("%+v, %v", got, err)
	}
	w.write(o, sb.ID, "echo", "", true)
	p = waited(t, o, sb.ID, "echo")
	if p.Exit.Code != 0 || p.Exit.Reason != sandbox.ReasonDone || p.Stdin {
		t.Errorf("%+v", p.Exit)
	}
	for name, err := range map[string]error{
		"input":   second(o.WriteStdin(t.Context(), alice, id, "echo", nil, false)),
		"signals": second(o.SignalProcess(t.Context(), alice, id, "echo", 15)),
	} {
		if sandbox.KindOf(err) != sandbox.KindGone {
			t.Errorf("%s after its end: %v", name, err)
		}
	}
	// Its tag is free again.
	again := mustStart(t, o, sb.ID, req)
	if _, err := o.SignalProcess(t.Context(), alice, id, "echo", sigKill); err != nil {
		t.Fatal(err)
	}
	if p = waited(t, o, sb.ID, strconv.Itoa(again.PID)); p.Exit.Code != 137 || p.Exit.Reason != sandbox.ReasonOperator || p.Exit.Detail != "killed by alice" {
		t.Errorf("%+v", p.Exit)
	}
	list, err := o.ListProcesses(t.Context(), alice.Tenant, id)
	if err != nil || len(list) != 2 || list[0].Exit == nil || list[1].Exit == nil {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := o.GetProcess(t.Context(), alice.Tenant, id, "nothing", 0); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Error(err)
	}
	if _, err := o.GetProcess(t.Context(), bob.Tenant, id, "echo", 0); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another tenant: %v", err)
	}
	closed := mustStart(t, o, sb.ID, command("cat"))
	waited(t, o, sb.ID, strconv.Itoa(closed.PID)) // its input is at its end
	actions := w.audit.actions(sb.ID)
	for _, want := range []string{"process.exec allowed", "process.stdin allowed", "process.signal allowed", "process.kill done", "process.exit done"} {
		if !slices.Contains(actions, want) {
			t.Errorf("no %s in %q", want, actions)
		}
	}
	if n := w.journalled(); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

func second[T any](_ T, err error) error { return err }

// What cannot be done says so, and leaves nothing.
func TestBackgroundRefused(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	req := command("no-such-program")
	req.Tag, req.Open = "x", true
	if _, err := o.StartProcess(t.Context(), alice, string(sb.ID), req); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Error(err)
	}
	req = command("cat")
	req.Tag, req.Open = "x", true // free
	mustStart(t, o, sb.ID, req)
	big := make([]byte, 16<<20)
	for range 4 {
		w.write(o, sb.ID, "x", string(big), false)
	}
	if _, err := o.WriteStdin(t.Context(), alice, string(sb.ID), "x", []byte("y"), false); sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Error(err)
	}
	w.audit.set(sandbox.Errorf("record", sandbox.KindNoSpace, "full"))
	for name, err := range map[string]error{
		"start":  second(o.StartProcess(t.Context(), alice, string(sb.ID), command("true"))),
		"signal": second(o.SignalProcess(t.Context(), alice, string(sb.ID), "x", 2)),
		"stdin":  second(o.WriteStdin(t.Context(), alice, string(sb.ID), "x", nil, true)),
	} {
		if sandbox.KindOf(err) != sandbox.KindNoSpace {
			t.Errorf("%s without evidence: %v", name, err)
		}
	}
	w.audit.set(nil)
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left", func() bool { return w.journalled() == 0 })
}

// Input that was accepted reaches the program once and in order, whatever
// happens to connections and servers in between; and so does its end.
func TestBackgroundOverRestarts(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	req := command("cat")
	req.Tag, req.Open = "c", true
	mustStart(t, o, sb.ID, req)
	var want strings.Builder
	for i := range 5 {
		for k := range 20 {
			line := fmt.Sprintln(i, k, strings.Repeat("x", 20000))
			want.WriteString(line)
			w.write(o, sb.ID, "c", line, false)
			if k == 10 && i%2 == 0 {
				s, err := o.find(alice.Tenant, string(sb.ID)).session(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
			}
		}
		if i == 4 {
			w.write(o, sb.ID, "c", "", true)
		}
		w.abandon(o)
		o.work.Wait()
		if i == 4 {
			w.cfg = nil
		}
		o = w.start()
	}
	exits := w.exited(sb.ID, 1)
	if out, _ := w.printed(sb.ID); out != want.String() || exits[0].Code != 0 {
		t.Errorf("%d bytes came back, of %d, or others; %+v", len(out), want.Len(), exits)
	}
	eventually(t, "the journal is empty", func() bool { return w.journalled() == 0 })
}

// Many at once, started, signalled, waited for and listed by many.
func TestBackgroundTogether(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			req := command("cat")
			req.Tag, req.Open = fmt.Sprint("t", i%16), true // some tags twice
			p, err := o.StartProcess(context.Background(), alice, string(sb.ID), req)
			if sandbox.KindOf(err) == sandbox.KindConflict && i >= 0 {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			pid := strconv.Itoa(p.PID)
			if i%2 == 0 {
				_, err = o.SignalProcess(context.Background(), alice, string(sb.ID), pid, sigKill)
			} else {
				_, err = o.WriteStdin(context.Background(), alice, string(sb.ID), pid, []byte("x"), true)
			}
			if err != nil {
				t.Error(err)
			}
			if _, err := o.ListProcesses(context.Background(), alice.Tenant, string(sb.ID)); err != nil {
				t.Error(err)
			}
			if p, err := o.GetProcess(context.Background(), alice.Tenant, string(sb.ID), pid, time.Minute); err != nil || p.Exit == nil {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	wg.Wait()
	l := o.find(alice.Tenant, string(sb.ID))
	if len(l.execs) != 0 || len(l.claimed) != 0 || w.journalled() != 0 {
		t.Errorf("%d executions, %d tags, %d files are left", len(l.execs), len(l.claimed), w.journalled())
	}
}
