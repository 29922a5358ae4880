package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options is what a table is compiled with, beside documents.
type Options struct {
	// Private are the networks that are not public and that the operator permits
	// rules to open. An address of this machine has to be in the list by itself.
	Private []netip.Prefix
	// Own reports addresses of this machine; nil: none is known.
	Own func(netip.Addr) bool
	// Named finds documents to include that are not presets: KindNotFound if there is
	// none. Nil: there are none.
	Named func(name string) (*Document, error)
	// Judge compiles the Rego modules of all documents; package rego has one. Nil:
	// documents with Rego are refused.
	Judge func([]Module) (Judge, error)
}

// Judge is asked about what rules allow, and can only say no.
type Judge interface {
	// Agree reports whether all modules agree. An error is no agreement, and is for
	// operators. It takes milliseconds at most, whatever the modules do.
	Agree(ctx context.Context, q Question) (bool, error)
}

// Question is what a Judge is asked.
type Question struct {
	Flow       Flow
	Class      netaddr.Class
	Rule       *Compiled   // that allows the flow
	Candidates []*Compiled // all allow rules that would, Rule among them
	Generation uint64
	// Method, Path and Binding are those of a Request; where the question is about a
	// connection all are empty. Path has no escapes any more, and is empty if it is odd.
	Method, Path, Binding string
}

// Table is compiled documents. It never changes; all methods may be called at
// once.
type Table struct {
	rules       []*Compiled // deny rules first, then allow, as written
	allow, deny matcher
	narrow      matcher // deny rules that are about some requests only
	narrows     bool    // there are some
	paths       bool    // some rule has paths
	observe     bool
	private     []netip.Prefix
	own         func(netip.Addr) bool
	judge       Judge // nil: no document has Rego
	modules     []Module
	warnings    []string
	demand      Demand
	generation  uint64 // set by Live
}

// Compiled is a rule of a table.
type Compiled struct {
	Rule
	ID   string // unique in the table: "DOCUMENT/RULE", or the rule's alone
	Deny bool
	File string
	Line int
}

// Module is the Rego of one document.
type Module struct {
	File string
	Line int // of its first line in File
	Text string
}

// entry is a rule under one of its names or networks.
type entry struct {
	rule *Compiled
	// What the rule opens, if the name is a network: the addresses in it that are
	// private, and its one address if it is this machine's.
	private, own bool
}

// Rules are the table's, deny rules first.
func (t *Table) Rules() []*Compiled { return t.rules }

// Modules are the Rego modules all of which have to agree with what the table
// allows.
func (t *Table) Modules() []Module { return t.modules }

// Observes reports whether what no rule allows passes and is told of.
func (t *Table) Observes() bool { return t.observe }

// Demand is the strongest of what the documents demand of a sandbox's boundary.
func (t *Table) Demand() Demand { return t.demand }

// Warnings are sentences about rules that cannot have the effect they seem to
// have here.
func (t *Table) Warnings() []string { return t.warnings }

// Generation is which update of its Live the table is; 0 before.
func (t *Table) Generation() uint64 { return t.generation }

// Compile merges documents into a table: whatever one of them allows, unless
// one of them denies it, and as long as the Rego of all of them agrees. It
// observes only if each of docs does; the mode of included documents does not
// count. What any of them demands is demanded. Errors: KindInvalid with FILE:LINE, KindTooLarge, KindUnsupported, those
// of Named and Judge.
func Compile(o Options, docs ...*Document) (*Table, error) {
	t := &Table{private: o.Private, own: o.Own, observe: len(docs) > 0}
	c := &compiler{table: t, options: o, seen: map[string]bool{}, ids: map[string]*Compiled{}}
	for _, d := range docs {
		t.observe = t.observe && d.Mode == ModeObserve
	}
	for _, d := range docs {
		if err := c.add(d); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(t.rules, func(a, b *Compiled) int { // deny first
		switch {
		case a.Deny == b.Deny:
			return 0
		case a.Deny:
			return -1
		}
		return 1
	})
	t.allow, t.deny, t.narrow = newMatcher(), newMatcher(), newMatcher()
	for _, r := range t.rules {
		m := &t.allow
		if r.Deny {
			if m = &t.deny; r.aboutRequests() {
				m, t.narrows = &t.narrow, true
			}
		}
		c.index(m, r)
		t.paths = t.paths || len(r.Paths) > 0
	}
	for _, m := range []*matcher{&t.allow, &t.deny, &t.narrow} {
		m.seal()
	}
	if len(t.modules) == 0 {
		return t, nil
	}
	if o.Judge == nil {
		return nil, sandbox.Errorf("policy", sandbox.KindUnsupported, "%s:%d: there is nothing here that runs Rego", t.modules[0].File, t.modules[0].Line)
	}
	var err error
	t.judge, err = o.Judge(t.modules)
	return t, err
}

// compiler collects the rules of a table.
type compiler struct {
	table   *Table
	options Options
	seen    map[string]bool // included names
	ids     map[string]*Compiled
}

func (c *compiler) add(d *Document) error {
	c.table.demand = c.table.demand.Stronger(d.demand())
	for i := range d.Deny {
		if err := c.rule(d, &d.Deny[i], true); err != nil {
			return err
		}
	}
	for i := range d.Allow {
		if err := c.rule(d, &d.Allow[i], false); err != nil {
			return err
		}
	}
	if d.Rego != "" {
		c.table.modules = append(c.table.modules, Module{d.File, d.RegoLine, d.Rego})
	}
	for _, name := range d.Include {
		if c.seen[name] { // also the end of a circle
			continue
		}
		if c.seen[name] = true; len(c.seen) > maxIncludes {
			return sandbox.Errorf("policy", sandbox.KindTooLarge, "%s: more than %d policies are included", d.File, maxIncludes)
		}
		in, err := c.named(name)
		if err != nil {
			return err
		}
		if err := c.add(in); err != nil {
			return err
		}
	}
	return nil
}

// named finds a preset or one of the server's documents.
func (c *compiler) named(name string) (*Document, error) {
	d, err := Preset(name)
	if sandbox.KindOf(err) != sandbox.KindNotFound || c.options.Named == nil {
		return d, err
	}
	return c.options.Named(name)
}

func (c *compiler) rule(d *Document, r *Rule, deny bool) error {
	if len(c.table.rules) >= maxRules {
		return sandbox.Errorf("policy", sandbox.KindTooLarge, "more than %d rules", maxRules)
	}
	effect := "allow"
	if deny {
		effect = "deny"
	}
	prefix := ""
	if d.Name != "" {
		prefix = d.Name + "/"
	}
	out := &Compiled{Rule: *r, ID: prefix + r.ID, Deny: deny, File: d.File, Line: r.line}
	if r.ID == "" {
		out.ID = prefix + r.derivedID(effect)
		for base, n := out.ID, 2; c.ids[out.ID] != nil; n++ {
			out.ID = fmt.Sprintf("%s#%d", base, n)
		}
	}
	if was := c.ids[out.ID]; was != nil {
		return sandbox.Errorf("policy", sandbox.KindInvalid, "%s:%d: the id %s is that of the rule at %s:%d", d.File, r.line, out.ID, was.File, was.Line)
	}
	c.ids[out.ID] = out
	c.table.rules = append(c.table.rules, out)
	return nil
}

// index enters a rule under its names and networks.
func (c *compiler) index(m *matcher, r *Compiled) {
	for _, h := range r.Hosts {
		to := m.exact
		switch h.Stars {
		case 1:
			to = m.one
		case 2:
			to = m.many
		}
		to[h.Name] = append(to[h.Name], entry{rule: r})
	}
	for _, p := range r.Networks {
		e := entry{rule: r}
		if special(p) {
			e.private = slices.ContainsFunc(c.options.Private, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
		}
		e.own = p.IsSingleIP() && slices.Contains(c.options.Private, p)
		if special(p) && !e.private && !r.Deny {
			c.table.warnings = append(c.table.warnings, fmt.Sprintf("%s:%d: %s is not public (%s); the rule allows it only where the operator permits it",
				r.File, r.Line, p, netaddr.Classify(p.Addr())))
		}
		m.prefixes[p] = append(m.prefixes[p], e)
	}
}

// openable are the networks whose addresses an operator can permit.
var openable = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("2001:2::/48"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("3fff::/20"),
}

// special reports whether p names addresses that are not public, and nothing
// else.
func special(p netip.Prefix) bool {
	return slices.ContainsFunc(openable, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
}

// matcher finds rules of one effect.
type matcher struct {
	exact, one, many map[string][]entry
	prefixes         map[netip.Prefix][]entry
	nets             networks
	short, long      int // lengths of the names below which wildcards match
}

func newMatcher() matcher {
	return matcher{exact: map[string][]entry{}, one: map[string][]entry{}, many: map[string][]entry{}, prefixes: map[netip.Prefix][]entry{}}
}

func (m *matcher) seal() {
	m.nets = newNetworks(m.prefixes)
	m.short = netaddr.MaxName + 1
	for _, names := range []map[string][]entry{m.one, m.many} {
		for n := range names {
			m.short, m.long = min(m.short, len(n)), max(m.long, len(n))
		}
	}
}

// byName calls f with the rules for a name, the most specific first, until f
// returns true.
func (m *matcher) byName(name string, f func([]entry) bool) bool {
	if e := m.exact[name]; e != nil && f(e) {
		return true
	}
	if m.long == 0 {
		return false
	}
	first := true
	for i := range len(name) {
		if name[i] != '.' {
			continue
		}
		suffix := name[i+1:]
		if len(suffix) < m.short {
			break
		}
		one := first
		first = false
		if len(suffix) > m.long {
			continue
		}
		var e []entry
		if one {
			if e = m.one[suffix]; e != nil && !crosses(name, len(suffix)) && f(e) {
				return true
			}
		}
		if e = m.many[suffix]; e != nil && !crosses(name, len(suffix)) && f(e) {
			return true
		}
	}
	return false
}

// byAddr is byName for an address, which is Effective.
func (m *matcher) byAddr(a netip.Addr, f func([]entry) bool) bool {
	if len(m.nets.starts) == 0 {
		return false
	}
	for n := m.nets.find(a); n != nil; n = n.parent {
		if f(n.entries) {
			return true
		}
	}
	return false
}
