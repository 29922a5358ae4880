package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Observation is one flow as it is told of: an element of `egress` in what `run
// --json` prints, and the payload of egress events.
type Observation struct {
	Host     string `json:"host"`
	Port     uint16 `json:"port"`
	Address  string `json:"address,omitempty"`
	Protocol string `json:"protocol,omitempty"`
	Decision string `json:"decision,omitempty"` // "allow", "deny", "observe"
	Rule     string `json:"rule,omitempty"`
	Reason   string `json:"reason,omitempty"`
	// Kind is what happened: "connect" or nothing is a connection that was decided
	// about, "dns" a name that was asked for, "close" a connection's end, "request"
	// one on a connection, with its method, or through a binding, which no rule permits.
	Kind    string `json:"kind,omitempty"`
	Binding string `json:"binding,omitempty"`
	Method  string `json:"method,omitempty"`
}

// wanted reports whether an observation says more of what is wanted than others
// do: of a name that may be asked for, the connection says it with the port.
func (o Observation) wanted() bool {
	switch o.Kind {
	case "", "connect":
		return o.Host != ""
	case "dns":
		return o.Host != "" && o.Decision == "deny"
	case "request": // what else is denied of one, no rule permits
		return o.Host != "" && o.Binding == "" && (o.Decision != "deny" || o.Reason == ReasonMethod.String() || o.Reason == ReasonPath.String())
	}
	return false
}

// permitted reports whether a table permits what was observed on a connection that
// it allows. The path of a request is not known: where it passed, some rule with
// paths will have permitted it.
func (o Observation) permitted(f Flow, t *Table) bool {
	if o.Kind != "request" {
		return true
	}
	if a := f.Host.Addr(); a.IsValid() {
		f.Addr = a
	}
	return slices.ContainsFunc(t.candidates(f, nil), func(r *Compiled) bool {
		return (len(r.Methods) == 0 || slices.Contains(r.Methods, o.Method)) && (len(r.Paths) == 0 || o.Decision == "allow")
	})
}

// observations are one, or a list of them.
type observations []Observation

// UnmarshalJSON implements json.Unmarshaler.
func (list *observations) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		*list = make(observations, 1)
		return json.Unmarshal(b, &(*list)[0])
	}
	return json.Unmarshal(b, (*[]Observation)(list))
}

// maxObserved bounds one line of observations, and how many differing flows
// are kept.
const (
	maxObserved = 1 << 20
	maxFlows    = 100_000
)

// ReadObservations reads JSON, one object a line: observations, or objects with
// a member `egress` that is one (events) or a list of them (runs). Other objects
// are passed over, since events are many. Errors: KindInvalid with the line, KindTooLarge.
func ReadObservations(r io.Reader) ([]Observation, error) {
	var all []Observation
	seen := map[Observation]bool{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxObserved)
	line := 0
	for s.Scan() {
		line++
		text := bytes.TrimSpace(s.Bytes())
		if len(text) == 0 {
			continue
		}
		var o struct {
			Observation
			Egress observations `json:"egress"`
		}
		if err := json.Unmarshal(text, &o); err != nil {
			return nil, sandbox.Errorf("suggest", sandbox.KindInvalid, "line %d is not an observation: %w", line, err).
				WithHint(`one JSON object a line, such as {"host":"pypi.org","port":443}`)
		}
		for _, o := range append(o.Egress, o.Observation) {
			if !o.wanted() || seen[o] {
				continue
			}
			if seen[o] = true; len(seen) > maxFlows {
				return nil, sandbox.Errorf("suggest", sandbox.KindTooLarge, "more than %d flows", maxFlows)
			}
			all = append(all, o)
		}
	}
	if err := s.Err(); err != nil {
		return nil, sandbox.Errorf("suggest", sandbox.KindInvalid, "line %d: %w", line+1, err)
	}
	return all, nil
}

// Suggestion is a document that allows what was observed, and what it leaves out.
type Suggestion struct {
	Document *Document
	Left     []string // sentences: observed, and not suggested
}

// siblings is how many names below one make a wildcard worth it: fewer are
// better named.
const siblings = 4

// Suggest makes the smallest set of rules for observations: one for each name,
// or one wildcard with a budget of names for four and more below the same one,
// never over a public suffix; one for each address. They are about all requests:
// those of one run say little of those of the next. What table allows already
// is left out; it may be nil. Hosts come from hostile code: what no rule can
// allow is only told of.
func Suggest(observed []Observation, table *Table) Suggestion {
	s := Suggestion{Document: &Document{Mode: ModeEnforce}}
	wanted := map[want]map[netaddr.Host]bool{}
	for _, o := range observed {
		f, err := o.flow()
		if err != nil {
			s.leave("%v", err)
			continue
		}
		if c := netaddr.Classify(f.Host.Addr()); c != netaddr.Invalid && c != netaddr.Public && !c.Openable() {
			s.leave("%s is never dialled: %s", f.Host, c)
			continue
		} else if c.Openable() {
			s.leave("%s is %s: its rule has effect only where the operator permits it", f.Host, c)
		}
		if table != nil {
			if d := table.Could(f); d.Allow && !d.Observed() && o.permitted(f, table) {
				continue
			} else if d.Reason == ReasonDenied {
				s.leave("%s is denied by the rule %q", f.Host.WithPort(f.Port), d.Rule.ID)
				continue
			}
		}
		w := want{f.Port, f.Protocol == ProtocolTCP}
		if wanted[w] == nil {
			wanted[w] = map[netaddr.Host]bool{}
		}
		wanted[w][f.Host] = true
	}
	rules := map[string]*Rule{}
	for w, hosts := range wanted {
		for _, r := range w.rules(hosts) {
			key := fmt.Sprint(r.Hosts, r.Networks, r.Protocols)
			if old := rules[key]; old != nil {
				old.Ports = append(old.Ports, r.Ports...)
				old.Budget.Names = max(old.Budget.Names, r.Budget.Names)
				continue
			}
			rules[key] = &r
		}
	}
	for _, r := range rules {
		slices.SortFunc(r.Ports, func(a, b PortRange) int { return int(a.Low) - int(b.Low) })
		s.Document.Allow = append(s.Document.Allow, *r)
	}
	slices.SortFunc(s.Document.Allow, func(a, b Rule) int { return strings.Compare(a.derivedID(""), b.derivedID("")) })
	slices.Sort(s.Left)
	s.Left = slices.Compact(s.Left)
	return s
}

func (s *Suggestion) leave(format string, args ...any) {
	s.Left = append(s.Left, fmt.Sprintf(format, args...))
}

// flow is the observation as a flow without its upstream address.
func (o Observation) flow() (Flow, error) {
	h, err := netaddr.ParseHost(o.Host)
	f := Flow{Host: h, Port: o.Port, Protocol: ProtocolTLS}
	switch {
	case err != nil:
		return f, err
	case ofBindings(h.Name()):
		return f, fmt.Errorf("%s would be a binding, which no rule is about", h)
	case o.Port == 0:
		return f, fmt.Errorf("%s was observed without a port", h)
	case o.Protocol != "":
		if f.Protocol, err = ParseProtocol(o.Protocol); err != nil {
			return f, fmt.Errorf("%s was observed with the protocol %.20q", h, o.Protocol)
		}
	}
	if f.Protocol != ProtocolTCP {
		f.Claimed = h
	}
	return f, nil
}

// want is what hosts were wanted for.
type want struct {
	port uint16
	raw  bool
}

// rules are those for hosts, none more than needed.
func (w want) rules(hosts map[netaddr.Host]bool) (list []Rule) {
	rule := func() Rule {
		r := Rule{Ports: []PortRange{{w.port, w.port}}, Protocols: usualProtocols}
		if w.raw {
			r.Protocols = 1 << ProtocolTCP
		}
		return r
	}
	below := map[string][]string{}
	for h := range hosts {
		if a := h.Addr(); a.IsValid() {
			r := rule()
			a = netaddr.Effective(a)
			r.Networks = []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
			list = append(list, r)
			continue
		}
		parent := ""
		if _, up, ok := strings.Cut(h.Name(), "."); ok {
			if _, err := publicsuffix.EffectiveTLDPlusOne(up); err == nil && !crosses(h.Name(), len(up)) {
				parent = up
			}
		}
		if parent == "" {
			parent = h.Name() // nothing shares it
		}
		below[parent] = append(below[parent], h.Name())
	}
	for parent, names := range below {
		itself := slices.Contains(names, parent)
		names = slices.DeleteFunc(names, func(n string) bool { return n == parent })
		if len(names) >= siblings {
			r := rule()
			r.Hosts = []Pattern{{Name: parent, Stars: 1}}
			r.Budget.Names = int64(2 * len(names))
			list = append(list, r)
			names = nil
		}
		if itself {
			names = append(names, parent)
		}
		for _, n := range names {
			r := rule()
			r.Hosts = []Pattern{{Name: n}}
			list = append(list, r)
		}
	}
	return list
}
