package policy

import (
	"fmt"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// ParseAllow reads HOST[:PORT] as `--allow` takes it: a rule for a name, a
// wildcard, an address or a network, with one port or a range. An IPv6 address
// with a port stands in brackets. Errors: KindInvalid.
func ParseAllow(s string) (Rule, error) {
	host, ports, err := cutPorts(s)
	if strings.Contains(s, "://") {
		err = fmt.Errorf("this is a URL, not a host")
	}
	rule := Rule{Protocols: usualProtocols, Ports: []PortRange{{443, 443}}}
	if err == nil && ports != "" {
		rule.Ports = make([]PortRange, 1)
		rule.Ports[0], err = parsePorts(ports)
	}
	if err != nil {
		return rule, sandbox.Errorf("policy", sandbox.KindInvalid, "%.300q: %w", s, err).WithHint("write HOST or HOST:PORT, such as api.example.com:8443")
	}
	if strings.Contains(host, "/") {
		p, err := parsePrefix(host)
		if err != nil {
			return rule, sandbox.Errorf("policy", sandbox.KindInvalid, "%w", err)
		}
		rule.Networks = append(rule.Networks, p)
		return rule, nil
	}
	p, prefix, err := parseHost(host)
	switch {
	case err != nil:
		return rule, sandbox.Errorf("policy", sandbox.KindInvalid, "%w", err).WithHint("write HOST or HOST:PORT, such as api.example.com:8443")
	case prefix.IsValid():
		rule.Networks = append(rule.Networks, prefix)
	default:
		rule.Hosts = append(rule.Hosts, p)
		if p.Stars > 0 {
			rule.Budget.Names = defaultNames
		}
	}
	return rule, nil
}

// cutPorts splits what a person writes at the colon in front of a port.
func cutPorts(s string) (host, ports string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		ports, colon := strings.CutPrefix(after, ":")
		switch {
		case !closed || !strings.Contains(host, ":"):
			return "", "", fmt.Errorf("brackets are for an IPv6 address")
		case after != "" && (!colon || ports == ""):
			return "", "", fmt.Errorf("a port is missing behind the brackets")
		}
		return host, ports, nil
	}
	if strings.Count(s, ":") != 1 { // none, or an IPv6 address without a port
		return s, "", nil
	}
	host, ports, _ = strings.Cut(s, ":")
	if host == "" || ports == "" {
		return "", "", fmt.Errorf("the host or the port is missing")
	}
	return host, ports, nil
}

// Allowing is the document that several HOST[:PORT] make; its rules have no
// document's name in front. Errors: KindInvalid, of the first that is wrong.
func Allowing(list []string) (*Document, error) {
	d := &Document{Mode: ModeEnforce, File: "allow"}
	for i, s := range list {
		r, err := ParseAllow(s)
		if err != nil {
			return nil, err
		}
		r.line = i + 1
		d.Allow = append(d.Allow, r)
	}
	return d, nil
}
