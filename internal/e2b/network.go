package e2b

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// E2B lets everything pass that denyOut does not name, and what allowOut names
// even then. Here nothing passes but what allowOut names: so a policy made of both
// never lets pass what E2B would not.

// everything is how E2B's clients write it.
var everything = []string{"0.0.0.0/0", "::/0", "*"}

// maxEntries bounds each of the two lists.
const maxEntries = 256

// rules are the network rules that a request's lists make; nil for those that
// allow nothing, and set no headers.
func (n *networkRequest) rules() (*v1.NetworkRules, error) {
	hosts, networks, err := allowed(n.AllowOut)
	if err != nil {
		return nil, err
	}
	transforms, err := n.transforms()
	if err != nil {
		return nil, err
	}
	denied, err := denied(n.DenyOut, networks)
	if err != nil {
		return nil, err
	}
	opened := n.opened(transforms)
	if len(hosts)+len(networks)+len(opened) == 0 {
		if len(transforms) == 0 {
			return nil, nil
		}
		return &v1.NetworkRules{Transforms: transforms}, nil
	}
	type rule map[string]any
	doc := struct {
		Name  string `json:"name"`
		Allow []rule `json:"allow"`
		Deny  []rule `json:"deny,omitempty"`
	}{Name: "e2b"}
	if len(hosts) > 0 { // as E2B does: HTTP by its Host header, TLS by its SNI
		doc.Allow = append(doc.Allow, rule{"host": hosts, "ports": []int{443}, "protocol": "tls"}, rule{"host": hosts, "ports": []int{80}, "protocol": "http"})
	}
	if len(opened) > 0 { // headers are set in HTTPS alone
		doc.Allow = append(doc.Allow, rule{"host": opened, "ports": []int{443}, "protocol": "tls"})
	}
	if len(networks) > 0 {
		doc.Allow = append(doc.Allow, rule{"cidr": networks, "ports": []string{"1-65535"}, "protocol": []string{"tls", "http", "tcp"}})
	}
	if len(denied) > 0 {
		doc.Deny = []rule{{"cidr": denied}}
	}
	text, err := json.Marshal(doc)
	if err != nil { // strings and numbers always encode
		panic(err)
	}
	return &v1.NetworkRules{Document: string(text), Transforms: transforms}, nil
}

// allowed reads allowOut.
func allowed(list []string) (hosts []string, networks []netip.Prefix, err error) {
	if len(list) > maxEntries {
		return nil, nil, invalid("allowOut has %d entries, at most %d", len(list), maxEntries)
	}
	for _, s := range list {
		if slices.Contains(everything, s) {
			return nil, nil, sandbox.Errorf("e2b", sandbox.KindUnsupported, "allowOut %s: no sandbox here reaches everything", s).
				WithHint("name the hosts; firebreak run with a policy of `mode: observe` finds out which")
		}
		r, err := policy.ParseAllow(s)
		if err != nil {
			return nil, nil, invalid("allowOut: %s", explain(err))
		}
		network := len(r.Networks) > 0
		if strings.ContainsAny(s, "[]") || strings.Contains(s, ":") && (!network || r.Networks[0].Addr().Is4()) {
			return nil, nil, invalid("allowOut: %.100q names a port", s).WithHint("name hosts, addresses and networks: hosts are allowed on 80 and 443, the others on every port")
		}
		if network {
			networks = append(networks, r.Networks[0])
		} else {
			hosts = append(hosts, r.Hosts[0].String())
		}
	}
	return hosts, networks, nil
}

// denied reads denyOut: what is left of each entry without what allowOut names.
func denied(list []string, allow []netip.Prefix) (left []netip.Prefix, err error) {
	if len(list) > maxEntries {
		return nil, invalid("denyOut has %d entries, at most %d", len(list), maxEntries)
	}
	for _, s := range list {
		if slices.Contains(everything, s) {
			continue // as always
		}
		r, err := policy.ParseAllow(s)
		if err != nil || len(r.Networks) == 0 {
			return nil, invalid("denyOut: %.100q is neither an address nor a network", s)
		}
		d := r.Networks[0]
		for _, a := range allow {
			if a.Bits() <= d.Bits() && a.Contains(d.Addr()) {
				return nil, sandbox.Errorf("e2b", sandbox.KindUnsupported, "denyOut %s lies within allowOut %s: it would have no effect at E2B, and here it is not allowed", d, a).
					WithHint("leave it out, or name smaller networks in allowOut")
			}
		}
		if left = append(left, without(d, allow)...); len(left) > 8*maxEntries {
			return nil, sandbox.Errorf("e2b", sandbox.KindTooLarge, "denyOut without what allowOut names is more than %d networks", 8*maxEntries).WithHint("name fewer")
		}
	}
	return left, nil
}

// without is p without those of allow that lie in it: networks that overlap are
// nested.
func without(p netip.Prefix, allow []netip.Prefix) []netip.Prefix {
	var inside []netip.Prefix
	for _, a := range allow {
		switch {
		case !a.Overlaps(p):
		case a.Bits() <= p.Bits():
			return nil
		default:
			inside = append(inside, a)
		}
	}
	if len(inside) == 0 {
		return []netip.Prefix{p}
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	addr, _ := netip.AddrFromSlice(b)
	high := netip.PrefixFrom(addr, p.Bits()+1)
	return append(without(low, inside), without(high, inside)...)
}

// updateNetwork replaces what a sandbox reaches; a list that is not given is
// empty.
func (s *Server) updateNetwork(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		networkRequest
		AllowInternetAccess *bool `json:"allow_internet_access"` // true: what is answered is what holds
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	if err := c.notYetFields(); err != nil {
		return err
	}
	c.closed = c.AllowInternetAccess != nil && !*c.AllowInternetAccess
	rules, err := c.rules()
	if err != nil {
		return err
	}
	if _, err := s.alive(r); err != nil {
		return err
	}
	req := &v1.UpdateNetworkRequest{Id: r.PathValue("id"), Document: rules.GetDocument(), Transforms: rules.GetTransforms()}
	if _, err := checked(r.Context(), s, s.api.UpdateNetwork, req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// toNetwork tells what holds as E2B's clients put it: names and networks that are
// allowed, on whatever ports.
func toNetwork(n *v1.SandboxNetwork) (out networkDetail, open bool) {
	out = networkDetail{AllowOut: []string{}, DenyOut: []string{}, Rules: toRules(n.GetTransforms())}
	add := func(to *[]string, s string) {
		if !slices.Contains(*to, s) {
			*to = append(*to, s)
		}
	}
	for _, d := range n.GetDocuments() {
		p, err := policy.Parse("document", []byte(d.GetText()))
		if err != nil {
			continue // of a newer version: what is not told is not promised
		}
		for _, r := range p.Allow {
			for _, h := range r.Hosts {
				add(&out.AllowOut, h.String())
			}
			for _, net := range r.Networks {
				add(&out.AllowOut, net.String())
			}
		}
		for _, r := range p.Deny {
			for _, net := range r.Networks {
				add(&out.DenyOut, net.String())
			}
		}
	}
	if n.GetMode() == string(policy.ModeObserve) {
		out.AllowOut = []string{"0.0.0.0/0"}
		return out, true
	}
	add(&out.DenyOut, "0.0.0.0/0")
	return out, false
}
