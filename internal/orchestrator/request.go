package orchestrator

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Caller is on whose behalf something is done.
type Caller struct {
	Tenant    sandbox.TenantID
	Principal string // as audit records name it
}

// system is the daemon itself, acting on one of tenant's sandboxes.
func system(tenant sandbox.TenantID) Caller { return Caller{Tenant: tenant, Principal: "system"} }

// IdleAction is what happens to a sandbox that nobody has used for its idle
// timeout.
type IdleAction string

// The actions. The zero value is IdleDestroy.
const (
	IdleDestroy IdleAction = "destroy"
	IdleEvent   IdleAction = "event" // it lives on, and its events say that it is idle, once each time
	IdlePause   IdleAction = "pause" // it is paused, until somebody wants something of it
)

// CreateRequest says what to make. The zero value takes every default.
type CreateRequest struct {
	ID       sandbox.ID // generated if empty
	Name     string     // unique among the tenant's live sandboxes
	Template string     // name or digest
	// From is a snapshot, by id or name, that it goes on from. What that says is
	// left out here, or the same.
	From    string
	Backend string // "auto": the strongest that works here
	// MinIsolation refuses anything weaker, as Demand does, which is what its policies
	// demand.
	MinIsolation sandbox.Isolation
	Demand       policy.Demand
	// Limits that are not zero were asked for, and are refused where they
	// cannot be enforced; zero ones get the default.
	Limits       sandbox.Limits
	IdleTimeout  *time.Duration // nil: the default; 0: none
	IdleAction   IdleAction     // what happens after that; needs one
	Timeout      *time.Duration // maximum life; nil: the default; 0: none
	ExpireAction ExpireAction   // what happens after that
	Wake         Wake           // what makes it go on when it is paused
	Env          map[string]string
	Metadata     map[string]string
	Tier         string
	ReadonlyRoot bool
	AcceptWeaker bool
	Pack         string // what runs code when an exec names none
	Hostname     string
	// Network is where it may connect; nil: it has no network device.
	Network *NetworkPolicy
	// Bindings are what its requests may be made through, by name. With any it has
	// a network device, which lets pass nothing else unless Network says so.
	Bindings []string

	run          sandbox.RunID     // the run it belongs to
	fork         *fork             // what it goes on from, in place of From
	admitted     *admission        // with it; nil: not yet
	reserved     *reservation      // by Reserve; nil: nothing
	placeholders map[string]string // of Bindings
	parent       *NetworkState     // of the sandbox whose programs go on in it
	inherited    map[string]string // its environment
}

// explicit is the set of limits that were asked for.
func (r *CreateRequest) explicit() (s sandbox.LimitSet) {
	for set, given := range map[sandbox.LimitSet]bool{
		sandbox.LimitMemory: r.Limits.Memory != 0, sandbox.LimitCPU: r.Limits.CPUs != 0,
		sandbox.LimitPIDs: r.Limits.PIDs != 0, sandbox.LimitDisk: r.Limits.Disk != 0,
	} {
		if given {
			s |= set
		}
	}
	return s
}

// Sandbox is a sandbox's record and what this package keeps beside it.
type Sandbox struct {
	store.Sandbox
	Details Details
}

// Details is what the store keeps for this package without reading it.
type Details struct {
	Pack  string   `json:"pack,omitempty"`  // what runs code when an exec names none
	Packs []string `json:"packs,omitempty"` // all the template has
	// Env is every process's environment. It is forgotten at the end: callers
	// put secrets there, whatever they are told.
	Env      map[string]string `json:"env,omitempty"`
	Hostname string            `json:"hostname,omitempty"`
	WorkDir  string            `json:"work_dir,omitempty"` // where commands start; the home if empty
	Notes    []string          `json:"notes,omitempty"`
	Boot     time.Duration     `json:"boot,omitempty"` // how long create took
	Run      sandbox.RunID     `json:"run,omitempty"`
	// First and Last are the audit records about it.
	First sandbox.Position `json:"first,omitempty"`
	Last  sandbox.Position `json:"last,omitempty"`
	// Series is what it used over its life, packed; set at the end.
	Series []byte `json:"series,omitempty"`
	// IdleAction is what happens when it has been idle for its idle timeout.
	IdleAction IdleAction `json:"idle_action,omitempty"`
	// ExpireAction is what happens when its time is over, Wake what ends a pause.
	ExpireAction ExpireAction `json:"expire_action,omitempty"`
	Wake         Wake         `json:"wake,omitempty"`
	// Life is what it was last given to live, from then on; 0: see MaxLife.
	Life time.Duration `json:"life,omitempty"`
	// Network is its policy; nil: it has no network device.
	Network *NetworkState `json:"network,omitempty"`
	// Demand is the strongest boundary that was demanded of it, and who did. What is made
	// of it is held to it, too.
	Demand policy.Demand `json:"demand,omitzero"`
	// From is the snapshot it was made of.
	From string `json:"from,omitempty"`
	// Parent is the sandbox it was forked from.
	Parent sandbox.ID `json:"parent,omitempty"`
	// Pause is set while it is paused.
	Pause *PauseState `json:"pause,omitempty"`
	// Spent is what its instances used until it was paused last.
	Spent sandbox.Usage `json:"spent,omitzero"`
	// Flows is what it wanted to reach.
	Flows FlowReport `json:"egress,omitzero"`
}

// clone keeps what is handed out apart from what is kept.
func (s Sandbox) clone() Sandbox {
	s.Metadata = maps.Clone(s.Metadata)
	s.Extra = nil
	s.Details.Env = nil
	s.Details.Notes = slices.Clone(s.Details.Notes)
	s.Details.Packs = slices.Clone(s.Details.Packs)
	s.Details.Flows.Flows = slices.Clone(s.Details.Flows.Flows)
	return s
}

// Bindings are the names of what the sandbox's requests may be made through.
func (s Sandbox) Bindings() []string {
	if s.Details.Network == nil {
		return nil
	}
	return slices.Clone(s.Details.Network.Bindings)
}

// unpack decodes a stored record. Extra that does not decode was written by
// another version: what it said is missing, which is no reason to refuse.
func unpack(rec store.Sandbox) Sandbox {
	sb := Sandbox{Sandbox: rec}
	if len(rec.Extra) > 0 {
		if err := json.Unmarshal(rec.Extra, &sb.Details); err != nil {
			sb.Details = Details{Notes: []string{"details of this record cannot be read: " + err.Error()}}
		}
	}
	return sb
}

func (d Details) pack() json.RawMessage {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return b
}
