package store

import (
	"encoding/json"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// State is where a sandbox is in its life. A sandbox only moves forward in the
// order of the constants, but that a paused one may run again; it may skip states
// and never leaves Ended.
type State string

// The states.
const (
	Creating State = "creating" // intent recorded; the boundary may not exist yet
	Running  State = "running"
	Paused   State = "paused"   // saved to disk; there is no boundary
	Stopping State = "stopping" // its end was decided; see Reason
	Ended    State = "ended"    // nothing of it is left on the host; the record remains
)

// Sandbox is the record of one sandbox, alive or dead. It is a value: methods
// return copies that the caller owns.
type Sandbox struct {
	ID       sandbox.ID         `json:"id"`
	Tenant   sandbox.TenantID   `json:"tenant"`   // set by the store
	Instance sandbox.InstanceID `json:"instance"` // current incarnation; empty before the first
	Name     string             `json:"name,omitempty"`
	State    State              `json:"state"`
	// Reason and Detail say why the sandbox ended or, while Stopping, why it
	// is being ended.
	Reason sandbox.Reason `json:"reason,omitempty"`
	Detail string         `json:"detail,omitempty"`
	// Exit is what the backend reported about the end; nil until it did.
	Exit *sandbox.Exit `json:"exit,omitempty"`

	Backend        string            `json:"backend,omitempty"`
	Isolation      sandbox.Isolation `json:"isolation"`
	Template       string            `json:"template,omitempty"`
	TemplateDigest string            `json:"template_digest,omitempty"`
	Tier           string            `json:"tier,omitempty"`
	Metadata       map[string]string `json:"metadata,omitempty"`

	Limits       sandbox.Limits   `json:"limits"`   // requested, defaults filled in
	Explicit     sandbox.LimitSet `json:"explicit"` // those a person asked for
	Enforced     sandbox.LimitSet `json:"enforced"` // those in force
	AcceptWeaker bool             `json:"accept_weaker,omitempty"`
	ReadonlyRoot bool             `json:"readonly_root,omitempty"`

	IdleTimeout time.Duration `json:"idle_timeout,omitempty"` // zero: none
	MaxLife     time.Duration `json:"max_life,omitempty"`     // zero: none
	ExpiresAt   time.Time     `json:"expires_at,omitzero"`    // zero: never

	Principal string    `json:"principal,omitempty"` // who asked for it
	Created   time.Time `json:"created"`             // set by the store when zero
	Started   time.Time `json:"started,omitzero"`    // when it became Running
	Ended     time.Time `json:"ended,omitzero"`      // when it became Ended; set by the store when zero
	// Usage is what it had consumed at the end; zero before.
	Usage sandbox.Usage `json:"usage,omitzero"`
	// Kept is how many bytes of events it left on disk.
	Kept int64 `json:"kept,omitempty"`
	// Receipt proves the teardown; nil before the end.
	Receipt *sandbox.Receipt `json:"receipt,omitempty"`
	// Extra is whatever else the owner of the record must not lose, as JSON.
	// The store never reads it.
	Extra json.RawMessage `json:"extra,omitempty"`

	// Version counts writes, from 1. UpdateSandbox refuses a record whose
	// Version is not the stored one.
	Version int64 `json:"-"`
}

// Live reports whether the sandbox has not ended.
func (sb *Sandbox) Live() bool { return sb.State != Ended }

// Quota bounds a create. Zero fields bound nothing. It is checked in the
// transaction that inserts, so concurrent creates cannot exceed it together.
type Quota struct {
	Tenant int // live sandboxes of the tenant, the new one included
	Host   int // live sandboxes of all tenants, the new one included
}

// Filter selects sandboxes. Zero fields select everything; set fields are
// combined by "and".
type Filter struct {
	States   []State           // any of
	Metadata map[string]string // all of, exact
	Name     string
}

// Page asks for one page of a list, newest first.
type Page struct {
	Size  int    // default 50, at most MaxPageSize (a larger one is lowered)
	Token string // from the previous page; opaque, and valid only with the same filter
}

// Page sizes.
const (
	DefaultPageSize = 50
	MaxPageSize     = 500
)
