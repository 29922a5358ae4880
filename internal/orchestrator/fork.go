package orchestrator

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// MaxForks is how many children one call makes at most.
const MaxForks = 64

// forksAtOnce is how many of them are made at a time: a call takes a few places in
// the queue of boots, not the tenant's share of it.
const forksAtOnce = 4

// ForkRequest says how many children there are to be, and in what they differ from
// their parent.
type ForkRequest struct {
	Count int      // 0: one
	Names []string // of the first ones
	// Timeout and IdleTimeout are the parent's where they are nil. A life begins anew.
	Timeout, IdleTimeout *time.Duration
	// Env is what programs that are started in a child have beside the parent's, and
	// Metadata what labels it has.
	Env, Metadata map[string]string
	// IDs are those of the children, where somebody had to know them before; nil: new
	// ones. Whoever brings some gets no boundary that was made ahead: those have ids.
	IDs []sandbox.ID
}

// ForkIDs are ids for the children of a fork.
func (r *ForkRequest) ForkIDs() []sandbox.ID {
	ids := make([]sandbox.ID, min(max(1, r.Count, len(r.Names)), MaxForks))
	for i := range ids {
		ids[i] = sandbox.NewID()
	}
	return ids
}

// Child is what became of one: a sandbox, or why there is none.
type Child struct {
	Sandbox Sandbox
	Err     error
}

// fork is what a child goes on from: an image that nobody can name.
type fork struct {
	parent Sandbox
	saved  savedState
	asked  ForkRequest
}

// Fork makes sandboxes that go on where the one is now: with its memory, files,
// programs and interpreters, its limits and environment, and an id, host name,
// machine id and randomness of their own. The parent goes on, or stays paused; of
// its life and state nothing changes. Each child is made, counted and recorded as one
// that Create makes: some may fail, and the others stand. The end of ctx undoes all
// of them.
//
// A server that is killed meanwhile leaves children that are whole, and nothing else.
//
// Errors, when there are no children: KindInvalid, and those of CreateSnapshot. Those
// of a child: Create's.
//
// Cost: as CreateSnapshot, but nothing is flushed or read back where the backend can
// hold an image, and for each child a create of that.
func (o *Orchestrator) Fork(ctx context.Context, who Caller, ref string, req ForkRequest) ([]Child, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	if err := o.begin(); err != nil {
		return nil, err
	}
	defer o.work.Done()
	begun := time.Now()
	l, done, err := o.change(ctx, who.Tenant, ref)
	if err != nil {
		return nil, err
	}
	f, body, err := l.split(ctx, who, req)
	done() // from here on the parent is its own affair
	if err != nil {
		return nil, err
	}
	size := f.saved.bytes()
	o.ledger.store(l.tenant, size)
	children := o.bear(ctx, who, f, body, req.Count)
	failpoint.Hit("fork/after-children")
	if ctx.Err() != nil {
		o.disown(ctx, who, children)
	}
	o.work.Go(func() { // nobody waits for it: no other image is ever called that, and what is left of it the next start removes
		o.letGo(ctx, f.saved)
		if err := o.images.remove(f.saved.Image.Name); err != nil {
			o.Log.Error("what sandboxes were forked from is left", "sandbox", l.id, "error", err)
		}
		o.ledger.store(l.tenant, -size)
		failpoint.Hit("fork/after-remove")
	})
	if err := l.record(context.WithoutCancel(ctx), who, forkRecord(f, children, begun)); err != nil {
		o.disown(ctx, who, children) // nobody is told of them
		return nil, err
	}
	return children, sandbox.Wrap("fork", string(l.id), ctx.Err())
}

// check refuses what no child could be made of, and fills in the count. KindInvalid.
func (r *ForkRequest) check() error {
	if r.Count == 0 {
		r.Count = max(1, len(r.Names))
	}
	bad := func(format string, args ...any) error {
		return sandbox.Errorf("fork", sandbox.KindInvalid, format, args...)
	}
	switch {
	case r.Count < 1 || r.Count > MaxForks:
		return sandbox.Errorf("fork", sandbox.KindInvalid, "%d children", r.Count).WithHint("1 to %d at once", MaxForks)
	case r.IDs != nil && len(r.IDs) != r.Count:
		return bad("%d ids for %d children", len(r.IDs), r.Count)
	case len(r.Names) > r.Count:
		return bad("%d names for %d children", len(r.Names), r.Count)
	}
	seen := map[string]bool{"": true}
	for _, n := range r.Names {
		if n != "" && seen[n] {
			return bad("the name %q is there twice", n)
		}
		seen[n] = true
	}
	return validate(&CreateRequest{Timeout: r.Timeout, IdleTimeout: r.IdleTimeout, Env: r.Env})
}

// split saves the sandbox for its children. What is saved is returned as text, too,
// of which each child gets a copy. Preconditions: the caller is alone.
func (l *live) split(ctx context.Context, who Caller, req ForkRequest) (*fork, []byte, error) {
	saver, asleep, err := l.savable(ctx, "fork")
	if err != nil {
		return nil, nil, err
	}
	if err := l.record(ctx, who, sandbox.Record{Action: "sandbox.fork", Outcome: sandbox.OutcomeAllowed, Detail: map[string]string{"count": strconv.Itoa(req.Count)}}); err != nil {
		return nil, nil, err
	}
	failpoint.Hit("fork/after-evidence")
	ctx, cancel := l.whileAlive(ctx)
	defer cancel()
	l.expectChildren(ctx, req.Count)
	saver = l.momentary(saver)
	f := &fork{parent: l.snapshot(), asked: req}
	f.saved, err = l.saveAs(ctx, saver, asleep, string(sandbox.NewSnapshotID()))
	var body []byte
	if err == nil {
		failpoint.Hit("fork/after-save")
		if body, err = json.Marshal(f.saved); err != nil {
			err = errors.Join(err, l.o.images.remove(f.saved.Image.Name))
		}
	}
	if err != nil {
		l.o.letGo(ctx, f.saved)
		return nil, nil, l.unchanged(ctx, who, "sandbox.fork", err)
	}
	return f, body, nil
}

// bear makes the children, a few at a time. Each has its own outcome.
func (o *Orchestrator) bear(ctx context.Context, who Caller, f *fork, body []byte, n int) []Child {
	children := make([]Child, n)
	places := make(chan struct{}, forksAtOnce)
	var all sync.WaitGroup
	for i := range children {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			c := &children[i]
			of := fork{parent: f.parent, asked: f.asked}
			if c.Err = json.Unmarshal(body, &of.saved); c.Err == nil {
				c.Sandbox, c.Err = o.Create(ctx, who, of.request(i))
			}
			failpoint.Hit("fork/after-child")
		})
	}
	all.Wait()
	return children
}

// request is how the i-th child is created. What its parent lives by it lives by, too.
func (f *fork) request(i int) CreateRequest {
	p := f.parent
	req := CreateRequest{fork: f, Env: f.asked.Env, Metadata: maps.Clone(p.Metadata), Tier: p.Tier, AcceptWeaker: p.AcceptWeaker,
		Timeout: p.life(), IdleTimeout: &p.IdleTimeout, ExpireAction: p.Details.ExpireAction, Wake: p.Details.Wake}
	if t := f.asked.Timeout; t != nil {
		req.Timeout = t
	}
	if t := f.asked.IdleTimeout; t != nil {
		req.IdleTimeout = t
	}
	if *req.IdleTimeout > 0 {
		req.IdleAction = p.Details.IdleAction
	}
	if req.Metadata == nil {
		req.Metadata = map[string]string{}
	}
	maps.Copy(req.Metadata, f.asked.Metadata)
	if i < len(f.asked.Names) {
		req.Name = f.asked.Names[i]
	}
	if f.asked.IDs != nil {
		req.ID = f.asked.IDs[i]
	}
	return req
}

// disown ends children whose caller has gone: nobody knows of them.
func (o *Orchestrator) disown(ctx context.Context, who Caller, children []Child) {
	for i := range children {
		c := &children[i]
		if c.Err != nil {
			continue
		}
		c.Err = sandbox.Wrap("fork", string(c.Sandbox.ID), ctx.Err())
		if _, err := o.Destroy(context.WithoutCancel(ctx), who, string(c.Sandbox.ID)); err != nil {
			o.Log.Error("the child of a fork that was called off", "sandbox", c.Sandbox.ID, "error", err)
		}
	}
}

// forkRecord tells what came of a fork: whose ids there are, each child's create says
// the rest.
func forkRecord(f *fork, children []Child, begun time.Time) sandbox.Record {
	var ids []string
	for _, c := range children {
		if c.Err == nil {
			ids = append(ids, string(c.Sandbox.ID))
		}
	}
	r := sandbox.Record{Class: sandbox.Flow, Action: "sandbox.fork", Outcome: sandbox.OutcomeDone,
		Detail: map[string]string{"bytes": strconv.FormatInt(f.saved.Image.Size, 10), "took": short(time.Since(begun)), "failed": strconv.Itoa(len(children) - len(ids))}}
	for i := 0; i < len(ids); i += childrenPerDetail {
		key := "children"
		if i > 0 {
			key += "_" + strconv.Itoa(i/childrenPerDetail)
		}
		r.Detail[key] = strings.Join(ids[i:min(i+childrenPerDetail, len(ids))], " ")
	}
	if !f.saved.Image.Held { // what is held has none: it is never read back
		r.Digest = f.saved.Image.Digest
	}
	if len(ids) == 0 {
		r.Outcome = sandbox.OutcomeFailed
		r.Detail["error"] = clip(children[0].Err.Error())
	}
	return r
}

// childrenPerDetail keeps a value of a record's detail short.
const childrenPerDetail = 32

// bytes is what an image takes on disk, with what is beside it.
func (s *savedState) bytes() int64 {
	size := s.Image.Size
	for _, p := range s.Processes {
		size += p.Size
	}
	return size
}
