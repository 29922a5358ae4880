package e2b

import (
	"maps"
	"net/textproto"
	"slices"
	"strings"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// hostRule is one of those of a host, as E2B's clients send it.
type hostRule struct {
	Transform *transform `json:"transform"`
}

type transform struct {
	Headers map[string]string `json:"headers"`
}

// maxHosts bounds how many hosts have rules.
const maxHosts = 64

// transforms are the headers that rules set. Of several rules for a host the last one
// that names a header counts.
func (n *networkRequest) transforms() (out []*v1.HeaderTransform, err error) {
	if len(n.Rules) > maxHosts {
		return nil, invalid("rules are for %d hosts, at most %d", len(n.Rules), maxHosts)
	}
	of := map[string]map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(n.Rules)) {
		host, err := ruleHost(key)
		if err != nil {
			return nil, err
		}
		if of[host] != nil {
			return nil, invalid("rules: %.100q is there twice, in different spellings", host)
		}
		of[host] = map[string]string{}
		for _, r := range n.Rules[key] {
			if r.Transform == nil {
				continue
			}
			for name, value := range r.Transform.Headers {
				of[host][textproto.CanonicalMIMEHeaderKey(name)] = value
			}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(of)) {
		if len(of[host]) > 0 {
			out = append(out, &v1.HeaderTransform{Host: host, Headers: of[host]})
		}
	}
	return out, nil
}

// ruleHost is a host with rules, in small letters: a name, or *.NAME.
func ruleHost(key string) (string, error) {
	r, err := policy.ParseAllow(key)
	switch {
	case err != nil:
		return "", invalid("rules: %s", explain(err))
	case len(r.Hosts) == 0:
		return "", sandbox.Errorf("e2b", sandbox.KindUnsupported, "rules for %.100q: rules are for names", key).
			WithHint("headers are set in HTTPS requests, which name their host")
	case r.Hosts[0].Stars > 1 || strings.ContainsAny(key, ":"):
		return "", invalid("rules: %.100q is neither a name nor *.NAME", key)
	}
	return strings.ToLower(r.Hosts[0].String()), nil
}

// opened are the hosts with rules that E2B would let pass without allowOut: all,
// unless everything is denied.
func (n *networkRequest) opened(transforms []*v1.HeaderTransform) (hosts []string) {
	if n.closed || len(n.AllowOut) > 0 || slices.ContainsFunc(n.DenyOut, func(s string) bool { return slices.Contains(everything, s) }) {
		return nil
	}
	for _, t := range transforms {
		hosts = append(hosts, t.GetHost())
	}
	return hosts
}

// toRules tells of transforms as E2B's clients put them. Values that refer to no
// secret are not told.
func toRules(list []*v1.HeaderTransform) map[string][]hostRule {
	if len(list) == 0 {
		return nil
	}
	out := map[string][]hostRule{}
	for _, t := range list {
		out[t.GetHost()] = []hostRule{{Transform: &transform{Headers: t.GetHeaders()}}}
	}
	return out
}
