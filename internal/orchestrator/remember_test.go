package orchestrator

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// How a process in the background ended is known to the next server, wherever the
// one that saw it was cut off, it is told once, and the sandbox's end takes it along.
func TestEndIsRemembered(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	id := string(sb.ID)
	var codes []int
	for i, at := range []string{"exec/after-exit", "exec/after-noted", "exec/after-exit-evidence", "exec/after-report", "exec/after-end"} {
		req := command("sh", "-c", "cat; exit "+strconv.Itoa(3+i))
		req.Tag, req.Open = at, true
		mustStart(t, o, sb.ID, req)
		reached := make(chan struct{})
		restore := failpoint.Intercept(func(name string) {
			if name == at {
				close(reached)
				runtime.Goexit()
			}
		})
		w.write(o, sb.ID, at, "go\n", true)
		<-reached
		restore()
		w.abandon(o)
		o = w.start()
		codes = append(codes, 3+i)
		list, err := o.ListProcesses(t.Context(), alice.Tenant, id)
		if err != nil {
			t.Fatal(err)
		}
		if at == "exec/after-exit" { // nothing is noted: it is followed on
			waited(t, o, sb.ID, at)
			list, _ = o.ListProcesses(t.Context(), alice.Tenant, id)
		}
		var got []int
		for _, p := range list {
			if p.Exit == nil {
				t.Fatalf("%s: %s runs", at, p.Tag)
			}
			got = append(got, p.Exit.Code)
		}
		if !slices.Equal(got, codes) {
			t.Errorf("%s: remembered are %v, not %v", at, got, codes)
		}
		p, err := o.GetProcess(t.Context(), alice.Tenant, id, at, time.Minute)
		if err != nil || p.Exit == nil || p.Exit.Code != 3+i || p.Exit.Reason != sandbox.ReasonDone || p.Stdin {
			t.Errorf("%s: %+v, %v", at, p, err)
		}
		w.exited(sb.ID, i+1)
	}
	exits := 0
	for _, e := range w.told.of(sb.ID) {
		if e.Type == event.Exit {
			exits++
		}
	}
	if n := w.journalled(); exits != len(codes) || n != 0 {
		t.Errorf("%d ends were told of %d, %d files are left beside them", exits, len(codes), n)
	}
	if _, err := o.Destroy(t.Context(), alice, id); err != nil {
		t.Fatal(err)
	}
	if left := w.journal(); len(left) != 0 {
		t.Errorf("the sandbox's end left %q", left)
	}
}

// What is remembered is bounded, on the disk as well, and an exec that somebody
// waits for is not written down.
func TestRememberedIsBounded(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	mustExec(t, o, alice, sb.ID, sh("true"))
	if left := slices.DeleteFunc(w.journal(), func(name string) bool { return filepath.Ext(name) == usedSuffix }); len(left) != 0 {
		t.Errorf("of an exec: %q", left)
	}
	l := o.find(alice.Tenant, string(sb.ID))
	for i := range uint32(maxEnded + 20) {
		x := l.execution(alice, nobody{}, &entry{ID: 1<<20 + i, PID: int(i), Background: true})
		if err := x.enlist(); err != nil {
			t.Fatal(err)
		}
		if err := x.amend(func(e *entry) { e.End = &ExecExit{Code: int(i)} }); err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		x.end = x.entry.End
		l.mu.Unlock()
		x.delist()
	}
	entries, err := o.journal.read()
	if err != nil || len(entries[sb.ID]) < maxEnded-1 || len(entries[sb.ID]) > maxEnded { // the exec is among those in memory
		t.Errorf("%d are on the disk, %v", len(entries[sb.ID]), err)
	}
}

// What processes report is remembered within bounds, the newest first, and on the
// disk where it is small.
func TestReportedIsBounded(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	const size = 1 << 20
	result := []byte(`"` + strings.Repeat("x", size-2) + `"`)
	l := o.find(alice.Tenant, string(sb.ID))
	for i, r := range [][]byte{result, result, result, []byte("1")} {
		x := l.execution(alice, nobody{}, &entry{ID: 1<<20 + uint32(i), PID: i, Tag: fmt.Sprint(i), Background: true})
		if err := x.enlist(); err != nil {
			t.Fatal(err)
		}
		if _, err := x.conclude(t.Context(), ExecExit{Reason: sandbox.ReasonDone, Result: r}, errors.New("as far as it matters here")); err == nil {
			t.Error("no error")
		}
	}
	kept := func(o *Orchestrator) (sizes []int) {
		list, err := o.ListProcesses(t.Context(), alice.Tenant, string(sb.ID))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if (p.Exit.Result == nil) != strings.Contains(p.Exit.ResultError, "the events have it") {
				t.Errorf("%s: %d bytes, %q", p.Tag, len(p.Exit.Result), p.Exit.ResultError)
			}
			sizes = append(sizes, len(p.Exit.Result))
		}
		return sizes
	}
	if got := kept(o); !slices.Equal(got, []int{0, 0, size, 1}) {
		t.Errorf("%d bytes are remembered", got)
	}
	w.abandon(o)
	w.cfg = nil
	if got := kept(w.start()); !slices.Equal(got, []int{0, 0, 0, 1}) {
		t.Errorf("%d bytes are remembered after a restart", got)
	}
}

// A process that ends when the sandbox's end has stopped waiting for it leaves
// nothing either.
func TestLateEndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.cfg = w.keep
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	req := command("cat")
	req.Tag, req.Open = "late", true
	mustStart(t, o, sb.ID, req)
	reached, free := make(chan struct{}), make(chan struct{})
	restore := failpoint.Intercept(func(name string) {
		if name == "exec/after-exit" {
			close(reached)
			<-free
		}
	})
	defer restore()
	w.write(o, sb.ID, "late", "", true)
	<-reached
	x := func() *execution {
		l := o.find(alice.Tenant, string(sb.ID))
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, x := range l.execs {
			return x
		}
		return nil
	}()
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
		t.Fatal(err)
	}
	if left := w.journal(); len(left) != 0 {
		t.Errorf("the sandbox's end left %q", left)
	}
	close(free)
	<-x.gone
	if left := w.journal(); len(left) != 0 {
		t.Errorf("its own end left %q", left)
	}
}

// A change that does not reach the disk leaves nothing beside it.
func TestJournalUpdateFails(t *testing.T) {
	j := journal{t.TempDir()}
	e := &entry{Sandbox: sandbox.NewID(), ID: 1}
	if err := os.Mkdir(j.path(e), 0o700); err != nil { // no file can take its place
		t.Fatal(err)
	}
	if err := j.update(e); err == nil {
		t.Error("it went well")
	}
	if _, err := os.Stat(j.path(e) + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
