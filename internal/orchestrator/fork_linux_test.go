package orchestrator

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestForkRequest: what no child could be made of is refused before anything is saved.
func TestForkRequest(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	long, past := maxTimeout+1, -time.Second
	for _, req := range []ForkRequest{
		{Count: -1}, {Count: MaxForks + 1}, {Count: 1, Names: []string{"a", "b"}}, {Names: []string{"a", "a"}},
		{Timeout: &past}, {IdleTimeout: &long}, {Env: map[string]string{"a=b": ""}},
	} {
		_, err := o.Fork(t.Context(), alice, "none", req)
		wantKind(t, err, sandbox.KindInvalid)
	}
	_, err := o.Fork(t.Context(), alice, "none", ForkRequest{Names: []string{"", ""}})
	wantKind(t, err, sandbox.KindNotFound)
}

// TestForkGrows: what copies inherit and add to does not grow for ever.
func TestForkGrows(t *testing.T) {
	many := map[string]string{}
	for i := range maxCopied {
		many[strconv.Itoa(i)] = ""
	}
	s := savedState{Env: many}
	if err := s.inherit(&CreateRequest{Env: map[string]string{"1": "again"}}, ""); err != nil {
		t.Error(err)
	}
	wantKind(t, s.inherit(&CreateRequest{Env: map[string]string{"one": "more"}}, ""), sandbox.KindTooLarge)
	f := fork{parent: Sandbox{Sandbox: store.Sandbox{Metadata: many}}, asked: ForkRequest{Metadata: map[string]string{"one": "more"}}}
	req := f.request(0)
	wantKind(t, f.saved.inherit(&req, ""), sandbox.KindTooLarge)
}

// lives are the sandboxes of alice that have not ended.
func living(t *testing.T, o *Orchestrator) (all []Sandbox) {
	t.Helper()
	page, _, err := o.List(t.Context(), alice.Tenant, store.Filter{}, store.Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range page {
		if sb.State != store.Ended {
			all = append(all, sb)
		}
	}
	return all
}

// TestForkCalledOff: whoever goes away in the middle of a fork leaves the parent, and
// nothing else: no child, no image, no place in the ledger.
func TestForkCalledOff(t *testing.T) {
	w := newWorld(t)
	onGVisor(t, w)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer cancel()
		for {
			for _, c := range living(t, o) {
				if c.ID != sb.ID && c.State == store.Running {
					return
				}
			}
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	children, err := o.Fork(ctx, alice, string(sb.ID), ForkRequest{Count: 12})
	close(over)
	wantKind(t, err, sandbox.KindCanceled)
	if len(children) != 12 {
		t.Errorf("%d outcomes", len(children))
	}
	for i, c := range children {
		if c.Err == nil {
			t.Errorf("child %d stands: %s", i, c.Sandbox.ID)
		}
	}
	if all := living(t, o); len(all) != 1 || all[0].ID != sb.ID {
		t.Errorf("there are %+v", all)
	}
	if exit, _ := mustExec(t, o, alice, sb.ID, sh("exit 3")); exit.Code != 3 {
		t.Errorf("the parent does not go on: %+v", exit)
	}
	given := func() (sandboxes, snapshots int64) {
		o.ledger.mu.Lock()
		defer o.ledger.mu.Unlock()
		u := o.ledger.tenants[alice.Tenant]
		return u["sandboxes"], u["snapshots"]
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // what was saved goes behind the answer
		if a, b := given(); a == 1 && b == 0 {
			return
		} else if time.Now().After(end) {
			t.Fatalf("the ledger has %d sandboxes, and %d bytes of snapshots", a, b)
		}
	}
}

// unended is evidence that refuses the record of how a fork ended.
type unended struct{ *evidence }

func (e unended) Record(ctx context.Context, r sandbox.Record) (sandbox.Position, error) {
	if r.Action == "sandbox.fork" && r.Outcome == sandbox.OutcomeDone {
		return 0, sandbox.Errorf("record", sandbox.KindUnavailable, "no evidence")
	}
	return e.evidence.Record(ctx, r)
}

// TestForkUnrecorded: children whose fork cannot be put on record are ended: nobody is
// told of them.
func TestForkUnrecorded(t *testing.T) {
	w := newWorld(t)
	onGVisor(t, w)
	with := w.cfg
	w.cfg = func(c *Config) {
		if with != nil {
			with(c)
		}
		c.Recorder = unended{w.audit}
	}
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	children, err := o.Fork(t.Context(), alice, string(sb.ID), ForkRequest{Count: 2})
	wantKind(t, err, sandbox.KindUnavailable)
	if all := living(t, o); len(children) != 0 || len(all) != 1 || all[0].ID != sb.ID {
		t.Errorf("there are %+v, and %+v", children, all)
	}
}
