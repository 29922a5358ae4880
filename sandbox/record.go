package sandbox

import (
	"context"
	"time"
)

// Recorder writes evidence. It is not a logger: what is recorded is proof, is
// durable, and carries no secret and no file content.
type Recorder interface {
	// Record appends r and returns its position. A Gate record is on stable
	// storage when Record returns; a Flow record may lag by a bounded amount.
	//
	// An error means that nothing was promised: the caller must not do what it
	// wanted to record. ctx bounds the wait, not the write: when it ends first,
	// the record may still be written.
	Record(ctx context.Context, r Record) (Position, error)
}

// Position is a record's place in the log, from 1.
type Position uint64

// Class says when a record must be durable.
type Class uint8

const (
	// Gate records precede the act they describe: mutations, execs, a
	// binding's first use, kills, teardowns.
	Gate Class = iota
	// Flow records may lag by a bounded amount: each allowed request, each
	// file read.
	Flow
)

// Outcome is how the recorded action ended.
type Outcome string

// The outcomes.
const (
	OutcomeAllowed Outcome = "allowed" // about to be done
	OutcomeDenied  Outcome = "denied"
	OutcomeDone    Outcome = "done"
	OutcomeFailed  Outcome = "failed"
)

// Record is one entry of the audit log.
type Record struct {
	Class     Class
	Time      time.Time // set by the recorder when zero
	Tenant    TenantID
	Sandbox   ID
	Instance  InstanceID
	Principal string // who: a key id, "uid:1000", "system"
	Action    string // what: "sandbox.create", "process.exec", "file.write", …
	Outcome   Outcome
	Reason    Reason // for kills and ends
	Policy    uint64 // generation of the policy that decided; 0 where none did
	// Object is what was acted on: a path, a host and port, a key id.
	Object string
	// Digest is the SHA-256 of content that is itself left out, in hex.
	Digest string
	// Detail holds a few more facts, values up to 1 KiB each.
	Detail map[string]string
}
