package policy

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// BudgetError says which budget of a rule is used up.
type BudgetError struct {
	Rule   string
	Budget string // "upload", "download", "connections", "concurrent", "rate", "names"
	Limit  int64
}

// Error implements error.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("the %s budget of the rule %q (%d) is used up", e.Budget, e.Rule, e.Limit)
}

// Accountant keeps what one sandbox has used of the budgets of its rules. It
// lives as long as the sandbox, over updates of its policy: a rule is known by
// its id, and its use is counted even while it has no budget. All methods may be
// called at once.
type Accountant struct {
	mu    sync.Mutex
	rules map[string]*use // guarded by mu; never more than the rules there were
}

// use is what was used of one rule.
type use struct {
	mu          sync.Mutex
	upload      int64                 // guarded by mu
	download    int64                 // guarded by mu
	connections int64                 // guarded by mu
	concurrent  int64                 // guarded by mu
	tokens      float64               // guarded by mu; connections that may begin now
	filled      time.Time             // guarded by mu; when tokens was right
	rate        int64                 // guarded by mu; what tokens is a share of; -1 after Restore
	names       map[netaddr.Host]bool // guarded by mu; at most Budget.Names
	before      int64                 // guarded by mu; names from before Restore, which nobody knows any more
}

// Restore makes an accountant that goes on from what another had counted, by the
// ids of rules. It errs on the side of the budget: which names were asked for is
// not known, so that each is charged again, and all connections count as if they
// had begun just now where a rule has a rate.
func Restore(used map[string]Used) *Accountant {
	a := &Accountant{rules: make(map[string]*use, len(used))}
	for id, u := range used {
		a.rules[id] = &use{upload: u.Upload, download: u.Download, connections: u.Connections, before: u.Names}
		if u.Connections > 0 {
			a.rules[id].rate = -1
		}
	}
	return a
}

func (a *Accountant) of(r *Compiled) *use {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rules == nil {
		a.rules = map[string]*use{}
	}
	u := a.rules[r.ID]
	if u == nil {
		u = &use{}
		a.rules[r.ID] = u
	}
	return u
}

// Name charges a name that a rule with a wildcard matched, before anything about
// it is answered or asked. A name that was charged before is free. Errors:
// *BudgetError.
func (a *Accountant) Name(r *Compiled, h netaddr.Host) error {
	if r.Budget.Names == 0 {
		return nil
	}
	for _, p := range r.Hosts {
		if p.Stars == 0 && p.Name == h.Name() { // the rule says it itself
			return nil
		}
	}
	u := a.of(r)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.names[h] {
		return nil
	}
	if int64(len(u.names)) >= r.Budget.Names-u.before {
		return &BudgetError{r.ID, "names", r.Budget.Names}
	}
	if u.names == nil {
		u.names = map[netaddr.Host]bool{}
	}
	u.names[h] = true
	return nil
}

// Meter charges one connection. Its methods may be called at once.
type Meter struct {
	account *Accountant
	rule    *Compiled
	use     *use

	mu     sync.Mutex
	closed bool                     // guarded by mu
	others atomic.Pointer[[]*Meter] // written with mu; see Permit
}

// Connect charges a connection that is about to be made, whether it succeeds or
// not. Close the Meter when it is over. Errors: *BudgetError, and nothing is
// charged.
func (a *Accountant) Connect(r *Compiled) (*Meter, error) {
	u := a.of(r)
	b := &r.Budget
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case b.Connections > 0 && u.connections >= b.Connections:
		return nil, &BudgetError{r.ID, "connections", b.Connections}
	case b.Concurrent > 0 && u.concurrent >= b.Concurrent:
		return nil, &BudgetError{r.ID, "concurrent", b.Concurrent}
	case b.Upload > 0 && u.upload >= b.Upload:
		return nil, &BudgetError{r.ID, "upload", b.Upload}
	case b.Download > 0 && u.download >= b.Download:
		return nil, &BudgetError{r.ID, "download", b.Download}
	case b.Rate > 0 && !u.take(b, time.Now()):
		return nil, &BudgetError{r.ID, "rate", b.Rate}
	}
	u.connections++
	u.concurrent++
	return &Meter{account: a, rule: r, use: u}, nil
}

// Permit charges the connection to another rule as well, by which a request on it
// passes: it is one of that rule's connections from now on, and what moves on it is
// charged to both. A rule that is charged already is not again. Errors:
// *BudgetError, and nothing is charged; net.ErrClosed after Close.
func (m *Meter) Permit(r *Compiled) error {
	if r.ID == m.rule.ID {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var others []*Meter
	if was := m.others.Load(); was != nil {
		others = *was
	}
	if m.closed {
		return net.ErrClosed
	}
	if slices.ContainsFunc(others, func(o *Meter) bool { return o.rule.ID == r.ID }) {
		return nil
	}
	other, err := m.account.Connect(r)
	if err != nil {
		return err
	}
	others = append(slices.Clone(others), other)
	m.others.Store(&others)
	return nil
}

// take takes one token of the bucket, which holds Rate and fills in Per.
func (u *use) take(b *Budget, now time.Time) bool {
	full := float64(b.Rate)
	if u.rate == 0 {
		u.tokens = full
	} else if u.rate < 0 { // restored, and not known when they began
		u.tokens = max(full-float64(u.connections), 0)
	} else if d := now.Sub(u.filled); d > 0 {
		u.tokens += full * d.Seconds() / b.Per.Seconds()
	}
	u.tokens, u.filled, u.rate = min(u.tokens, full), now, b.Rate
	if u.tokens < 1 {
		return false
	}
	u.tokens--
	return true
}

// Upload charges n bytes that are about to leave the sandbox. Errors:
// *BudgetError: none of them may.
func (m *Meter) Upload(n int) error {
	if others := m.others.Load(); others != nil {
		for _, o := range *others {
			if err := o.Upload(n); err != nil {
				return err
			}
		}
	}
	return m.charge(&m.use.upload, m.rule.Budget.Upload, n, "upload")
}

// Download charges n bytes that are about to enter the sandbox. Errors:
// *BudgetError: none of them may.
func (m *Meter) Download(n int) error {
	if others := m.others.Load(); others != nil {
		for _, o := range *others {
			if err := o.Download(n); err != nil {
				return err
			}
		}
	}
	return m.charge(&m.use.download, m.rule.Budget.Download, n, "download")
}

func (m *Meter) charge(used *int64, limit int64, n int, what string) error {
	m.use.mu.Lock()
	defer m.use.mu.Unlock()
	if limit > 0 && int64(n) > limit-*used {
		return &BudgetError{m.rule.ID, what, limit}
	}
	*used += int64(n)
	return nil
}

// Close says that the connection is over. Again: nothing.
func (m *Meter) Close() {
	m.mu.Lock()
	was := m.closed
	m.closed = true
	others := m.others.Load()
	m.mu.Unlock()
	if was {
		return
	}
	if others != nil {
		for _, o := range *others {
			o.Close()
		}
	}
	m.use.mu.Lock()
	defer m.use.mu.Unlock()
	m.use.concurrent--
}

// Used is what a sandbox has used of a rule.
type Used struct {
	Upload      int64 `json:"upload"`
	Download    int64 `json:"download"`
	Connections int64 `json:"connections"`
	Concurrent  int64 `json:"concurrent"`
	Names       int64 `json:"names"`
}

func (u *use) used() Used {
	u.mu.Lock()
	defer u.mu.Unlock()
	return Used{u.upload, u.download, u.connections, u.concurrent, int64(len(u.names)) + u.before}
}

// Used returns what was used of a rule until now.
func (a *Accountant) Used(r *Compiled) Used { return a.of(r).used() }

// All returns what was used until now of each rule of which something was, by
// its id.
func (a *Accountant) All() map[string]Used {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make(map[string]Used, len(a.rules))
	for id, u := range a.rules {
		all[id] = u.used()
	}
	return all
}
