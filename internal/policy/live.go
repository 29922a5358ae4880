package policy

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// ErrStale says that the policy has changed since a flow was decided about.
var ErrStale = errors.New("the policy has changed since")

// Live is a sandbox's policy as it is now, and the connections it allowed. An
// update ends those: whoever wants one asks again, under the new policy. All
// methods may be called at once.
type Live struct {
	table atomic.Pointer[Table]

	mu     sync.Mutex
	relays map[*relay]struct{} // guarded by mu; all of the table's generation
}

type relay struct{ conn io.Closer }

// NewLive begins with t as generation 1.
func NewLive(t *Table) *Live {
	l := &Live{relays: map[*relay]struct{}{}}
	l.table.Store(t.generationOf(1))
	return l
}

// generationOf is a copy of t of generation n.
func (t *Table) generationOf(n uint64) *Table {
	c := *t
	c.generation = n
	return &c
}

// Table is the table now.
func (l *Live) Table() *Table { return l.table.Load() }

// Admit notes a connection that a table of generation allowed, to be closed when
// the policy changes. Call release when it is over. Errors: ErrStale, when that
// has happened already; conn is the caller's to close then.
func (l *Live) Admit(generation uint64, conn io.Closer) (release func(), err error) {
	r := &relay{conn}
	l.mu.Lock()
	defer l.mu.Unlock()
	if generation != l.Table().generation {
		return nil, ErrStale
	}
	l.relays[r] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.relays, r)
	}, nil
}

// Update makes t the table and closes all connections of the one before. When it
// returns, nothing is admitted any more by an older table, and each connection
// it had admitted was closed. It returns the new generation and how many those
// were.
func (l *Live) Update(t *Table) (generation uint64, closed int) {
	l.mu.Lock()
	generation = l.Table().generation + 1
	l.table.Store(t.generationOf(generation))
	old := l.relays
	l.relays = map[*relay]struct{}{}
	l.mu.Unlock()
	for r := range old {
		r.conn.Close() // its end is seen, and reported, by whoever reads it
	}
	return generation, len(old)
}
