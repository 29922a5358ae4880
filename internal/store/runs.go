package store

import (
	"encoding/json"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// RunState is where a run is in its life. It only moves forward.
type RunState string

// The run states.
const (
	RunPending RunState = "pending" // accepted; no sandbox yet
	RunRunning RunState = "running"
	RunEnded   RunState = "ended"
)

// Run is the record of one run: create, execute to completion, destroy.
type Run struct {
	ID      sandbox.RunID    `json:"id"`
	Tenant  sandbox.TenantID `json:"tenant"` // set by the store
	Sandbox sandbox.ID       `json:"sandbox,omitempty"`
	State   RunState         `json:"state"`
	// Spec is the request as JSON, without values of secrets or environment
	// variables: whoever builds it leaves them out.
	Spec     json.RawMessage `json:"spec,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"` // the structured result the code reported
	ExitCode int             `json:"exit_code"`
	Reason   sandbox.Reason  `json:"reason,omitempty"`
	Detail   string          `json:"detail,omitempty"`
	// Timings are durations by phase: "create", "execute", "destroy".
	Timings   map[string]time.Duration `json:"timings,omitempty"`
	Artifacts []Artifact               `json:"artifacts,omitempty"`
	Kept      int64                    `json:"kept,omitempty"` // bytes it left on disk
	Principal string                   `json:"principal,omitempty"`
	Created   time.Time                `json:"created"`        // set by the store when zero
	Ended     time.Time                `json:"ended,omitzero"` // set by the store when zero at RunEnded
	// Extra is whatever else the owner of the record must not lose, as JSON.
	Extra json.RawMessage `json:"extra,omitempty"`

	Version int64 `json:"-"` // counts writes, from 1
}

// Artifact is one file a run left behind.
type Artifact struct {
	Path   string `json:"path"` // as declared, relative
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}
