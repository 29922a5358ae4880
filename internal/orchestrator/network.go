package orchestrator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Network makes the wires of sandboxes that may reach something, and tells
// RecordEgress of each decision about what they want. A wire belongs to an
// instance. Every method may be called for any instance at any time, also again.
type Network interface {
	// Open makes the wire of an instance, before that is there, and lets pass what
	// p allows once it is. On an error, such as KindNotFound for a binding that is
	// gone meanwhile, nothing is left.
	Open(ctx context.Context, id sandbox.InstanceID, p Egress) (*sandbox.Wire, error)
	// Adopt takes up a wire that an earlier process made. Until then, and after an
	// error, nothing passes it. Bindings that are no longer what they were when it
	// was opened are left out, and unbound says which and why.
	Adopt(ctx context.Context, id sandbox.InstanceID, p Egress) (unbound string, err error)
	// Update puts p in the place of what a wire allowed; its bindings stay. When it
	// returns without an error, nothing passes that p does not allow: it says how many
	// connections were closed for it, and the generation that decisions name from now
	// on.
	Update(ctx context.Context, id sandbox.InstanceID, p Egress) (generation uint64, closed int, err error)
	// Close removes a wire, after its instance, and looks for each object again. What
	// is told of its connections has been told when it returns. It finishes its work
	// even if ctx ends meanwhile. Of an instance without a wire there is nothing.
	Close(ctx context.Context, id sandbox.InstanceID) ([]sandbox.Object, error)
	// List names all instances that have a wire, whoever made it.
	List(ctx context.Context) ([]sandbox.InstanceID, error)
}

// Egress is what a wire is to let pass.
type Egress struct {
	// Documents are policies in YAML that include nothing. What one allows passes,
	// unless another denies it; without any nothing does.
	Documents [][]byte
	// Epoch differs each time a wire is taken up: addresses that names had before
	// lead nowhere.
	Epoch int
	// Generation is what decisions by these documents are to name.
	Generation uint64
	// Used is what was used of budgets before, by the ids of rules; see Accounts.
	Used map[string]policy.Used
	// Authority is whose authority the sandbox's programs trust; empty: the instance's.
	Authority string
	// Tenant is whose the sandbox is, and Bindings what its requests may be made
	// through, by the names that the tenant knows them by.
	Tenant   sandbox.TenantID
	Bindings []string
	// Placeholders are what stands for the secrets of some of them in this sandbox.
	Placeholders map[string]string
	// Inherited are others that stand for them here, by the same names.
	Inherited map[string][]string
	// Transforms set headers of requests.
	Transforms []Transform
}

// NetworkPolicy is where a sandbox may connect: all that a table is made of, and what
// becomes of its requests.
type NetworkPolicy struct {
	Mode      string           `json:"mode"`
	Documents []PolicyDocument `json:"documents"`
	// Transforms set headers of requests that the documents let pass.
	Transforms []Transform `json:"transforms,omitempty"`
	// Demand is the strongest boundary that the documents demand, and that those may have
	// demanded which have nothing to say about connections and are not among them.
	Demand policy.Demand `json:"demand,omitzero"`
}

// PolicyDocument is a part of a NetworkPolicy. It includes nothing.
type PolicyDocument struct {
	Name   string `json:"name,omitempty"`
	Source string `json:"source"` // allow, built-in, stored, request
	Digest string `json:"digest"` // SHA-256 of Text, in hex
	Text   string `json:"text"`
}

// NetworkState is a sandbox's policy and what its wire needs. It is never changed,
// only replaced.
type NetworkState struct {
	NetworkPolicy
	Generation uint64 `json:"generation"`
	Epoch      int    `json:"epoch"`
	// Used is what was used of the budgets of rules, by their ids.
	Used map[string]policy.Used `json:"used,omitempty"`
	// Authority is who vouches for hosts to its programs, over all its instances. An
	// earlier version did not note it: then it is the instance.
	Authority string `json:"authority,omitempty"`
	// Bindings are what requests may be made through, by name.
	Bindings []string `json:"bindings,omitempty"`
	// Placeholders are what stands for the secrets of some of them, by their names.
	Placeholders map[string]string `json:"placeholders,omitempty"`
	// Inherited are those of the sandbox that it was made of, whose programs go on in
	// it: here they stand for what its own bindings of these names have.
	Inherited map[string][]string `json:"inherited,omitempty"`
	// Unbound says which of them are cut off at present, and why. It is not kept.
	Unbound string `json:"-"`
	// Untrusted says why programs may not trust the sandbox's authority. It is not kept.
	Untrusted string `json:"-"`
	// Problem says why the wire is cut off at present. It is not kept.
	Problem string `json:"-"`
}

// Bounds of one sandbox's policy.
const (
	maxPolicyDocuments = 128
	maxPolicyBytes     = 256 << 10
)

// wireWait bounds what a wire's update or adoption may take.
const wireWait = 10 * time.Second

// Digest is the SHA-256, in hex, of the documents' digests, one a line, in order, and
// of the transforms as they are kept.
func (p *NetworkPolicy) Digest() string {
	var b strings.Builder
	for _, d := range p.Documents {
		b.WriteString(d.Digest + "\n")
	}
	for _, t := range p.Transforms {
		fmt.Fprintf(&b, "transform %q\n", t.Host)
		for _, h := range t.Headers {
			fmt.Fprintf(&b, "%q: %q %q\n", h.Name, h.Value, h.Sealed)
		}
	}
	sum := sha256.Sum256([]byte(b.String()))
	return hex.EncodeToString(sum[:])
}

// check refuses a policy that is too large to be kept with a sandbox.
func (p *NetworkPolicy) check(op string) error {
	n := 0
	for _, d := range p.Documents {
		n += len(d.Text)
	}
	if len(p.Documents) > maxPolicyDocuments || n > maxPolicyBytes {
		return sandbox.Errorf(op, sandbox.KindTooLarge, "the sandbox's policy has %d documents and %s", len(p.Documents), sandbox.FormatSize(int64(n))).
			WithHint("at most %d documents and %s, what they include counted", maxPolicyDocuments, sandbox.FormatSize(maxPolicyBytes))
	}
	return checkTransforms(op, p.Transforms)
}

// about are the facts that evidence of a policy holds.
func (p *NetworkPolicy) about() map[string]string {
	var names []string
	for _, d := range p.Documents {
		if d.Name != "" {
			names = append(names, d.Name)
		}
	}
	about := map[string]string{"mode": p.Mode, "documents": strconv.Itoa(len(p.Documents)), "policies": clip(strings.Join(names, " "))}
	var hosts []string
	for _, t := range p.Transforms {
		hosts = append(hosts, t.Host)
	}
	if len(hosts) > 0 {
		about["transforms"] = clip(strings.Join(hosts, " "))
	}
	if p.Demand.Isolation > sandbox.IsolationNone {
		about["min_isolation"], about["demanded_by"] = p.Demand.Isolation.String(), clip(p.Demand.By)
	}
	return about
}

func (n *NetworkState) egress(tenant sandbox.TenantID) Egress {
	e := Egress{Epoch: n.Epoch, Generation: n.Generation, Used: maps.Clone(n.Used), Authority: n.Authority, Tenant: tenant, Bindings: slices.Clone(n.Bindings), Placeholders: maps.Clone(n.Placeholders), Inherited: maps.Clone(n.Inherited), Transforms: n.Transforms}
	for _, d := range n.Documents {
		e.Documents = append(e.Documents, []byte(d.Text))
	}
	return e
}

// noNetwork is the answer to rules where nothing could keep them.
func noNetwork() error {
	return sandbox.Errorf("create", sandbox.KindUnsupported, "this server gives no sandbox a network").
		WithHint("leave the network rules out (--allow, --policy, --binding) and bring what the code needs with --input; `firebreak doctor` says what is missing")
}

// noWires says why nothing can be done about a wire that an earlier process made.
func noWires(op string) error {
	return sandbox.Errorf(op, sandbox.KindUnsupported, "this server makes no networks, an earlier one did").
		WithHint("start it as that one was; `firebreak doctor` says what is missing")
}

// network is the sandbox's policy; nil: it has no network device.
func (l *live) network() *NetworkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sb.Details.Network
}

// openWire makes the sandbox's wire for the instance that is about to be made,
// if it is to have one; nil: it is not. Its intent is journalled with the instance's.
func (l *live) openWire(ctx context.Context) (*sandbox.Wire, error) {
	n := l.network()
	if n == nil {
		return nil, nil
	}
	if l.o.Network == nil {
		return nil, noWires("open")
	}
	e := n.egress(l.tenant)
	if _, errs := l.entitled(ctx, &e); len(errs) > 0 { // changed since it was asked for
		return nil, errs[0]
	}
	w, err := l.o.Network.Open(ctx, l.instance, e)
	if err == nil && w == nil {
		err = sandbox.Errorf("open wire", sandbox.KindInternal, "there is no wire and no error")
	}
	return w, err
}

// adoptWire takes up the wire of a sandbox that an earlier process made, or that
// could not be taken up until now. What is wrong is in the sandbox's report, and
// tried again by the reaper: nothing passes meanwhile.
func (l *live) adoptWire(ctx context.Context) {
	l.wiring.Lock()
	defer l.wiring.Unlock()
	l.reconnect(ctx)
}

// reconnect is adoptWire for who holds l.wiring.
func (l *live) reconnect(ctx context.Context) {
	n := l.network()
	if n == nil || l.dead() || l.paused() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wireWait)
	defer cancel()
	err, unbound := error(noWires("adopt")), ""
	if l.o.Network != nil {
		next := *n
		next.Epoch++
		if err = l.journalNetwork(ctx, &next); err == nil {
			failpoint.Hit("adopt/after-intent")
			unbound, err = l.takeUp(ctx, &next)
		}
	}
	if err != nil {
		l.o.Log.Error("the network of a sandbox is cut off; it is tried again", "sandbox", l.id, "error", err)
	}
	if unbound != "" {
		l.o.Log.Error("bindings of a sandbox are cut off", "sandbox", l.id, "error", unbound)
	}
	l.cutOff(err, unbound)
	l.mu.Lock()
	s := l.sess // without one: who makes the next sees to it
	l.mu.Unlock()
	if err == nil && s != nil {
		l.trustAgain(ctx, s)
	}
}

// takeUp has the wire served, without bindings that the sandbox may not use any more:
// unbound says which and why.
func (l *live) takeUp(ctx context.Context, n *NetworkState) (unbound string, err error) {
	e := n.egress(l.tenant)
	var errs []error
	e.Bindings, errs = l.entitled(ctx, &e)
	var without []string
	for _, err := range errs {
		without = append(without, problem(err))
	}
	more, err := l.o.Network.Adopt(ctx, l.instance, e)
	if more != "" {
		without = append(without, more)
	}
	return clip(strings.Join(without, "; ")), err
}

// cutOff notes why nothing passes the wire, nil: something may, and why some of its
// bindings do not work.
func (l *live) cutOff(err error, unbound string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := *l.sb.Details.Network
	n.Unbound, n.Problem = unbound, ""
	if err != nil {
		n.Problem = problem(err)
	}
	l.sb.Details.Network = &n
}

// problem is an error as a sandbox's report says it.
func problem(err error) string {
	var typed *sandbox.Error
	if errors.As(err, &typed) {
		return clip(typed.Message())
	}
	return "internal error; the server's log says more"
}

// dead reports whether the sandbox's end has begun.
func (l *live) dead() bool {
	select {
	case <-l.dying:
		return true
	default:
		return false
	}
}

// journalNetwork writes a sandbox's policy down, and makes it the one that this
// process knows.
func (l *live) journalNetwork(ctx context.Context, n *NetworkState) error {
	err := l.editDetails(ctx, func(d *Details) { d.Network, d.Demand = n, d.Demand.Stronger(n.Demand) })
	if err == nil {
		l.mu.Lock()
		l.sb.Details.Network, l.sb.Details.Demand = n, l.sb.Details.Demand.Stronger(n.Demand)
		l.mu.Unlock()
	}
	return err
}

// editDetails changes what is stored of the sandbox beside its record.
func (l *live) editDetails(ctx context.Context, edit func(*Details)) error {
	_, err := l.o.Store.Tenant(l.tenant).EditSandbox(ctx, l.id, func(rec *store.Sandbox) error {
		if !rec.Live() {
			return goneError(rec.ID, rec.Reason, rec.Detail, rec.Ended)
		}
		d := unpack(*rec).Details
		edit(&d)
		rec.Extra = d.pack()
		return nil
	})
	return err
}

// UpdateNetwork replaces what a sandbox may reach and returns how many
// connections of the policy before were closed for it. What p does not allow does
// not pass any more when it returns. It goes on if ctx ends. A sandbox that is paused
// stays so, and begins with p when it is resumed.
//
// Errors: KindNotFound, KindGone, KindTooLarge; KindUnsupported for a sandbox that
// began without a network, unless p allows nothing, and for one whose boundary is
// weaker than p demands; those of Network, and what was
// allowed before still is, or the sandbox's report says that it is cut off.
func (o *Orchestrator) UpdateNetwork(ctx context.Context, who Caller, ref string, p NetworkPolicy) (sb Sandbox, closed int, err error) {
	if err := p.check("update network"); err != nil {
		return Sandbox{}, 0, err
	}
	l, done, err := o.look(ctx, who.Tenant, ref)
	if err != nil {
		return Sandbox{}, 0, err
	}
	defer done()
	l.wiring.Lock()
	defer l.wiring.Unlock()
	old, unmet := l.network(), l.meets(ctx, p.Demand)
	switch {
	case l.dead():
		return Sandbox{}, 0, l.gone()
	case unmet != nil:
		return Sandbox{}, 0, unmet
	case old == nil && len(p.Documents)+len(p.Transforms) > 0:
		return Sandbox{}, 0, sandbox.Errorf("update network", sandbox.KindUnsupported, "the sandbox began without a network device, and gets none").
			WithID(string(l.id)).WithHint("make one with network rules; a policy that says `allow: []` allows nothing until it is updated")
	}
	next := &NetworkState{NetworkPolicy: p, Generation: 1}
	if old != nil {
		next.Generation, next.Epoch, next.Used, next.Authority = old.Generation+1, old.Epoch, old.Used, old.Authority
		next.Bindings, next.Placeholders, next.Inherited, next.Unbound = old.Bindings, old.Placeholders, old.Inherited, old.Unbound
		if old.Problem != "" { // it will be taken up
			next.Epoch++
		}
	}
	r := sandbox.Record{Action: "sandbox.network", Outcome: sandbox.OutcomeAllowed, Policy: next.Generation, Digest: p.Digest(), Detail: p.about()}
	if err := l.record(ctx, who, r); err != nil {
		return Sandbox{}, 0, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wireWait)
	defer cancel()
	if old != nil {
		closed, err = l.rewire(ctx, old, next)
	} else {
		err = l.heldTo(ctx, p.Demand)
	}
	r.Class, r.Outcome, r.Detail = sandbox.Flow, sandbox.OutcomeDone, map[string]string{"closed": strconv.Itoa(closed)}
	if err != nil {
		r.Outcome, r.Detail = sandbox.OutcomeFailed, map[string]string{"error": clip(err.Error())}
	} else if old != nil {
		r.Policy = l.network().Generation
	}
	if e := l.record(ctx, who, r); err == nil {
		err = e
	}
	if err != nil {
		return Sandbox{}, 0, err
	}
	return l.snapshot(), closed, nil
}

// rewire journals a policy and has the wire follow it, or puts both back.
// Preconditions: l.wiring is held.
func (l *live) rewire(ctx context.Context, old, next *NetworkState) (closed int, err error) {
	if l.o.Network == nil {
		return 0, noWires("update network")
	}
	if err := l.journalNetwork(ctx, next); err != nil {
		return 0, err
	}
	failpoint.Hit("network/after-intent")
	if l.paused() { // whatever wire it gets begins with what is journalled
		return 0, nil
	}
	generation, unbound := next.Generation, next.Unbound
	if old.Problem != "" {
		unbound, err = l.takeUp(ctx, next)
	} else {
		generation, closed, err = l.o.Network.Update(ctx, l.instance, next.egress(l.tenant))
	}
	failpoint.Hit("network/after-effect")
	if err != nil {
		l.unwire(context.WithoutCancel(ctx), old)
		return 0, sandbox.Wrap("update network", string(l.id), err)
	}
	if generation != next.Generation || unbound != next.Unbound { // who decides counts for itself
		n := *next
		n.Generation, n.Unbound = generation, unbound
		if err := l.journalNetwork(ctx, &n); err != nil { // what passes is right all the same
			return closed, err
		}
	}
	l.trustNext(ctx)
	return closed, nil
}

// unwire puts back a policy whose update failed. Should the wire not take it, it
// counts as cut off: whatever passes it now, this process does not know.
func (l *live) unwire(ctx context.Context, old *NetworkState) {
	ctx, cancel := context.WithTimeout(ctx, wireWait)
	defer cancel()
	err := l.journalNetwork(ctx, old)
	if err == nil && old.Problem == "" {
		_, _, err = l.o.Network.Update(ctx, l.instance, old.egress(l.tenant))
	}
	if err != nil {
		l.o.Log.Error("the policy of a sandbox could not be put back; it is tried again", "sandbox", l.id, "error", err)
		l.cutOff(err, old.Unbound)
	}
}

// closeWire removes an instance's wire and adds its objects to the receipt. What
// cannot be found out counts as left behind.
func (o *Orchestrator) closeWire(ctx context.Context, r sandbox.Receipt) (sandbox.Receipt, error) {
	var objects []sandbox.Object
	err := noWires("destroy")
	if o.Network != nil {
		objects, err = o.Network.Close(ctx, r.Instance)
	}
	clean := true
	for _, x := range objects {
		clean = clean && x.Gone
	}
	if err != nil && clean {
		objects = append(objects, sandbox.Object{Kind: "wire", Name: string(r.Instance), Check: "removing it", Checked: time.Now().UTC(), Detail: clip(err.Error())})
	}
	r.Objects = append(r.Objects[:len(r.Objects):len(r.Objects)], objects...)
	failpoint.Hit("end/after-wire")
	return r.Seal(), err
}

// strayWires are the wires that no sandbox of this process owns.
func (o *Orchestrator) strayWires(ctx context.Context) (ids []sandbox.InstanceID, err error) {
	if o.Network == nil {
		return nil, nil
	}
	ids, err = o.Network.List(ctx)
	ids = slices.DeleteFunc(ids, o.holds)
	if len(ids) == 0 || err != nil {
		return nil, err
	}
	now, err := o.Network.List(ctx) // one of them may have been that of a sandbox that ended meanwhile
	return slices.DeleteFunc(ids, func(id sandbox.InstanceID) bool { return !slices.Contains(now, id) }), err
}

// cutOffs are the sandboxes whose wire is to be taken up again.
func (o *Orchestrator) cutOffs() (ls []*live) {
	o.mu.Lock()
	all := make([]*live, 0, len(o.lives))
	for _, l := range o.lives {
		all = append(all, l)
	}
	o.mu.Unlock()
	for _, l := range all {
		if n := l.network(); n != nil && n.Problem != "" && !l.dead() {
			ls = append(ls, l)
		}
	}
	return ls
}
