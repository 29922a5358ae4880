package store

import (
	"sync"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// cacheEntries bounds the cache. Its worth is the decoding it saves.
const cacheEntries = 512

// tenantKey names one row of a table keyed (tenant, id).
type tenantKey struct {
	tenant sandbox.TenantID
	id     string
}

// cache holds decoded sandboxes as last committed. It is strictly coherent:
// from before a commit until after it the rows concerned are held, which means
// that they are absent and cannot be filled in, so every reader goes to the
// database; and a reader may fill in only what it read when no commit came
// between (gen).
type cache struct {
	mu   sync.Mutex
	max  int                   // guarded by mu; 0 when disabled
	rows map[tenantKey]Sandbox // guarded by mu; values are never changed
	held map[tenantKey]int     // guarded by mu
	gen  uint64                // guarded by mu; counts releases
}

func newCache(max int) *cache {
	return &cache{max: max, rows: map[tenantKey]Sandbox{}, held: map[tenantKey]int{}}
}

// get returns a copy of the row, or else the generation to hand to put.
func (c *cache) get(k tenantKey) (sb Sandbox, gen uint64, ok bool) {
	c.mu.Lock()
	sb, ok = c.rows[k]
	gen = c.gen
	c.mu.Unlock()
	if ok {
		sb = sb.clone()
	}
	return sb, gen, ok
}

// put fills in what was read after get returned gen. The caller gives sb away.
func (c *cache) put(k tenantKey, sb Sandbox, gen uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gen != gen || c.held[k] > 0 || c.max == 0 {
		return
	}
	for len(c.rows) >= c.max { // any victim will do
		for victim := range c.rows {
			delete(c.rows, victim)
			break
		}
	}
	c.rows[k] = sb
}

func (c *cache) hold(ks []tenantKey) {
	if len(ks) == 0 {
		return
	}
	c.mu.Lock()
	for _, k := range ks {
		delete(c.rows, k)
		c.held[k]++
	}
	c.mu.Unlock()
}

func (c *cache) release(ks []tenantKey) {
	if len(ks) == 0 {
		return
	}
	c.mu.Lock()
	for _, k := range ks {
		if c.held[k]--; c.held[k] == 0 {
			delete(c.held, k)
		}
	}
	c.gen++
	c.mu.Unlock()
}

// disable empties the cache for good.
func (c *cache) disable() {
	c.mu.Lock()
	c.max, c.rows = 0, map[tenantKey]Sandbox{}
	c.mu.Unlock()
}
