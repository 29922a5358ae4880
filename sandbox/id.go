package sandbox

import (
	"crypto/rand"
	"regexp"
)

// ID names a sandbox as callers hold it. It matches ^sb[a-z0-9]{18,}$ and is
// unguessable: 90 random bits. An ID outlives what runs behind it: a resumed
// or forked sandbox is another Instance.
type ID string

// InstanceID names one incarnation of a sandbox on a host. Every host object
// (process, cgroup, directory, link) carries it, which is how orphans are
// recognised. It matches ^in[a-z0-9]{18,}$.
type InstanceID string

// RunID names a run: create, execute to completion, destroy. It matches
// ^rn[a-z0-9]{18,}$.
type RunID string

// SnapshotID names a saved sandbox. It matches ^sn[a-z0-9]{18,}$.
type SnapshotID string

// TenantID names an organisation. Everything durable belongs to exactly one.
type TenantID string

// DefaultTenant owns everything on an installation that has one tenant.
const DefaultTenant TenantID = "default"

const (
	idAlphabet = "abcdefghijklmnopqrstuvwxyz234567"
	idRandom   = 18 // characters of 5 bits each
)

func newID(prefix string) string {
	var b [idRandom]byte
	rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	for i := range b {
		b[i] = idAlphabet[b[i]&31]
	}
	return prefix + string(b[:])
}

// NewID returns a fresh random sandbox id.
func NewID() ID { return ID(newID("sb")) }

// NewInstanceID returns a fresh random instance id.
func NewInstanceID() InstanceID { return InstanceID(newID("in")) }

// NewRunID returns a fresh random run id.
func NewRunID() RunID { return RunID(newID("rn")) }

// NewSnapshotID returns a fresh random snapshot id.
func NewSnapshotID() SnapshotID { return SnapshotID(newID("sn")) }

var (
	reID       = regexp.MustCompile(`^sb[a-z0-9]{18,62}$`)
	reInstance = regexp.MustCompile(`^in[a-z0-9]{18,62}$`)
	reSnapshot = regexp.MustCompile(`^sn[a-z0-9]{18,62}$`)
	reRun      = regexp.MustCompile(`^rn[a-z0-9]{18,62}$`)
	reTenant   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
)

// Valid reports whether id is well formed. Ids reach file names and cgroup
// paths, so anything that came from outside is checked before use.
func (id ID) Valid() bool { return reID.MatchString(string(id)) }

// Valid reports whether id is well formed.
func (id InstanceID) Valid() bool { return reInstance.MatchString(string(id)) }

// Valid reports whether id is well formed.
func (id RunID) Valid() bool { return reRun.MatchString(string(id)) }

// Valid reports whether id is well formed.
func (id SnapshotID) Valid() bool { return reSnapshot.MatchString(string(id)) }

// Valid reports whether id is well formed: a lower-case letter, then up to 62
// letters, digits or dashes.
func (id TenantID) Valid() bool { return reTenant.MatchString(string(id)) }
