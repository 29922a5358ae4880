package service

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// UpdateNetwork replaces what a sandbox may reach. Errors: KindInvalid with
// FILE:LINE, KindTooLarge, KindNotFound (the sandbox, or a policy), KindGone,
// KindUnsupported for a sandbox without a network device, or with a weaker boundary than
// a policy demands.
func (s *Service) UpdateNetwork(ctx context.Context, req *v1.UpdateNetworkRequest) (*v1.UpdateNetworkResponse, error) {
	const method = "SandboxService.UpdateNetwork"
	who, principal, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	p, demand, err := s.network(ctx, method, principal, req)
	if err != nil {
		return nil, err
	}
	if p == nil {
		p = &orchestrator.NetworkPolicy{Mode: string(policy.ModeEnforce), Demand: demand}
	}
	sb, closed, err := s.Orchestrator.UpdateNetwork(ctx, who, req.GetId(), *p)
	if err != nil {
		return nil, err
	}
	return &v1.UpdateNetworkResponse{Network: toNetwork(sb.Details.Network), ClosedConnections: int64(closed)}, nil
}

// networkRules are what a request says about its network; v1.NetworkRules and
// v1.UpdateNetworkRequest are some.
type networkRules interface {
	GetAllow() []string
	GetPolicy() []string
	GetDocument() string
	GetDocuments() map[string]string
	GetTransforms() []*v1.HeaderTransform
}

// network is what a request says about a sandbox's network, nil where it says
// nothing, and what its policies demand of the boundary.
func (s *Service) network(ctx context.Context, method string, p auth.Principal, rules networkRules) (*orchestrator.NetworkPolicy, policy.Demand, error) {
	n, demand, err := s.networkPolicy(ctx, p.Tenant, rules)
	if err != nil || len(rules.GetTransforms()) == 0 {
		return n, demand, err
	}
	if n == nil { // headers of requests that are allowed later
		n = &orchestrator.NetworkPolicy{Mode: string(policy.ModeEnforce), Demand: demand}
	}
	n.Transforms, err = s.transforms(ctx, method, p, rules.GetTransforms())
	return n, demand, err
}

// maxSandboxRules bounds the rules of one sandbox: the router holds them for each.
const maxSandboxRules = 2000

// The sources of a sandbox's documents, and what messages call those that have no
// name of their own.
const (
	sourceAllow   = "allow"
	sourceBuiltIn = "built-in"
	sourceStored  = "stored"
	sourceRequest = "request"

	fileDocument = "document"
	filePolicy   = "policy"
)

// networkPolicy makes a sandbox's policy of what a request says; nil where that says
// nothing of connections. What it returns is all that its table is made of: a policy that is
// stored anew, or a newer version of this program, does not change it.
func (s *Service) networkPolicy(ctx context.Context, tenant sandbox.TenantID, rules networkRules) (*orchestrator.NetworkPolicy, policy.Demand, error) {
	if len(rules.GetAllow())+len(rules.GetPolicy()) == 0 && rules.GetDocument() == "" {
		if len(rules.GetDocuments()) > 0 {
			return nil, policy.Demand{}, sandbox.Errorf("policy", sandbox.KindInvalid, "documents are given, and nothing refers to them").WithHint("name them in policy")
		}
		return nil, policy.Demand{}, nil
	}
	lib := &library{s: s, ctx: ctx, tenant: tenant, texts: rules.GetDocuments(), found: map[string]*policy.Document{}, sources: map[string]string{}}
	docs, err := lib.documents(rules)
	if err != nil {
		return nil, policy.Demand{}, err
	}
	table, err := s.compile(ctx, tenant, policy.Options{Named: lib.named}, docs...)
	if err != nil {
		return nil, policy.Demand{}, err
	}
	if n := len(table.Rules()); n > maxSandboxRules {
		return nil, policy.Demand{}, sandbox.Errorf("policy", sandbox.KindTooLarge, "the sandbox's policy has %d rules", n).WithHint("at most %d; one rule may name many hosts", maxSandboxRules)
	}
	flat, err := policy.Flatten(lib.named, docs...)
	if err != nil {
		return nil, policy.Demand{}, err
	}
	out := &orchestrator.NetworkPolicy{Mode: string(docs[0].Mode), Demand: table.Demand()}
	connects := false
	for _, d := range flat {
		if d.File == filePolicy { // it only held names
			continue
		}
		connects = connects || !d.Unconnected()
		text := d.YAML()
		source, ok := lib.sources[d.File]
		if !ok {
			source = sourceBuiltIn
		}
		out.Documents = append(out.Documents, orchestrator.PolicyDocument{Name: d.Name, Source: source, Digest: digest(text), Text: string(text)})
	}
	if !connects { // nothing in it is a reason for a device
		return nil, table.Demand(), nil
	}
	return out, table.Demand(), nil
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// library finds the documents that one request is about. What it has found stays:
// the request sees each as it was then.
type library struct {
	s       *Service
	ctx     context.Context // of the request, which it does not outlive
	tenant  sandbox.TenantID
	texts   map[string]string
	found   map[string]*policy.Document
	sources map[string]string // by Document.File
	read    int               // bytes
}

// maxRead bounds the texts of one request: a short one could name many that are
// long.
const maxRead = 1 << 20

// parse is policy.Parse, of so much.
func (lib *library) parse(file, text string) (*policy.Document, error) {
	if lib.read += len(text); lib.read > maxRead {
		return nil, sandbox.Errorf("policy", sandbox.KindTooLarge, "the policies that this is about have more than %s, what they include counted", sandbox.FormatSize(maxRead))
	}
	return policy.Parse(file, []byte(text))
}

// documents are those that the request gives or names, in one mode: they observe
// if there are some that people wrote, and each of those does.
func (lib *library) documents(rules networkRules) (docs []*policy.Document, err error) {
	var written []*policy.Document
	if text := rules.GetDocument(); text != "" {
		d, err := lib.parse(fileDocument, text)
		if err != nil {
			return nil, err
		}
		lib.sources[fileDocument] = sourceRequest
		docs, written = append(docs, d), append(written, d)
	}
	for name := range lib.texts {
		if policy.BuiltIn(name) {
			return nil, sandbox.Errorf("policy", sandbox.KindInvalid, "documents: %s is a built-in policy", name).WithHint("choose another name")
		}
	}
	if names := rules.GetPolicy(); len(names) > 0 {
		for _, name := range names {
			if policy.BuiltIn(name) {
				continue
			}
			d, err := lib.named(name)
			if err != nil {
				return nil, err
			}
			written = append(written, d)
		}
		docs = append(docs, &policy.Document{File: filePolicy, Include: names})
	}
	if list := rules.GetAllow(); len(list) > 0 {
		d, err := policy.Allowing(list)
		if err != nil {
			return nil, err
		}
		lib.sources[d.File] = sourceAllow
		docs = append(docs, d)
	}
	mode := policy.ModeEnforce
	if len(written) > 0 {
		mode = policy.ModeObserve
	}
	for _, d := range written {
		if d.Mode != policy.ModeObserve {
			mode = policy.ModeEnforce
		}
	}
	for _, d := range docs {
		d.Mode = mode
	}
	return docs, nil
}

// named finds a document of the request or of the tenant. Errors: KindNotFound.
func (lib *library) named(name string) (*policy.Document, error) {
	if d := lib.found[name]; d != nil {
		return d, nil
	}
	text, ours := lib.texts[name]
	file, source := "documents."+name, sourceRequest
	if !ours {
		p, err := lib.s.Store.Tenant(lib.tenant).Policy(lib.ctx, name)
		if sandbox.KindOf(err) == sandbox.KindNotFound {
			return nil, noPolicy(name)
		}
		if err != nil {
			return nil, err
		}
		text, file, source = p.Text, "policy "+name, sourceStored
	}
	d, err := lib.parse(file, text)
	if err != nil {
		return nil, err
	}
	if d.Name == "" { // so that its rules can be told from others'
		d.Name = name
	}
	lib.found[name], lib.sources[file] = d, source
	return d, nil
}

func noPolicy(name string) error {
	return sandbox.Errorf("policy", sandbox.KindNotFound, "there is no policy called %.80q", name).
		WithHint("built in are %s; `firebreak policy ls` lists the others, `firebreak policy set` makes one", strings.Join(policy.Presets(), ", "))
}

func toNetwork(n *orchestrator.NetworkState) *v1.SandboxNetwork {
	if n == nil {
		return nil
	}
	out := &v1.SandboxNetwork{Generation: int64(n.Generation), Mode: n.Mode, Digest: n.Digest(), Problem: text(cmp.Or(n.Problem, n.Unbound, n.Untrusted))}
	out.Transforms = toTransforms(n.Transforms)
	for _, d := range n.Documents {
		out.Documents = append(out.Documents, &v1.NetworkDocument{Name: d.Name, Source: d.Source, Digest: d.Digest, Text: d.Text})
	}
	return out
}

func toFlow(f *orchestrator.FlowEvent) *v1.EgressFlow {
	return &v1.EgressFlow{Host: text(f.Host), Port: int32(f.Port), Address: text(f.Address), Protocol: text(f.Protocol), Decision: f.Decision,
		Rule: text(f.Rule), Reason: text(f.Reason), Hint: text(f.Hint), Kind: f.Kind, Count: f.Count, UploadBytes: f.Upload, DownloadBytes: f.Download,
		Generation: int64(f.Generation), Binding: text(f.Binding), Method: text(f.Method)}
}

func toFlows(r orchestrator.FlowReport) (flows []*v1.EgressFlow, more int64) {
	for i := range r.Flows {
		flows = append(flows, toFlow(&r.Flows[i]))
	}
	return flows, r.More
}

// ListPolicies lists the tenant's policies, then the built-in ones.
func (s *Service) ListPolicies(ctx context.Context, req *v1.ListPoliciesRequest) (*v1.ListPoliciesResponse, error) {
	who, _, err := s.allow(ctx, "PolicyService.ListPolicies")
	if err != nil {
		return nil, err
	}
	list, err := s.Store.Tenant(who.Tenant).ListPolicies(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListPoliciesResponse{}
	for _, p := range list {
		resp.Policies = append(resp.Policies, toPolicy(p))
	}
	for _, name := range policy.Presets() {
		p, err := builtIn(name)
		if err != nil {
			return nil, err
		}
		p.Text = ""
		resp.Policies = append(resp.Policies, p)
	}
	return resp, nil
}

func toPolicy(p store.Policy) *v1.Policy {
	return &v1.Policy{MinIsolation: minIsolation(p.Name, p.Text), Name: p.Name, Text: p.Text, Digest: p.Digest, Version: p.Version, CreatedAt: stamp(p.Created), UpdatedAt: stamp(p.Updated), Principal: p.Principal}
}

// minIsolation is what a policy's own text demands; empty: nothing, or it is not here.
func minIsolation(name, text string) string {
	d, err := policy.Parse(name, []byte(text))
	if err != nil || d.MinIsolation == sandbox.IsolationNone {
		return ""
	}
	return d.MinIsolation.String()
}

func builtIn(name string) (*v1.Policy, error) {
	b, err := policy.PresetText(name)
	return &v1.Policy{Name: name, BuiltIn: true, Text: string(b), Digest: digest(b), Version: 1}, err
}

// GetPolicy returns a policy with its text. Errors: KindNotFound.
func (s *Service) GetPolicy(ctx context.Context, req *v1.GetPolicyRequest) (*v1.Policy, error) {
	who, _, err := s.allow(ctx, "PolicyService.GetPolicy")
	if err != nil {
		return nil, err
	}
	if policy.BuiltIn(req.GetName()) {
		return builtIn(req.GetName())
	}
	p, err := s.Store.Tenant(who.Tenant).Policy(ctx, req.GetName())
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil, noPolicy(req.GetName())
	}
	if err != nil {
		return nil, err
	}
	return toPolicy(p), nil
}

// SetPolicy stores a policy. Errors: KindInvalid with NAME:LINE, KindNotFound for
// what it includes, KindTooLarge, KindConflict when it is not what if_digest says,
// KindCapacity.
func (s *Service) SetPolicy(ctx context.Context, req *v1.SetPolicyRequest) (*v1.Policy, error) {
	const method = "PolicyService.SetPolicy"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	name := req.GetName()
	if err := notBuiltIn(name); err != nil {
		return nil, err
	}
	if !policy.ValidName(name) {
		return nil, sandbox.Errorf("policy", sandbox.KindInvalid, "%.80q is not a name: lower-case letters, digits, dots and hyphens", name)
	}
	d, err := policy.Parse(name, []byte(req.GetText()))
	if err != nil {
		return nil, err
	}
	if d.Name != "" && d.Name != name {
		return nil, sandbox.Errorf("policy", sandbox.KindInvalid, "the policy calls itself %s", d.Name).WithHint("store it under that name, or leave `name` out")
	}
	d.Name = name
	lib := &library{s: s, ctx: ctx, tenant: who.Tenant, found: map[string]*policy.Document{name: d}, sources: map[string]string{}}
	table, err := s.compile(ctx, who.Tenant, policy.Options{Named: lib.named}, d)
	if err != nil {
		return nil, err
	}
	r := sandbox.Record{Tenant: p.Tenant, Principal: p.ID, Action: s.access[method].GetAction(), Outcome: sandbox.OutcomeAllowed, Object: name,
		Digest: digest([]byte(req.GetText()))}
	if _, err := s.Recorder.Record(ctx, r); err != nil {
		return nil, sandbox.Wrap("record", name, err)
	}
	kept, err := s.Store.Tenant(who.Tenant).SetPolicy(ctx, store.Policy{Name: name, Text: req.GetText(), Principal: p.ID}, req.GetIfDigest())
	if err != nil {
		return nil, s.failed(ctx, p, method, name, err)
	}
	out := toPolicy(kept)
	for _, w := range table.Warnings() {
		out.Warnings = append(out.Warnings, text(w))
	}
	return out, nil
}

// RemovePolicy forgets a policy. Errors: KindNotFound, KindInvalid for a built-in
// one.
func (s *Service) RemovePolicy(ctx context.Context, req *v1.RemovePolicyRequest) (*v1.RemovePolicyResponse, error) {
	const method = "PolicyService.RemovePolicy"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := notBuiltIn(req.GetName()); err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	_, err = s.Store.Tenant(who.Tenant).RemovePolicy(ctx, req.GetName())
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		err = noPolicy(req.GetName())
	}
	if err != nil {
		return nil, s.failed(ctx, p, method, req.GetName(), err)
	}
	return &v1.RemovePolicyResponse{}, nil
}

func notBuiltIn(name string) error {
	if !policy.BuiltIn(name) {
		return nil
	}
	return sandbox.Errorf("policy", sandbox.KindInvalid, "%s is a built-in policy, which cannot be changed", name).
		WithHint("choose another name; a policy of yours may include it")
}
