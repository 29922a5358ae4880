package orchestrator

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var vt = &guest.Size{Cols: 80, Rows: 24}

// shown is what the sandbox's events say that terminals showed.
func (w *world) shown(id sandbox.ID) string {
	var b bytes.Buffer
	for _, e := range w.told.of(id) {
		switch e.Type {
		case event.PTY:
			if int(e.Offset) != b.Len() {
				w.t.Errorf("at %d, want %d", e.Offset, b.Len())
			}
			b.Write(e.Data)
		case event.Stdout, event.Stderr:
			w.t.Errorf("%s of a terminal: %q", e.Type, e.Data)
		}
	}
	return b.String()
}

// A program in the background may have a terminal: typed at and resized like any
// other, and without a word of what is typed in the evidence.
func TestTerminal(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	id := string(sb.ID)
	req := command("sh", "-c", "stty size; cat")
	req.Tag, req.PTY = "vt", vt
	p := mustStart(t, o, sb.ID, req)
	if p.PTY == nil || *p.PTY != *vt || !p.Stdin {
		t.Errorf("%+v", p)
	}
	eventually(t, "it runs", func() bool { return w.shown(sb.ID) == "24 80\r\n" })
	w.write(o, sb.ID, "vt", "s", false)
	w.write(o, sb.ID, "vt", "ecret\r", false)
	eventually(t, "it comes back", func() bool { return strings.HasSuffix(w.shown(sb.ID), "secret\r\nsecret\r\n") })
	big := guest.Size{Cols: 132, Rows: 43}
	if p, err := o.ResizeProcess(t.Context(), alice, id, "vt", big); err != nil || *p.PTY != big {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := o.GetProcess(t.Context(), alice.Tenant, id, "vt", 0); err != nil || *p.PTY != big {
		t.Errorf("%+v, %v", p, err)
	}
	plain := mustStart(t, o, sb.ID, StartRequest{ExecRequest: verb("sleep", "1h"), Tag: "plain"})
	for name, c := range map[string]struct {
		err  error
		kind sandbox.Kind
	}{
		"of no size":         {second(o.ResizeProcess(t.Context(), alice, id, "vt", guest.Size{})), sandbox.KindInvalid},
		"without a terminal": {second(o.ResizeProcess(t.Context(), alice, id, "plain", big)), sandbox.KindConflict},
		"of another tenant":  {second(o.ResizeProcess(t.Context(), bob, id, "vt", big)), sandbox.KindNotFound},
		"of nobody":          {second(o.ResizeProcess(t.Context(), alice, id, "nobody", big)), sandbox.KindNotFound},
		"started of no size": {second(o.StartProcess(t.Context(), alice, id, StartRequest{ExecRequest: ExecRequest{Command: req.Command, PTY: &guest.Size{Cols: 1}}})), sandbox.KindInvalid},
		"started with input": {second(o.Exec(t.Context(), alice, id, ExecRequest{Command: req.Command, PTY: vt, Stdin: strings.NewReader("x")}, &collect{})), sandbox.KindInvalid},
	} {
		if sandbox.KindOf(c.err) != c.kind {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	w.audit.set(sandbox.Errorf("record", sandbox.KindNoSpace, "full"))
	if _, err := o.ResizeProcess(t.Context(), alice, id, "vt", *vt); sandbox.KindOf(err) != sandbox.KindNoSpace {
		t.Errorf("without evidence: %v", err)
	}
	w.audit.set(nil)
	if _, err := o.SignalProcess(t.Context(), alice, id, strconv.Itoa(plain.PID), sigKill); err != nil {
		t.Fatal(err)
	}
	w.write(o, sb.ID, "vt", "", true)
	if p := waited(t, o, sb.ID, "vt"); p.Exit.Code != 129 || p.Stdin {
		t.Errorf("closed: %+v", p.Exit)
	}
	if _, err := o.ResizeProcess(t.Context(), alice, id, "vt", big); sandbox.KindOf(err) != sandbox.KindGone {
		t.Errorf("after its end: %v", err)
	}
	resized, typed := 0, 0
	for _, r := range w.audit.records {
		switch r.Action {
		case "process.resize":
			resized++
			if r.Detail["terminal"] != "132x43" {
				t.Errorf("%+v", r)
			}
		case "process.stdin":
			typed++
			if r.Digest != "" {
				t.Errorf("the digest of keys is as good as the keys: %+v", r)
			}
		}
	}
	if resized != 1 || typed != 3 {
		t.Errorf("%d resizes, %d pieces of input", resized, typed)
	}
	if n := w.journalled(); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// An exec with a terminal is typed at by whoever knows its pid.
func TestTerminalExec(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	cat := "cat"
	c := &collect{}
	c.each = func([]byte) error {
		if strings.HasSuffix(c.out.String(), "hello\r\nhello\r\n") {
			w.write(o, sb.ID, strconv.Itoa(c.pid), "\x04", false)
		}
		return nil
	}
	go func() {
		for { // it is listed before it says so
			list, err := o.ListProcesses(t.Context(), alice.Tenant, string(sb.ID))
			if err != nil {
				return
			}
			if len(list) > 0 {
				_, _ = o.WriteStdin(t.Context(), alice, string(sb.ID), strconv.Itoa(list[0].PID), []byte("hello\r"), false)
				return
			}
		}
	}()
	exit, err := o.Exec(t.Context(), alice, string(sb.ID), ExecRequest{Command: &cat, PTY: vt}, c)
	if err != nil || exit.Code != 0 || c.out.String() != "hello\r\nhello\r\n" || c.err.Len() > 0 {
		t.Errorf("%+v, %v: %q %q", exit, err, c.out.String(), c.err.String())
	}
	if n := w.journalled(); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// A terminal outlives servers: what it showed is among the events, what is typed
// at the next one arrives, and that resizes it.
func TestTerminalOverRestarts(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	req := command("cat")
	req.Tag, req.PTY = "vt", vt
	mustStart(t, o, sb.ID, req)
	var want strings.Builder
	for i := range 4 {
		line := strings.Repeat(strconv.Itoa(i), 3000)
		w.write(o, sb.ID, "vt", line+"\r", false)
		want.WriteString(line + "\r\n" + line + "\r\n")
		if i%2 == 0 {
			eventually(t, "it comes back", func() bool { return len(w.shown(sb.ID)) == want.Len() })
		}
		w.abandon(o)
		o.work.Wait()
		o = w.start()
		if p, err := o.ResizeProcess(t.Context(), alice, string(sb.ID), "vt", guest.Size{Cols: 10 + i, Rows: 10}); err != nil || p.PTY == nil {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	w.write(o, sb.ID, "vt", "\x04", false)
	if exits := w.exited(sb.ID, 1); exits[0].Code != 0 {
		t.Errorf("%+v", exits)
	}
	// The model echoes a line before or after what came back of the last one.
	if got := w.shown(sb.ID); len(got) != want.Len() {
		t.Errorf("%d bytes, want %d", len(got), want.Len())
	}
	eventually(t, "the journal is empty", func() bool { return w.journalled() == 0 })
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
		t.Fatal(err)
	}
}
