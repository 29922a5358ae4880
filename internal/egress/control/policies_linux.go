package control

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/policy/rego"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Policies are the documents of one wire as they are written.
type Policies struct {
	Documents [][]byte `json:"documents"`
	// Included are those that others include and that are no presets, by name.
	Included map[string][]byte `json:"included,omitempty"`
}

const (
	maxPolicies = 2 << 20 // bytes of all documents of one wire
	maxRuleID   = 4 << 10
	maxRuleIDs  = 1 << 20 // bytes of all of one table
)

// compiler compiles policies, the same ones once: sandboxes by the hundred share
// theirs, and are given to a new router all together.
type compiler struct {
	options policy.Options

	mu     sync.Mutex
	tables map[[sha256.Size]byte]*policy.Table // guarded by mu; at most maxTables
}

const maxTables = 64

func newCompiler(private []netip.Prefix, m *netaddr.Machine) *compiler {
	return &compiler{
		options: policy.Options{Private: private, Own: m.Own, Judge: rego.Options{}.Judge},
		tables:  map[[sha256.Size]byte]*policy.Table{},
	}
}

// compile is what the policies say. Errors: those of policy.Compile.
func (c *compiler) compile(p Policies) (*policy.Table, error) {
	key, size := p.digest()
	if size > maxPolicies {
		return nil, sandbox.Errorf("policy", sandbox.KindTooLarge, "the policies of one sandbox have at most %d KiB", maxPolicies>>10)
	}
	c.mu.Lock()
	t := c.tables[key]
	c.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t, err := c.table(p)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tables) >= maxTables {
		clear(c.tables)
	}
	c.tables[key] = t
	return t, nil
}

func (c *compiler) table(p Policies) (*policy.Table, error) {
	var docs []*policy.Document
	for i, text := range p.Documents {
		name := "policy"
		if len(p.Documents) > 1 {
			name = fmt.Sprintf("policy %d", i+1)
		}
		d, err := policy.Parse(name, text)
		if err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	o := c.options
	o.Named = func(name string) (*policy.Document, error) {
		text, ok := p.Included[name]
		if !ok {
			return nil, sandbox.Errorf("policy", sandbox.KindNotFound, "there is no policy %q", name)
		}
		return policy.Parse(name, text)
	}
	t, err := policy.Compile(o, docs...)
	if err != nil {
		return nil, err
	}
	total := 0
	for _, r := range t.Rules() {
		total += len(r.ID)
		if len(r.ID) > maxRuleID || total > maxRuleIDs {
			return nil, sandbox.Errorf("policy", sandbox.KindTooLarge, "%s:%d: the ids of rules are too long", r.File, r.Line).
				WithHint("give the rule an `id` of its own")
		}
	}
	return t, nil
}

// digest identifies policies; size is how long they are.
func (p Policies) digest() (key [sha256.Size]byte, size int) {
	h := sha256.New()
	add := func(b []byte) {
		fmt.Fprintf(h, "%d:", len(b))
		h.Write(b)
		size += len(b)
	}
	for _, d := range p.Documents {
		add(d)
	}
	h.Write([]byte{'/'})
	for _, name := range slices.Sorted(maps.Keys(p.Included)) {
		add([]byte(name))
		add(p.Included[name])
	}
	return [sha256.Size]byte(h.Sum(nil)), size
}

// clone is a copy that the caller of Attach cannot change any more.
func (p Policies) clone() Policies {
	c := Policies{Included: maps.Clone(p.Included)}
	for name, text := range c.Included {
		c.Included[name] = slices.Clone(text)
	}
	for _, d := range p.Documents {
		c.Documents = append(c.Documents, slices.Clone(d))
	}
	return c
}
