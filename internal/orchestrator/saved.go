package orchestrator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Snapshot is a saved sandbox, as callers see it.
type Snapshot struct {
	ID       sandbox.SnapshotID
	Name     string
	Sandbox  sandbox.ID // that it was taken of
	Size     int64      // bytes on disk
	Created  time.Time
	Expires  time.Time // zero: never
	Template string
	Digest   string // of what was saved
	Limits   sandbox.Limits
}

// SnapshotRequest says how a snapshot is kept.
type SnapshotRequest struct {
	Name string         // unique among the tenant's snapshots, or empty
	TTL  *time.Duration // removes it by itself; nil: the default; 0: never
	// TakeName leaves a snapshot that has the name already without one.
	TakeName bool
}

// savedState is what a snapshot's record keeps: all that a sandbox made of it has of
// the one that was saved.
type savedState struct {
	Image          ImageState        `json:"image"`
	Backend        string            `json:"backend"`
	Template       string            `json:"template"`
	TemplateDigest string            `json:"template_digest"`
	Limits         sandbox.Limits    `json:"limits"`
	ReadonlyRoot   bool              `json:"readonly_root,omitempty"`
	Pack           string            `json:"pack,omitempty"`
	Env            map[string]string `json:"env,omitempty"`
	WorkDir        string            `json:"work_dir,omitempty"`
	Processes      []savedProcess    `json:"processes,omitempty"`
	// Network is what the one that was saved might reach; nil: it had no network device.
	Network *NetworkState `json:"network,omitempty"`
	// Demand is what was demanded of its boundary.
	Demand policy.Demand `json:"demand,omitzero"`
}

// savedProcess is one that goes on in whatever is made of a snapshot.
type savedProcess struct {
	Entry *entry `json:"entry"`
	// Stdin is the SHA-256 of its standard input's file; empty where it has none.
	Stdin string `json:"stdin,omitempty"`
	Size  int64  `json:"size,omitempty"` // of that
}

// CreateSnapshot saves a sandbox, which goes on or stays paused. Any number of
// sandboxes can be made of it (CreateRequest.From), until it is removed or its time
// is over; what becomes of the sandbox does not matter.
//
// A server that is killed meanwhile leaves a snapshot or nothing.
//
// Errors: those of Pause; KindExists when the name is taken; KindInvalid.
//
// Cost: as Pause; of a paused sandbox, next to nothing: the files are shared.
func (o *Orchestrator) CreateSnapshot(ctx context.Context, who Caller, ref string, req SnapshotRequest) (Snapshot, error) {
	if req.TTL != nil && (*req.TTL < 0 || *req.TTL > maxTimeout) {
		return Snapshot{}, sandbox.Errorf("snapshot", sandbox.KindInvalid, "ttl %s is out of range", *req.TTL).WithHint("between 0 (never) and 10 years")
	}
	if sandbox.SnapshotID(req.Name).Valid() {
		return Snapshot{}, sandbox.Errorf("snapshot", sandbox.KindInvalid, "the name %q looks like a snapshot id", req.Name).WithHint("choose another name")
	}
	l, done, err := o.change(ctx, who.Tenant, ref)
	if err != nil {
		return Snapshot{}, err
	}
	defer done()
	if req.Name != "" && !req.TakeName { // before anything is written; the record has the last word
		if _, err := o.Store.Tenant(l.tenant).Snapshot(ctx, req.Name); err == nil {
			return Snapshot{}, sandbox.Errorf("snapshot", sandbox.KindExists, "there is a snapshot called %q", req.Name).
				WithHint("choose another name, or remove that one: firebreak snapshot rm")
		} else if sandbox.KindOf(err) != sandbox.KindNotFound {
			return Snapshot{}, err
		}
	}
	return l.snap(ctx, who, req)
}

// snap takes a snapshot. Preconditions: the caller is alone.
func (l *live) snap(ctx context.Context, who Caller, req SnapshotRequest) (Snapshot, error) {
	o, begun, id := l.o, time.Now(), sandbox.NewSnapshotID()
	saver, asleep, err := l.savable(ctx, "snapshot")
	if err != nil {
		return Snapshot{}, err
	}
	if err := l.record(ctx, who, sandbox.Record{Action: "snapshot.create", Outcome: sandbox.OutcomeAllowed, Object: string(id), Detail: req.detail()}); err != nil {
		return Snapshot{}, err
	}
	failpoint.Hit("snapshot/after-evidence")
	ctx, cancel := l.whileAlive(ctx)
	defer cancel()
	state, err := l.saveAs(ctx, saver, asleep, string(id))
	var rec store.SavedSandbox
	if err == nil {
		failpoint.Hit("snapshot/after-save")
		rec, err = l.keepSnapshot(context.WithoutCancel(ctx), id, req, state)
		if err != nil {
			err = errors.Join(err, o.images.remove(string(id)))
		}
	}
	if err != nil {
		return Snapshot{}, l.unchanged(ctx, who, "snapshot.create", err)
	}
	failpoint.Hit("snapshot/after-record")
	o.ledger.store(l.tenant, rec.Size)
	err = l.record(context.WithoutCancel(ctx), who, sandbox.Record{Class: sandbox.Flow, Action: "snapshot.create", Outcome: sandbox.OutcomeDone, Object: string(id),
		Digest: state.Image.Digest, Detail: map[string]string{"bytes": strconv.FormatInt(rec.Size, 10), "took": short(time.Since(begun))}})
	return shown(rec, state), err
}

func (r *SnapshotRequest) detail() map[string]string {
	d := nameDetail(r.Name)
	if d != nil && r.TakeName {
		d["take_name"] = "true"
	}
	return d
}

// savable is what can save the sandbox or, of one that is paused, what it is restored
// from. Preconditions: the caller is alone. Errors: those of saver.
func (l *live) savable(ctx context.Context, op string) (sandbox.Snapshotter, *PauseState, error) {
	if err := l.strong(ctx, op); err != nil {
		return nil, nil, err
	}
	asleep := l.image()
	if asleep == nil {
		saver, err := l.saver(ctx, op)
		return saver, nil, err
	}
	if err := l.o.room.check(op); err != nil {
		return nil, nil, err
	}
	return nil, asleep, l.o.ledger.storable(op, l.tenant, asleep.Image.Size)
}

func nameDetail(name string) map[string]string {
	if name == "" {
		return nil
	}
	return map[string]string{"name": clip(name)}
}

// saveAs saves the sandbox, or shares what it is restored from, with its processes.
func (l *live) saveAs(ctx context.Context, saver sandbox.Snapshotter, asleep *PauseState, name string) (state savedState, err error) {
	if asleep == nil {
		st, err := l.stand(ctx)
		if err != nil {
			return state, err
		}
		defer func() {
			l.clocks(st)
			l.move(st)
		}()
		state.Image, err = l.save(ctx, saver, name)
		if err != nil {
			return state, err
		}
	} else if state.Image, err = l.o.images.share(asleep.Image, name); err != nil {
		return state, sandbox.Wrap("snapshot", string(l.id), err)
	}
	sb := l.snapshotWithEnv()
	state.Backend, state.Template, state.TemplateDigest = sb.Backend, sb.Template, sb.TemplateDigest
	state.Limits, state.ReadonlyRoot = sb.Limits, sb.ReadonlyRoot
	state.Network, state.Demand = sb.Details.Network.saved(), sb.Details.Demand
	state.Pack, state.Env, state.WorkDir = sb.Details.Pack, sb.ownEnv(), sb.Details.WorkDir
	if state.Processes, err = l.saveProcesses(name); err != nil {
		err = errors.Join(sandbox.Wrap("snapshot", string(l.id), err), l.o.images.remove(name))
	}
	return state, err
}

// saveProcesses copies what the journal knows of what runs. What is with a caller
// only cannot be kept, and will be killed in what is made of the snapshot.
func (l *live) saveProcesses(name string) (all []savedProcess, err error) {
	l.mu.Lock()
	for _, x := range l.execs {
		if e := *x.entry; e.Stdin != stdinLive && e.End == nil {
			all = append(all, savedProcess{Entry: &e})
		}
	}
	l.mu.Unlock()
	for i := range all {
		p := &all[i]
		if p.Entry.Stdin != stdinKept && p.Entry.Stdin != stdinOpen {
			continue
		}
		from, err := l.o.journal.stdin(p.Entry)
		if err == nil {
			p.Stdin, p.Size, err = copyDigest(l.o.images.stdin(name, p.Entry), from)
			err = errors.Join(err, from.Close())
		}
		if err != nil {
			return nil, pathless(err)
		}
	}
	return all, nil
}

// keepSnapshot is the moment from which there is a snapshot.
func (l *live) keepSnapshot(ctx context.Context, id sandbox.SnapshotID, req SnapshotRequest, state savedState) (store.SavedSandbox, error) {
	body, err := json.Marshal(state)
	if err != nil {
		return store.SavedSandbox{}, sandbox.Wrap("snapshot", string(l.id), err)
	}
	rec := store.SavedSandbox{ID: id, Name: req.Name, Sandbox: l.id, Created: l.o.Clock(), Size: state.bytes(), Body: body}
	if ttl := given(req.TTL, l.o.Defaults.SnapshotTTL); ttl > 0 {
		rec.Expires = rec.Created.Add(ttl)
	}
	return l.o.Store.Tenant(l.tenant).AddSnapshot(ctx, rec, req.TakeName)
}

func shown(rec store.SavedSandbox, s savedState) Snapshot {
	return Snapshot{ID: rec.ID, Name: rec.Name, Sandbox: rec.Sandbox, Size: rec.Size, Created: rec.Created, Expires: rec.Expires,
		Template: s.Template, Digest: s.Image.Digest, Limits: s.Limits}
}

// ListSnapshots returns the tenant's snapshots, newest first.
func (o *Orchestrator) ListSnapshots(ctx context.Context, tenant sandbox.TenantID) ([]Snapshot, error) {
	list, err := o.Store.Tenant(tenant).ListSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Snapshot, 0, len(list))
	for _, rec := range list {
		out = append(out, shown(rec, decodeSaved(rec)))
	}
	return out, nil
}

func decodeSaved(rec store.SavedSandbox) (s savedState) {
	_ = json.Unmarshal(rec.Body, &s) // what another version wrote fits nothing, which is said where it is used
	return s
}

// RemoveSnapshot forgets a snapshot, by id or name, and removes its files. Sandboxes
// that were made of it live on. Errors: KindNotFound.
func (o *Orchestrator) RemoveSnapshot(ctx context.Context, who Caller, ref string) (Snapshot, error) {
	if err := o.begin(); err != nil {
		return Snapshot{}, err
	}
	defer o.work.Done()
	rec, err := o.findSnapshot(ctx, who.Tenant, ref)
	if err != nil {
		return Snapshot{}, err
	}
	return shown(rec, decodeSaved(rec)), o.dropSnapshot(ctx, who, rec, sandbox.ReasonOperator)
}

func (o *Orchestrator) findSnapshot(ctx context.Context, tenant sandbox.TenantID, ref string) (store.SavedSandbox, error) {
	rec, err := o.Store.Tenant(tenant).Snapshot(ctx, ref)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		err = sandbox.Errorf("find", sandbox.KindNotFound, "no such snapshot").WithID(ref).WithHint("list yours with `firebreak snapshot ls`")
	}
	return rec, err
}

// dropSnapshot records, forgets and removes.
func (o *Orchestrator) dropSnapshot(ctx context.Context, who Caller, rec store.SavedSandbox, why sandbox.Reason) error {
	_, err := o.Recorder.Record(ctx, sandbox.Record{Tenant: rec.Tenant, Principal: who.Principal, Sandbox: rec.Sandbox,
		Action: "snapshot.remove", Outcome: sandbox.OutcomeAllowed, Reason: why, Object: string(rec.ID), Detail: nameDetail(rec.Name)})
	if err != nil {
		return sandbox.Wrap("record snapshot.remove", string(rec.ID), err)
	}
	failpoint.Hit("snapshot/before-forget")
	if _, err := o.Store.Tenant(rec.Tenant).RemoveSnapshot(ctx, rec.ID); err != nil {
		return err
	}
	failpoint.Hit("snapshot/after-forget")
	o.ledger.store(rec.Tenant, -rec.Size)
	return sandbox.Wrap("snapshot", string(rec.ID), o.images.remove(string(rec.ID)))
}

// expireSnapshots removes those whose time is over, by a clock that forgets nothing
// for being set.
func (o *Orchestrator) expireSnapshots(ctx context.Context) error {
	due, err := o.Store.System().ExpiredSnapshots(ctx, o.credible(), 100)
	for _, rec := range due {
		err = errors.Join(err, o.dropSnapshot(ctx, system(rec.Tenant), rec, sandbox.ReasonTimeout))
	}
	return err
}

// sweepImages removes what neither a snapshot's record nor one of recs names, and counts
// the snapshots that are left.
func (o *Orchestrator) sweepImages(ctx context.Context, recs []store.Sandbox) error {
	list, err := o.Store.System().Snapshots(ctx)
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, s := range list {
		needed[string(s.ID)] = true
		o.ledger.store(s.Tenant, s.Size)
	}
	for _, rec := range recs {
		if p := unpack(rec).Details.Pause; p != nil {
			needed[p.Image.Name] = true
		}
	}
	return sandbox.Wrap("recover", o.Snapshots, o.images.sweep(needed))
}

// copyDigest makes a private copy of a file and returns its SHA-256 and size.
func copyDigest(to string, from *os.File) (string, int64, error) {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", 0, err
	}
	sum, n, err := digestTo(f, io.NewSectionReader(from, 0, 1<<62))
	return sum, n, errors.Join(err, f.Sync(), f.Close())
}

// digestTo copies r to w and returns its SHA-256 and size.
func digestTo(w io.Writer, r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), r)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// inherit fills in what a create of a snapshot leaves open, and refuses what a
// restored sandbox cannot have.
func (s *savedState) inherit(req *CreateRequest, ref string) error {
	refuse := func(k sandbox.Kind, what string) error {
		return sandbox.Errorf("create", k, "a sandbox made of a snapshot has the %s of the one that was saved", what).WithID(ref).
			WithHint("leave it out")
	}
	same := func(v, has int64) bool { return v == 0 || v == has }
	switch l := req.Limits; {
	case req.Backend != "" && req.Backend != Auto && req.Backend != s.Backend:
		return refuse(sandbox.KindInvalid, "backend")
	case req.Template != "" && req.Template != s.Template && req.Template != s.TemplateDigest:
		return refuse(sandbox.KindInvalid, "template")
	case !same(l.Memory, s.Limits.Memory) || !same(l.Disk, s.Limits.Disk) || l.PIDs != 0 && l.PIDs != s.Limits.PIDs || l.CPUs != 0 && l.CPUs != s.Limits.CPUs:
		return refuse(sandbox.KindInvalid, "limits")
	case req.ReadonlyRoot && !s.ReadonlyRoot:
		return refuse(sandbox.KindInvalid, "root")
	case s.Network == nil && (req.Network != nil || len(req.Bindings) > 0):
		return sandbox.Errorf("create", sandbox.KindConflict, "the snapshot is of a sandbox without a network device, and what is made of it gets none").WithID(ref).
			WithHint("leave the network rules and bindings out, or take a snapshot of a sandbox that has some")
	case req.run != "":
		return sandbox.Errorf("create", sandbox.KindUnsupported, "a run cannot begin with a snapshot yet").WithID(ref).
			WithHint("create a sandbox of it and exec in that")
	}
	if s.Network != nil {
		req.parent = s.Network
		if req.Network == nil && len(req.Bindings) == 0 {
			p := s.Network.NetworkPolicy
			req.Network, req.Bindings = &p, slices.Clone(s.Network.Bindings)
		}
	}
	req.Demand = req.Demand.Stronger(s.Demand)
	req.Backend, req.Template = s.Backend, s.TemplateDigest
	req.Limits, req.ReadonlyRoot = s.Limits, s.ReadonlyRoot
	req.Pack = pick(req.Pack, s.Pack)
	req.inherited = s.Env
	if env := merged(s.Env, req.Env); len(env) > maxCopied || len(req.Metadata) > maxCopied {
		return sandbox.Errorf("create", sandbox.KindTooLarge, "%d variables and %d labels", len(env), len(req.Metadata)).WithID(ref).
			WithHint("%d each, with what is inherited", maxCopied)
	}
	return nil
}

// maxCopied bounds what grows from one copy to the next.
const maxCopied = 512

// SavedNetwork is what a sandbox made of a snapshot may reach if its request says
// nothing about that; nil: it has no network. Errors: KindNotFound.
func (o *Orchestrator) SavedNetwork(ctx context.Context, tenant sandbox.TenantID, ref string) (*NetworkPolicy, error) {
	rec, err := o.findSnapshot(ctx, tenant, ref)
	if err != nil {
		return nil, err
	}
	if n := decodeSaved(rec).Network; n != nil {
		return &n.NetworkPolicy, nil
	}
	return nil, nil
}

// inheritProcesses are the processes of a sandbox that is made of the snapshot, in the
// journal. Preconditions: nobody else has l. Errors: KindConflict when what was
// saved was changed.
func (l *live) inheritProcesses(s *savedState) (procs []*entry, err error) {
	aged := l.o.Clock().Sub(s.Image.Created)
	for _, p := range s.Processes {
		e := *p.Entry
		from := l.o.images.stdin(s.Image.Name, p.Entry)
		e.Sandbox, e.Tenant, e.Run, e.Begun = l.id, l.tenant, "", e.Begun.Add(max(0, aged))
		e.Forked = e.Context != nil
		if p.Stdin != "" {
			f, err := os.Open(from)
			if err != nil {
				return nil, pathless(err)
			}
			sum, _, err := copyDigest(l.o.journal.path(&e)+stdinSuffix, f)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, pathless(err)
			}
			if sum != p.Stdin {
				return nil, sandbox.Errorf("restore", sandbox.KindConflict, "the snapshot's process %d is not what was saved", e.PID).WithHint("take another snapshot")
			}
		}
		if err := l.o.journal.add(&e, nil, nil); err != nil {
			return nil, err
		}
		procs = append(procs, &e)
	}
	slices.SortFunc(procs, func(a, b *entry) int { return a.Begun.Compare(b.Begun) })
	return procs, nil
}

// from finds what a create goes on from, a snapshot or a parent, and completes it with what that says.
// nil: it names none.
func (o *Orchestrator) from(ctx context.Context, tenant sandbox.TenantID, req *CreateRequest) (*savedState, error) {
	if f := req.fork; f != nil {
		return &f.saved, f.saved.inherit(req, string(f.parent.ID))
	}
	if req.From == "" {
		return nil, nil
	}
	rec, err := o.findSnapshot(ctx, tenant, req.From)
	if err != nil {
		return nil, err
	}
	s := decodeSaved(rec)
	if err := s.inherit(req, req.From); err != nil {
		return nil, err
	}
	req.From = string(rec.ID)
	return &s, nil
}

// instance makes what was planned.
func (o *Orchestrator) instance(ctx context.Context, p *plan) (sandbox.Instance, error) {
	if p.from == nil {
		return p.backend.Create(ctx, p.spec)
	}
	r, ok := p.backend.(sandbox.Restorer)
	if !ok {
		return nil, sandbox.Errorf("create", sandbox.KindUnsupported, "backend %s restores nothing", p.sb.Backend)
	}
	return r.Restore(ctx, p.spec, o.images.snapshot(p.from.Image, p.sb))
}

// goOn follows what goes on in a sandbox that was made of a snapshot, and kills what
// nobody can follow. What fails of that is done by the next session.
func (l *live) goOn(p *plan) {
	if p.from == nil {
		return
	}
	l.adoptProcesses(l.o.ctx, p.procs)
	l.mu.Lock()
	s := l.sess
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(l.o.ctx, openWait)
	defer cancel()
	if s == nil {
		return
	}
	if err := l.killStrays(ctx, s); err != nil {
		s.Close()
	}
}

// stdin is where a process's standard input is kept.
func (i images) stdin(name string, e *entry) string {
	return filepath.Join(i.path(name), processesDir, strconv.FormatUint(uint64(e.ID), 10)+stdinSuffix)
}

// share makes the image called name of the files of another, which are only read.
func (i images) share(of ImageState, name string) (ImageState, error) {
	if err := i.make(name); err != nil {
		return ImageState{}, err
	}
	to, from := filepath.Join(i.path(name), imageDir), filepath.Join(i.path(of.Name), imageDir)
	err := os.Mkdir(to, 0o700)
	files, e := os.ReadDir(from)
	for _, f := range files {
		if err == nil {
			err = os.Link(filepath.Join(from, f.Name()), filepath.Join(to, f.Name()))
		}
	}
	if err = errors.Join(err, e); err != nil {
		return ImageState{}, errors.Join(pathless(err), i.remove(name))
	}
	of.Name = name
	return of, nil
}
