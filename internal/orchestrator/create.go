package orchestrator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Auto, as a backend's name, is the strongest that works here and isolates.
const Auto = "auto"

// plan is a create that has been checked and not yet begun.
type plan struct {
	backend sandbox.Backend
	spec    sandbox.Spec
	sb      Sandbox
	from    *savedState // what it goes on from; nil: it starts
	procs   []*entry    // that go on in it
	ready   *pool.Claimed
	vacate  func() // lets go of the place it is restored into, if it is not; nil: there is none
	release func() // of the template
}

// Create makes a sandbox and returns when the agent inside has answered. The
// end of ctx undoes it.
//
// Errors: KindInvalid, KindNotFound (template), KindUnsupported (a demand the
// backend cannot enforce), KindUnavailable, KindExists (name), KindCapacity
// with RetryAfter: these leave no record, except when the backend itself is the
// first to notice. After the intent was journalled, any error leaves an ended
// record that says why.
//
// Cost: a boot and three disk flushes; where one is ready, two, of which the second has
// little left to do.
func (o *Orchestrator) Create(ctx context.Context, who Caller, req CreateRequest) (Sandbox, error) {
	if err := o.begin(); err != nil {
		return Sandbox{}, err
	}
	defer o.work.Done()
	begun := time.Now()
	p, err := o.plan(ctx, who, req)
	if err != nil {
		return Sandbox{}, err
	}
	a := req.admitted
	if a == nil {
		if a, err = o.admit(who.Tenant, p.sb.Limits); err != nil {
			p.release()
			return Sandbox{}, err
		}
		defer a.settle()
	}
	if p.claim(&req) {
		a.ticket.leave() // what boots nothing waits for nobody's boot
		if sb, met, err := o.take(ctx, who, p, a, begun); met {
			return sb, err
		}
		err = a.again()
	}
	if err == nil {
		err = a.turn(ctx)
	}
	if err != nil {
		p.release()
		return Sandbox{}, err
	}
	defer a.ticket.leave()
	if p.claimPlace(&req); p.vacate != nil {
		defer p.vacate()
	}
	l, ctx, err := o.intend(ctx, who, p, a)
	if err != nil {
		p.release()
		return Sandbox{}, err
	}
	err = l.boot(ctx, p)
	if err == nil {
		err = l.running(ctx, begun)
	}
	reason := failure(ctx, err) // before cancel, which would pass for the caller's
	l.cancel()
	close(l.booted)
	if err != nil {
		return Sandbox{}, l.failed(who, reason, err)
	}
	l.goOn(p)
	failpoint.Hit("create/before-answer")
	return l.snapshot(), nil
}

// plan checks req and chooses everything there is to choose.
func (o *Orchestrator) plan(ctx context.Context, who Caller, req CreateRequest) (*plan, error) {
	if err := validate(&req); err != nil {
		return nil, err
	}
	d := o.Defaults
	from, err := o.from(ctx, who.Tenant, &req)
	if err != nil {
		return nil, err
	}
	need := o.demanded(&req)
	backend, info, notes, err := o.choose(ctx, pick(req.Backend, d.Backend), need)
	if err == nil {
		err = o.enough(ctx, "create", info, need)
	}
	if err != nil {
		return nil, err
	}
	t, err := o.Templates.Resolve(ctx, pick(req.Template, d.Template))
	if err == nil && req.Template == "" && req.Pack != "" && !t.Runs(req.Pack) {
		t, err = o.Templates.Choose(ctx, req.Pack)
	}
	if err != nil {
		return nil, err
	}
	if req.Pack != "" && !t.Runs(req.Pack) {
		return nil, packMissing(req.Pack, t.Packs)
	}
	limits := req.Limits
	def(&limits.Memory, d.Limits.Memory)
	def(&limits.CPUs, d.Limits.CPUs)
	def(&limits.PIDs, d.Limits.PIDs)
	def(&limits.Disk, d.Limits.Disk)
	idle := given(req.IdleTimeout, d.IdleTimeout)
	if idle == 0 && req.IdleAction != "" {
		return nil, sandbox.Errorf("create", sandbox.KindInvalid, "idle_action %s needs an idle timeout", req.IdleAction).
			WithHint("give idle_timeout_ms")
	}
	if err := req.pausable(info); err != nil {
		return nil, err
	}
	if req.ID == "" {
		req.ID = sandbox.NewID()
	}
	spec := sandbox.Spec{Instance: sandbox.NewInstanceID(), Sandbox: req.ID, Tenant: who.Tenant, Hostname: pick(req.Hostname, string(req.ID)),
		Root: t.Root, ReadonlyRoot: req.ReadonlyRoot, Limits: limits, Explicit: req.explicit(),
		AcceptWeaker: req.AcceptWeaker, MinIsolation: need.Isolation}
	req.bound()
	urls, err := o.checkBindings(ctx, who.Tenant, &req, info)
	if err == nil {
		err = o.checkNetwork(&req, info, spec)
	}
	if err != nil {
		return nil, err
	}
	release, err := o.Templates.Acquire(t.Digest)
	if err != nil {
		return nil, err
	}
	sb := Sandbox{
		Sandbox: store.Sandbox{ID: req.ID, Tenant: who.Tenant, Instance: spec.Instance, Name: req.Name, State: store.Creating,
			Backend: info.Name, Isolation: info.Isolation, Template: pick(t.Name, t.Digest), TemplateDigest: t.Digest,
			Tier: req.Tier, Metadata: maps.Clone(req.Metadata), Limits: limits, Explicit: spec.Explicit,
			AcceptWeaker: req.AcceptWeaker, ReadonlyRoot: req.ReadonlyRoot,
			IdleTimeout: idle, MaxLife: given(req.Timeout, d.Timeout),
			Principal: who.Principal, Created: o.Clock().UTC()},
		Details: Details{Pack: pick(req.Pack, t.Default), Packs: slices.Clone(t.Packs), Env: merged(t.Env, req.inherited, req.trustEnv(), urls, req.Env), Hostname: spec.Hostname, WorkDir: t.WorkDir(), Notes: notes, Run: req.run, IdleAction: req.IdleAction,
			ExpireAction: req.ExpireAction, Wake: req.Wake, Network: req.state(), Demand: need},
	}
	if sb.MaxLife > 0 {
		sb.ExpiresAt = sb.Created.Add(sb.MaxLife)
		sb.Details.Life = sb.MaxLife
	}
	if from != nil {
		sb.Template, sb.Details.From = from.Template, req.From
	}
	if req.fork != nil {
		sb.Details.Parent = req.fork.parent.ID
	}
	return &plan{backend: backend, spec: spec, sb: sb, from: from, release: release}, nil
}

// merged is all of envs; of what two have, the later one's.
func merged(envs ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, env := range envs {
		maps.Copy(out, env)
	}
	return out
}

// checkNetwork decides whether the backend may serve spec, with the wire that
// req's rules will need.
func (o *Orchestrator) checkNetwork(req *CreateRequest, info sandbox.Info, spec sandbox.Spec) error {
	if req.Network == nil {
		return info.Check(spec)
	}
	if o.Network == nil {
		return noNetwork()
	}
	if err := req.Network.check("create"); err != nil {
		return err
	}
	spec.Wire = &sandbox.Wire{}
	return info.Check(spec)
}

func pick(v, d string) string {
	if v != "" {
		return v
	}
	return d
}

func given(v *time.Duration, d time.Duration) time.Duration {
	if v != nil {
		return *v
	}
	return d
}

// maxTimeout keeps times within what every clock and encoding can hold.
const maxTimeout = 10 * 365 * 24 * time.Hour

// validate rejects what no backend could make sense of. KindInvalid.
func validate(req *CreateRequest) error {
	if err := req.Limits.Validate(); err != nil {
		return err
	}
	for name, d := range map[string]*time.Duration{"timeout": req.Timeout, "idle timeout": req.IdleTimeout} {
		if d != nil && (*d < 0 || *d > maxTimeout) {
			return sandbox.Errorf("create", sandbox.KindInvalid, "%s %s is out of range", name, *d).WithHint("between 0 (never) and 10 years")
		}
	}
	switch req.IdleAction {
	case "", IdleDestroy, IdleEvent, IdlePause:
	default:
		return sandbox.Errorf("create", sandbox.KindInvalid, "unknown idle_action %.32q", req.IdleAction).WithHint("destroy, event or pause")
	}
	switch req.ExpireAction {
	case "", ExpireDestroy, ExpirePause:
	default:
		return sandbox.Errorf("create", sandbox.KindInvalid, "unknown expire_action %.32q", req.ExpireAction).WithHint("destroy or pause")
	}
	switch req.Wake {
	case "", WakeUse, WakeResume:
	default:
		return sandbox.Errorf("create", sandbox.KindInvalid, "unknown wake %.32q", req.Wake).WithHint("use or resume")
	}
	if req.ID != "" && !req.ID.Valid() {
		return sandbox.Errorf("create", sandbox.KindInvalid, "malformed sandbox id %.80q", req.ID)
	}
	if sandbox.ID(req.Name).Valid() {
		return sandbox.Errorf("create", sandbox.KindInvalid, "the name %q looks like a sandbox id", req.Name).WithHint("choose another name")
	}
	return checkEnv(req.Env)
}

// checkEnv rejects what cannot be an environment variable.
func checkEnv(env map[string]string) error {
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.IndexByte(v, 0) >= 0 {
			return sandbox.Errorf("environment", sandbox.KindInvalid, "%.80q cannot be an environment variable", k).
				WithHint("a name holds no '=', and neither name nor value a NUL byte")
		}
	}
	return nil
}

// choose returns the backend called name, or for Auto the strongest that works
// here. Auto never takes one that isolates nothing, and one that is emulated only
// where nothing else isolates as well as is needed. What it takes may be weaker than
// need; see enough.
func (o *Orchestrator) choose(ctx context.Context, name string, need policy.Demand) (sandbox.Backend, sandbox.Info, []string, error) {
	var best, slow sandbox.Backend
	var info, slowInfo sandbox.Info
	var names, why []string
	for _, b := range o.Backends {
		i, err := b.Info(ctx)
		if err != nil {
			return nil, info, nil, sandbox.Wrap("create", "", err)
		}
		names = append(names, i.Name)
		if name == i.Name {
			return b, i, i.Notes, nil // Info.Check says if it does not work
		}
		switch {
		case !i.Available:
			why = append(why, i.Name+": "+i.Reason)
		case i.Isolation == sandbox.IsolationNone:
			why = append(why, i.Name+": isolates nothing, so it must be named")
		case i.Emulated:
			why = append(why, i.Name+": emulated, so it must be named, or its class demanded")
			if slow == nil || i.Isolation > slowInfo.Isolation {
				slow, slowInfo = b, i
			}
		case best == nil || i.Isolation > info.Isolation:
			best, info = b, i
		}
	}
	if name != Auto {
		return nil, info, nil, sandbox.Errorf("create", sandbox.KindInvalid, "unknown backend %.64q", name).
			WithHint("one of %s, or auto", strings.Join(names, ", "))
	}
	if slow != nil && need.Isolation > info.Isolation && slowInfo.Isolation >= need.Isolation {
		note := fmt.Sprintf("backend %s chosen: %s demands %s, and nothing faster isolates so here", slowInfo.Name, need.By, need.Isolation)
		return slow, slowInfo, append([]string{note}, slowInfo.Notes...), nil
	}
	if best == nil {
		return nil, info, nil, sandbox.Errorf("create", sandbox.KindUnavailable, "no backend works here (%s)", strings.Join(why, "; ")).
			WithHint("`firebreak doctor` says what is missing and how to mend it")
	}
	note := fmt.Sprintf("backend %s chosen: %s is the strongest isolation that works here", info.Name, info.Isolation)
	if need.Isolation > sandbox.IsolationNone && need.Isolation <= info.Isolation {
		note += fmt.Sprintf(", and %s demands %s", need.By, need.Isolation)
	}
	if slow != nil && slowInfo.Isolation > info.Isolation {
		note += fmt.Sprintf(" at full speed; %s, which isolates by %s, is emulated, so it must be named, or its class demanded", slowInfo.Name, slowInfo.Isolation)
	}
	return best, info, append([]string{note}, info.Notes...), nil
}

// Infos describes every backend, and names the one that Auto takes; "" if there
// is none.
func (o *Orchestrator) Infos(ctx context.Context) (infos []sandbox.Info, auto string, err error) {
	for _, b := range o.Backends {
		i, err := b.Info(ctx)
		if err != nil {
			return nil, "", sandbox.Wrap("backends", "", err)
		}
		infos = append(infos, i)
	}
	if _, best, _, err := o.choose(ctx, Auto, o.ownDemand()); err == nil {
		auto = best.Name
	}
	return infos, auto, nil
}

// intend records and journals a sandbox that has been admitted. From here on it
// exists, for the store, the recovery and the reaper. The context it
// returns ends with ctx, with the boot's deadline, and when somebody ends the
// sandbox meanwhile.
func (o *Orchestrator) intend(ctx context.Context, who Caller, p *plan, a *admission) (*live, context.Context, error) {
	if err := o.record(ctx, who, &p.sb, createRecord(p)); err != nil {
		return nil, nil, err
	}
	failpoint.Hit("create/before-intent")
	p.sb.Extra = p.sb.Details.pack()
	// The ledger has let it in; the store, which has the last word, agrees.
	q := store.Quota{Tenant: int(o.Quota.Of(who.Tenant).Sandboxes), Host: o.Quota.Host}
	rec, err := o.Store.Tenant(who.Tenant).CreateSandbox(ctx, p.sb.Sandbox, q)
	if err != nil {
		return nil, nil, o.unmade(ctx, who, p, err)
	}
	failpoint.Hit("create/after-intent")
	ctx, cancel := context.WithTimeout(ctx, o.Defaults.CreateTimeout)
	l := o.newLive(Sandbox{Sandbox: rec, Details: p.sb.Details}, p.release, cancel)
	a.kept = true
	o.add(l)
	if p.sb.Details.Run == "" { // a run has said so already
		l.publishState(store.Creating, "", "", false)
	}
	return l, ctx, nil
}

// unmade ends the evidence of a create that was recorded as about to happen and did
// not, for err, with the receipt of nothing, as all evidence ends. It returns err, or
// one that says when to try again.
func (o *Orchestrator) unmade(ctx context.Context, who Caller, p *plan, err error) error {
	ctx = context.WithoutCancel(ctx)
	evidence := o.record(ctx, who, &p.sb, sandbox.Record{Class: sandbox.Flow, Action: "sandbox.create",
		Outcome: sandbox.OutcomeFailed, Detail: map[string]string{"error": clip(err.Error())}})
	if evidence == nil {
		evidence = o.record(ctx, who, &p.sb, receiptRecord(sandbox.Receipt{Instance: p.sb.Instance}.Seal(), ""))
	}
	if evidence != nil {
		o.Log.Error("a create that failed could not be recorded; the missing \"done\" says the same", "sandbox", p.sb.ID, "error", evidence)
	}
	var e *sandbox.Error
	if errors.As(err, &e) && e.Kind == sandbox.KindCapacity && e.RetryAfter == 0 {
		e.RetryAfter = 5 * time.Second
	}
	return err
}

// gitCommit is what the id of a commit looks like: SHA-1 or SHA-256.
var gitCommit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

func createRecord(p *plan) sandbox.Record {
	d := map[string]string{"backend": p.sb.Backend, "isolation": p.sb.Isolation.String(), "template": p.sb.TemplateDigest,
		"memory": strconv.FormatInt(p.spec.Limits.Memory, 10), "cpus": strconv.FormatFloat(p.spec.Limits.CPUs, 'g', -1, 64),
		"pids": strconv.Itoa(p.spec.Limits.PIDs), "disk": strconv.FormatInt(p.spec.Limits.Disk, 10), "network": "none"}
	if p.sb.Tier != "" {
		d["tier"] = p.sb.Tier
	}
	if p.spec.AcceptWeaker {
		d["accept_weaker"] = "true"
	}
	switch {
	case p.sb.Details.Parent != "":
		d["forked_from"] = string(p.sb.Details.Parent)
	case p.from != nil:
		d["snapshot"] = p.from.Image.Name
	}
	if p.sb.Details.Run != "" {
		d["run"] = string(p.sb.Details.Run)
	}
	// The caller's word, as all labels are. Other labels may hold secrets and stay out.
	if c := p.sb.Metadata["git.commit"]; gitCommit.MatchString(c) {
		d["git_commit"] = c
	}
	r := sandbox.Record{Action: "sandbox.create", Outcome: sandbox.OutcomeAllowed, Object: p.sb.Name, Detail: d}
	if n := p.sb.Details.Network; n != nil {
		d["network"] = "policy"
		maps.Copy(d, n.about())
		if len(n.Bindings) > 0 {
			d["bindings"] = clip(strings.Join(n.Bindings, " "))
		}
		r.Policy, r.Digest = n.Generation, n.Digest()
	}
	if need := p.sb.Details.Demand; need.Isolation > sandbox.IsolationNone {
		d["min_isolation"], d["demanded_by"] = need.Isolation.String(), clip(need.By)
	}
	return r
}

// clip bounds a value of a record's detail.
func clip(s string) string {
	if len(s) > 1000 {
		s = s[:1000]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// boot makes the instance and meets its agent. Meanwhile the template is
// compared with what was built: nothing of it runs before the first exec.
func (l *live) boot(ctx context.Context, p *plan) error {
	checked := make(chan error, 1)
	go func() { checked <- l.o.Templates.Check(ctx, p.sb.TemplateDigest) }()
	err := l.meet(ctx, p)
	return cmp.Or(<-checked, err)
}

func (l *live) meet(ctx context.Context, p *plan) error {
	if l.network() != nil {
		failpoint.Hit("create/before-wire")
	}
	w, err := l.openWire(ctx)
	if err != nil {
		return err
	}
	if p.spec.Wire = w; w != nil {
		failpoint.Hit("create/after-wire")
	}
	inst, err := l.o.instance(ctx, p)
	if err != nil {
		return err
	}
	failpoint.Hit("create/after-boot")
	l.mu.Lock()
	l.inst = inst
	l.mu.Unlock()
	s, err := l.open(ctx, inst)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.sess = s
	l.mu.Unlock()
	failpoint.Hit("create/after-session")
	if err := l.trust(ctx, s); err != nil {
		return sandbox.Wrap("create", string(l.id), err)
	}
	failpoint.Hit("create/after-trust")
	if p.from != nil {
		p.procs, err = l.inheritProcesses(p.from)
	}
	return err
}

// running journals that the sandbox is ready and begins to watch it.
func (l *live) running(ctx context.Context, begun time.Time) error {
	l.mu.Lock()
	inst, det := l.inst, l.sb.Details
	l.mu.Unlock()
	st, err := inst.Status(ctx)
	if err != nil {
		return err
	}
	sb := Sandbox{Details: det}
	rec, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		sb.Sandbox = *rec
		sb.started(st, begun)
		*rec = sb.Sandbox
		return nil
	})
	if err != nil {
		return err
	}
	failpoint.Hit("create/after-running")
	sb.Sandbox = rec
	return l.run(ctx, inst, st, sb)
}

// started notes in a record that the instance is there, and what is enforced.
func (sb *Sandbox) started(st sandbox.Status, begun time.Time) {
	sb.State, sb.Started, sb.Enforced = store.Running, time.Now().UTC(), st.Enforced
	sb.Details.Boot = time.Since(begun)
	for _, n := range (sandbox.AllLimits &^ st.Enforced).Names() {
		sb.Details.Notes = append(slices.Clip(sb.Details.Notes), "the "+n+" limit is not enforced here")
	}
	sb.Extra = sb.Details.pack()
}

// run begins to watch a sandbox that is journalled as running, and tells of it.
func (l *live) run(ctx context.Context, inst sandbox.Instance, st sandbox.Status, sb Sandbox) error {
	l.mu.Lock()
	l.sb = sb
	l.usage, l.sampled, l.used = st.Usage, time.Now(), time.Now()
	l.arm()
	ended := l.ending != nil
	l.mu.Unlock()
	if ended { // somebody destroyed it just now
		return l.gone()
	}
	if err := l.o.begin(); err != nil {
		return err
	}
	go func() {
		defer l.o.work.Done()
		l.watch(inst)
	}()
	l.publishState(store.Running, "", "", false)
	return l.record(ctx, Caller{Tenant: l.tenant, Principal: sb.Principal}, sandbox.Record{Class: sandbox.Flow, Action: "sandbox.create",
		Outcome: sandbox.OutcomeDone, Detail: map[string]string{"enforced": st.Enforced.String(), "took": short(sb.Details.Boot)}})
}

// failure is the reason of a boot that ended with err.
func failure(ctx context.Context, err error) sandbox.Reason {
	switch {
	case context.Cause(ctx) == context.DeadlineExceeded || sandbox.KindOf(err) == sandbox.KindTimeout:
		return sandbox.ReasonTimeout
	case ctx.Err() != nil || sandbox.KindOf(err) == sandbox.KindCanceled:
		return sandbox.ReasonOperator
	}
	return sandbox.ReasonCrashed
}

// failed ends a sandbox whose boot went wrong and returns why.
func (l *live) failed(who Caller, reason sandbox.Reason, err error) error {
	l.mu.Lock()
	other := l.ending != nil // somebody ended it while it booted
	l.mu.Unlock()
	e := l.end(who, reason, "create: "+clip(err.Error()), nil)
	<-e.done // bounded: an end does not wait for anybody
	if other {
		return l.gone()
	}
	var typed *sandbox.Error
	if errors.As(err, &typed) {
		if typed.ID == "" {
			typed.ID = string(l.id)
		}
		return err
	}
	return sandbox.Wrap("create", string(l.id), err)
}

// packMissing says what to do about a language a template does not have.
func packMissing(pack string, have []string) error {
	known := []string{template.Python, template.Node, template.Shell}
	if !slices.Contains(known, pack) {
		return sandbox.Errorf("exec", sandbox.KindInvalid, "unknown language pack %.32q", pack).WithHint("one of %s", strings.Join(known, ", "))
	}
	return sandbox.Errorf("exec", sandbox.KindInvalid, "the template cannot run %s", pack).
		WithHint("it has %s; choose another language_pack or the template %q", pick(strings.Join(have, ", "), "none"), pack)
}
