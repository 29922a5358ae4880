package store

import (
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Key is the record of one API key. The secret itself is never stored.
type Key struct {
	ID      string           // the public part of the key; unique over all tenants
	Tenant  sandbox.TenantID // set by the store
	Name    string
	Hash    [32]byte // SHA-256 of the secret
	Role    string   // internal/auth gives roles and scopes their meaning
	Scopes  []string // narrows the role; empty: all the role has
	Created time.Time
	// LastUsed is refreshed lazily and may be a minute behind.
	LastUsed time.Time
	Expires  time.Time // zero: never
	Revoked  time.Time // zero: not revoked
}
