package store

import (
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Policy is the record of a policy that is kept under a name. The store does not
// read its text.
type Policy struct {
	Tenant    sandbox.TenantID // set by the store
	Name      string
	Text      string
	Digest    string    // SHA-256 of Text, in hex; set by the store
	Version   int64     // how often it was set, from 1; set by the store
	Created   time.Time // set by the store, as Updated
	Updated   time.Time
	Principal string // who set it last
}

// Bounds on what is kept.
const (
	maxPolicyName = 64
	maxPolicyText = 256 << 10
	// MaxPolicies is how many policies one tenant may have.
	MaxPolicies = 200
)

// Digest conditions of SetPolicy, besides a digest.
const (
	AnyDigest = ""     // whatever is there
	NoDigest  = "none" // nothing may be there
)
