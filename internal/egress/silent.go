//go:build linux

package egress

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress/inspect"
)

// silence is how soon a program goes away that does not like what it sees: one that
// compares a certificate, or its key, with what it knows does that after the
// handshake. One that only keeps a connection ready holds it longer.
const silence = 5 * time.Second

// hearing is an Asker that knows whether it was asked at all.
type hearing struct {
	inspect.Asker
	any atomic.Bool
}

// Decide implements inspect.Asker.
func (a *hearing) Decide(ctx context.Context, method, path string) *inspect.Refusal {
	a.any.Store(true)
	return a.Asker.Decide(ctx, method, path)
}

// Refused implements inspect.Asker.
func (a *hearing) Refused(method string, no *inspect.Refusal) {
	a.any.Store(true)
	a.Asker.Refused(method, no)
}

// silent reports whether nothing was asked on a connection that was soon over.
func (a *hearing) silent(begun time.Time) bool { return !a.any.Load() && time.Since(begun) < silence }
