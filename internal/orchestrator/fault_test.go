package orchestrator

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// faulty is an instance that misbehaves on request.
type faulty struct {
	sandbox.Instance
	mu       sync.Mutex
	dial     error
	oomKills int
	stuck    bool // Destroy fails and removes nothing
}

func (f *faulty) Dial(ctx context.Context) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dial != nil {
		return nil, f.dial
	}
	return f.Instance.Dial(ctx)
}

func (f *faulty) Status(ctx context.Context) (sandbox.Status, error) {
	st, err := f.Instance.Status(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	st.Usage.OOMKills += f.oomKills
	return st, err
}

func (f *faulty) Destroy(ctx context.Context) (sandbox.Receipt, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck {
		r := sandbox.Receipt{Instance: f.ID(), Objects: []sandbox.Object{{Kind: "mount", Name: "/x", Detail: "busy"}}}.Seal()
		return r, sandbox.Errorf("destroy", sandbox.KindInternal, "a mount is busy")
	}
	return f.Instance.Destroy(ctx)
}

// spoil puts a faulty instance in place of the sandbox's.
func spoil(o *Orchestrator, sb Sandbox, f *faulty) *live {
	l := o.find(sb.Tenant, string(sb.ID))
	l.mu.Lock()
	defer l.mu.Unlock()
	f.Instance = l.inst
	l.inst = f
	return l
}

// The kernel's own word is enough, even where the guest saw only a signal.
func TestOOMIsAttributedByTheHost(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Limits: sandbox.Limits{Memory: 64 << 20}})
	f := &faulty{}
	spoil(o, sb, f)
	if exit, _ := mustExec(t, o, alice, sb.ID, verb("signalself", "9")); exit.Code != 137 || exit.Reason != sandbox.ReasonDone {
		t.Errorf("it killed itself: %+v", exit)
	}
	f.mu.Lock()
	f.oomKills = 5
	f.mu.Unlock()
	if exit, _ := mustExec(t, o, alice, sb.ID, verb("exit", "137")); exit.Reason != sandbox.ReasonDone {
		t.Errorf("an earlier kill was blamed on it: %+v", exit)
	}
	if exit, _ := mustExec(t, o, alice, sb.ID, verb("signalself", "9")); exit.Reason != sandbox.ReasonMemory {
		t.Errorf("a kill in a sandbox where the kernel kills: %+v", exit)
	}
	x := &execution{l: o.find(alice.Tenant, string(sb.ID)), entry: &entry{OOM: 4, Begun: time.Now()}}
	for code, want := range map[int]sandbox.Reason{137: sandbox.ReasonMemory, 1: sandbox.ReasonDone} {
		if exit := x.classify(t.Context(), guest.Exit{Code: code, Reason: sandbox.ReasonDone}, nil); exit.Reason != want || want == sandbox.ReasonMemory && exit.Detail != "limit 64 MiB" {
			t.Errorf("exit code %d after a kill by the kernel: %+v", code, exit)
		}
	}
}

// An agent that cannot be reached any more ends the sandbox: untrusted code
// must not run where nobody can stop it.
func TestUnreachableAgent(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		sb := mustCreate(w.t, o, alice, CreateRequest{})
		l := spoil(o, sb, &faulty{dial: errors.New("no answer")})
		s, err := l.session(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		s.Close()
		_, err = o.Exec(w.t.Context(), alice, string(sb.ID), sh("true"), &collect{})
		wantKind(w.t, err, sandbox.KindGone)
		sleep(time.Second)
		if sb, dead := ended(w.t, o, sb.ID); !dead || sb.Reason != sandbox.ReasonCrashed || !strings.Contains(sb.Detail, "no answer") || !sb.Receipt.Clean {
			w.t.Errorf("%+v", sb)
		}
	})
}

// What resists is said, and tried again until it is gone.
func TestUncleanTeardown(t *testing.T) {
	bubble(t, func(w *world, o *Orchestrator) {
		sb := mustCreate(w.t, o, alice, CreateRequest{})
		spoil(o, sb, &faulty{stuck: true})
		_, err := o.Destroy(w.t.Context(), alice, string(sb.ID))
		wantKind(w.t, err, sandbox.KindInternal)
		got, dead := ended(w.t, o, sb.ID)
		if !dead || got.Receipt == nil || got.Receipt.Clean || got.Receipt.Objects[0].Detail != "busy" || !strings.Contains(strings.Join(got.Details.Notes, "\n"), "teardown") {
			w.t.Errorf("%+v", got)
		}
		if list, _ := w.sim.List(w.t.Context()); len(list) != 1 {
			w.t.Fatalf("the fault did not hold: %v", list)
		}
		sleep(sweepEvery + time.Second)
		if list, err := w.sim.List(w.t.Context()); err != nil || len(list) != 0 {
			w.t.Errorf("%v, %v", list, err)
		}
	})
}

// A final record that cannot be written is written later.
func TestLateBurial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		o := w.start()
		sb := mustCreate(t, o, alice, CreateRequest{})
		l := o.find(alice.Tenant, string(sb.ID))
		if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
			t.Fatal(err)
		}
		// As if it had not been possible: known, over, and not in the store.
		other := mustCreate(t, o, alice, CreateRequest{})
		late := o.find(alice.Tenant, string(other.ID))
		final := late.snapshot()
		final.State, final.Reason, final.Receipt = store.Ended, sandbox.ReasonIdle, l.ending.sb.Receipt
		inst := late.inst
		late.mu.Lock()
		late.ending = &ending{done: make(chan struct{}), sb: final, reason: sandbox.ReasonIdle}
		close(late.dying)
		close(late.ending.done)
		late.mu.Unlock()
		if _, err := inst.Destroy(t.Context()); err != nil {
			t.Fatal(err)
		}
		late.sess.Close()
		o.ledger.release(late.promised)
		late.release()
		sleep(sweepEvery + time.Second)
		rec, err := w.store.Tenant(alice.Tenant).Sandbox(t.Context(), other.ID)
		if err != nil || rec.State != store.Ended || rec.Reason != sandbox.ReasonIdle || o.find(alice.Tenant, string(other.ID)) != nil {
			t.Errorf("%+v, %v", rec, err)
		}
	})
}

// Whoever lets traffic pass asks whether its records would be kept.
func TestRecording(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	if err := o.Recording(); err != nil {
		t.Error(err)
	}
	w.audit.set(errors.New("full"))
	if err := o.Recording(); err == nil {
		t.Error("a log that refuses is not told of")
	}
	w.audit.set(nil)
	if err := o.Recording(); err != nil {
		t.Error(err)
	}
}

// A create that is given up after its record ends its evidence, too: whoever
// keeps books of open sandboxes must not keep it for ever.
func TestEvidenceOfNothingEnds(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	mustCreate(t, o, alice, CreateRequest{Name: "taken"})
	id := sandbox.NewID()
	_, err := o.Create(t.Context(), alice, CreateRequest{ID: id, Name: "taken"})
	wantKind(t, err, sandbox.KindExists)
	want := []string{"sandbox.create allowed", "sandbox.create failed", "sandbox.receipt done"}
	if got := w.audit.actions(id); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}
