package store

import (
	"encoding/json"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Secret is the record of a secret, never its bytes: Sealed is what the broker
// encrypted, Reference is where the bytes are. One of the two is empty.
type Secret struct {
	Tenant    sandbox.TenantID // set by the store
	Name      string
	Sealed    string
	Reference string
	Version   int64     // how often it was set, from 1; set by the store
	Created   time.Time // set by the store, as Updated
	Updated   time.Time
	Principal string // who set it last
}

// Binding is the record of a binding. The store does not read its body, which is
// JSON, and holds it to a secret that is there.
type Binding struct {
	Tenant    sandbox.TenantID // set by the store
	Name      string
	Secret    string // the name of one of the tenant's secrets
	Body      json.RawMessage
	Version   int64     // how often it was set, from 1; set by the store
	Created   time.Time // set by the store, as Updated
	Updated   time.Time
	Principal string // who set it last
}

// Bounds on what is kept.
const (
	maxSecretName  = 64
	maxSealed      = 96 << 10 // of a secret of 64 KiB, in text
	maxReference   = 4200
	maxBindingName = 63
	maxBinding     = 16 << 10
	// MaxSecrets is how many secrets one tenant may have, and MaxBindings how many
	// bindings.
	MaxSecrets  = 200
	MaxBindings = 200
)
