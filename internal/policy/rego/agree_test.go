package rego

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	oparego "github.com/open-policy-agent/opa/v1/rego"
	"golang.org/x/net/publicsuffix"
	"pgregory.net/rapid"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

//go:embed testdata/reference.rego
var reference string

// The world of the random policies: few parts, so that rules meet flows and each
// other.
var (
	labels   = []string{"a", "b", "c"}
	zones    = []string{"example.com", "x.example.com", "a.x.example.com", "github.io", "a.github.io", "amazonaws.com", "s3.amazonaws.com", "b.s3.amazonaws.com", "co.uk", "a.co.uk"}
	ports    = []uint16{80, 443, 8000, 8005}
	ranges   = []string{"80", "443", "8000-8010", "1-65535", "443-8000"}
	networks = []string{"0.0.0.0/0", "::/0", "93.184.0.0/16", "93.184.216.0/24", "93.184.216.34/32", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "8.0.0.0/5", "127.0.0.0/8",
		"192.168.1.0/24", "192.0.0.0/8", "10.0.0.0/7", "fc00::/6", "2606:4700::/32", "fc00::/7", "fd00:1::/32", "100.64.0.0/10", "93.184.216.99/32", "128.0.0.0/1"}
	addresses = []string{"93.184.216.34", "93.184.1.1", "93.184.216.99", "10.1.2.3", "10.1.9.9", "10.9.9.9", "127.0.0.1", "192.168.1.5", "192.168.2.5", "2606:4700::1", "fd00:1::5",
		"169.254.169.254", "64:ff9b::5db8:d822", "64:ff9b::a01:203", "100.64.1.1", "1.1.1.1", "2a00::1", "::ffff:10.1.2.3", "10.1.2.4"}
	methods = []string{"GET", "HEAD", "PUT", "put", "P\tUT"}
	// What requests are for, and what it means; nothing: two things.
	paths = map[string]string{"/": "/", "/a": "/a", "/a/": "/a/", "/a/b": "/a/b", "/ab": "/ab", "/A/b": "/A/b", "/%61/b": "/a/b", "/a/%20": "", "/a/x%20": "/a/x ", "/c/x/y": "/c/x/y",
		"/a/../c": "", "/c//x": "", "/c;x": "", "/a/%2e%2e/c": "", "/c%2fx": "", "*": "", "": "", "/c%": "", "/a/%ff": ""}
	own = []netip.Addr{netip.MustParseAddr("93.184.216.99"), netip.MustParseAddr("10.1.2.4")}
)

func drawName(t *rapid.T) string {
	name := rapid.SampledFrom(zones).Draw(t, "zone")
	for range rapid.IntRange(0, 3).Draw(t, "depth") {
		name = rapid.SampledFrom(labels).Draw(t, "label") + "." + name
	}
	return name
}

// drawDocument draws a policy, as its text.
func drawDocument(t *rapid.T) *policy.Document {
	rules := func(effect string) (list []policy.Rule) {
		for range rapid.IntRange(0, 5).Draw(t, effect) {
			text := effect + ":\n  - {"
			if rapid.Bool().Draw(t, "by network") {
				text += fmt.Sprintf("cidr: %q", rapid.SampledFrom(networks).Draw(t, "network"))
			} else {
				text += fmt.Sprintf("host: %q", rapid.SampledFrom([]string{"", "*.", "**."}).Draw(t, "stars")+drawName(t))
			}
			all := rapid.Bool().Draw(t, "ports given")
			raw := effect == "allow" && rapid.Bool().Draw(t, "protocols given")
			if all || raw {
				text += fmt.Sprintf(", ports: [%s]", rapid.SampledFrom(ranges).Draw(t, "range"))
			}
			if raw {
				text += ", protocol: " + rapid.SampledFrom([]string{"tcp", "tls", "http", "[tcp, tls]"}).Draw(t, "protocols")
			}
			if rapid.IntRange(0, 2).Draw(t, "methods given") == 0 {
				text += fmt.Sprintf(", methods: [%s]", rapid.SampledFrom([]string{"GET", "PUT", "GET, HEAD"}).Draw(t, "methods"))
			}
			if rapid.IntRange(0, 2).Draw(t, "paths given") == 0 {
				text += fmt.Sprintf(", paths: [%s]", rapid.SampledFrom([]string{"/a", "/a/b", "/c/x, /ab", "/", "/c"}).Draw(t, "paths"))
			}
			if effect == "allow" && rapid.IntRange(0, 3).Draw(t, "unread") == 0 {
				text += ", inspect: none"
			}
			d, err := policy.Parse("random.yaml", []byte(text+"}"))
			if err != nil { // a wildcard over a public suffix, methods of raw TCP
				continue
			}
			list = append(append(list, d.Allow...), d.Deny...)
		}
		return list
	}
	d := &policy.Document{Mode: policy.ModeEnforce, Allow: rules("allow"), Deny: rules("deny")}
	if rapid.IntRange(0, 9).Draw(t, "observes") == 0 {
		d.Mode = policy.ModeObserve
	}
	return d
}

func drawFlow(t *rapid.T) policy.Flow {
	f := policy.Flow{
		Port: rapid.SampledFrom(ports).Draw(t, "port"), Addr: netip.MustParseAddr(rapid.SampledFrom(addresses).Draw(t, "address")),
		Protocol: policy.Protocol(rapid.IntRange(1, 3).Draw(t, "protocol")),
	}
	if rapid.Bool().Draw(t, "to a name") {
		f.Host, _ = netaddr.ParseHost(drawName(t))
	} else {
		f.Host = netaddr.HostOf(f.Addr)
	}
	switch rapid.IntRange(0, 5).Draw(t, "claim") {
	case 0:
	case 1:
		f.Claimed, _ = netaddr.ParseHost(drawName(t))
	case 2:
		f.Claimed = netaddr.HostOf(netip.MustParseAddr(rapid.SampledFrom(addresses).Draw(t, "claimed address")))
	default:
		if f.Protocol != policy.ProtocolTCP {
			f.Claimed = f.Host
		}
	}
	return f
}

// drawRequest draws a request, or none.
func drawRequest(t *rapid.T, f policy.Flow) *policy.Request {
	if f.Protocol == policy.ProtocolTCP || rapid.Bool().Draw(t, "a connection") {
		return nil
	}
	return &policy.Request{
		Method: rapid.SampledFrom(methods).Draw(t, "method"), Path: rapid.SampledFrom(slices.Sorted(maps.Keys(paths))).Draw(t, "path"),
	}
}

// referenceInput is the question as the reference wants it.
func referenceInput(table *policy.Table, private []netip.Prefix, f policy.Flow, q *policy.Request, class netaddr.Class) map[string]any {
	text := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return netaddr.Effective(a).String()
	}
	suffix := func(h netaddr.Host) string {
		s, _ := publicsuffix.PublicSuffix(h.Name())
		return s
	}
	var rules []any
	for i, r := range table.Rules() {
		names, nets, portList, protocols := []any{}, []any{}, []any{}, []any{}
		for _, h := range r.Hosts {
			names = append(names, map[string]any{"name": h.Name, "stars": h.Stars})
		}
		for _, p := range r.Networks {
			nets = append(nets, p.String())
		}
		for _, p := range r.Ports {
			portList = append(portList, []any{int(p.Low), int(p.High)})
		}
		for _, p := range []policy.Protocol{policy.ProtocolTCP, policy.ProtocolTLS, policy.ProtocolHTTP} {
			if r.Protocols>>p&1 == 1 {
				protocols = append(protocols, p.String())
			}
		}
		rules = append(rules, map[string]any{"index": i, "id": r.ID, "deny": r.Deny, "names": names, "nets": nets, "ports": portList, "protocols": protocols,
			"opaque": r.Opaque, "methods": append([]string{}, r.Methods...), "paths": append([]string{}, r.Paths...)})
	}
	var request any
	if q != nil {
		request = map[string]any{"method": q.Method, "path": q.Path, "means": paths[q.Path]}
	}
	var permitted []any
	for _, p := range private {
		permitted = append(permitted, p.String())
	}
	return map[string]any{
		"observe": table.Observes(), "rules": rules, "private": permitted, "request": request,
		"flow": map[string]any{
			"name": f.Host.Name(), "suffix": suffix(f.Host), "literal": text(f.Host.Addr()), "addr": text(f.Addr), "class": class.String(), "openable": class.Openable(),
			"port": int(f.Port), "protocol": f.Protocol.String(), "claimed": f.Claimed.IsValid(), "same_claim": f.Claimed == f.Host,
			"claim": map[string]any{"name": f.Claimed.Name(), "addr": text(f.Claimed.Addr()), "suffix": suffix(f.Claimed)},
		},
	}
}

// agreement returns the property: the table, its explanation and the reference
// come to one decision by one rule.
func agreement(tb testing.TB) func(*rapid.T) {
	query, err := oparego.New(oparego.Query("allow := data.reference.allow; best := {b | b := data.reference.best}; denials := data.reference.denials"),
		oparego.Module("reference.rego", reference)).PrepareForEval(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	isOwn := func(a netip.Addr) bool { return slices.Contains(own, a) }
	return func(t *rapid.T) {
		var private []netip.Prefix
		for _, p := range rapid.SliceOfN(rapid.SampledFrom(networks), 0, 4).Draw(t, "private") {
			private = append(private, netip.MustParsePrefix(p))
		}
		d := drawDocument(t)
		table, err := policy.Compile(policy.Options{Private: private, Own: isOwn}, d)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			f := drawFlow(t)
			q := drawRequest(t, f)
			got := table.Decide(context.Background(), f)
			x := table.Explain(context.Background(), f)
			shown := got
			if q != nil {
				got, x = table.DecideRequest(context.Background(), f, *q), table.ExplainRequest(context.Background(), f, *q)
				switch {
				case shown.Allow && !shown.Opaque():
					shown = got
				case !shown.Allow && got.Allow && shown.Reason != policy.ReasonInspect: // which is about connections alone
					t.Fatalf("%+v, %+v: passes on a connection that does not: %+v, %+v by\n%s", f, q, got, shown, d.YAML())
				}
			}
			rs, err := query.Eval(context.Background(), oparego.EvalInput(referenceInput(table, private, f, q, got.Class)))
			if err != nil || len(rs) != 1 {
				t.Fatalf("the reference: %v, %v", rs, err)
			}
			allow, best, denials := rs[0].Bindings["allow"].(bool), rs[0].Bindings["best"].([]any), rs[0].Bindings["denials"].([]any)
			if allow != got.Allow {
				t.Fatalf("%+v, %+v: the table says %+v, the reference %v %v %v by\n%s", f, q, got, allow, best, denials, d.YAML())
			}
			if got.Reason == policy.ReasonRule && (len(best) != 1 || best[0] != got.Rule.ID) || got.Reason == policy.ReasonDenied && !slices.Contains(denials, any(got.Rule.ID)) {
				t.Fatalf("%+v, %+v: the table says %s, the reference %v %v by\n%s", f, q, got.Rule.ID, best, denials, d.YAML())
			}
			denied, allowed := false, false
			for _, s := range x.Steps {
				denied, allowed = denied || s.Match && s.Rule.Deny, allowed || s.Match && !s.Rule.Deny
			}
			reachable := shown.Class == netaddr.Public || shown.Class.Openable()
			if x.Decision != shown || reachable && denied != (shown.Reason == policy.ReasonDenied) || shown.Reason == policy.ReasonRule && !allowed || shown.Reason == policy.ReasonNoRule && allowed {
				t.Fatalf("%+v, %+v: decided %+v, explained %+v by\n%s", f, q, shown, x, d.YAML())
			}
		}
	}
}

func TestAgree(t *testing.T) { rapid.Check(t, agreement(t)) }

func FuzzAgree(f *testing.F) { f.Fuzz(rapid.MakeFuzz(agreement(f))) }
