package store

import (
	"context"
	"log/slog"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Store owns the database. It is safe for concurrent use.
type Store struct{}

// Open opens or creates the database at path and migrates its schema. The
// caller holds Lock on the directory. Errors: KindUnavailable when another
// process holds the database; KindUnsupported when a newer Firebreak wrote it.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	return nil, errSkeleton
}

// Close waits for writes under way, flushes and closes. It is idempotent.
func (s *Store) Close() error { return errSkeleton }

// Tenant returns the handle of one tenant. Cost: none.
func (s *Store) Tenant(id sandbox.TenantID) *Tenant { return &Tenant{} }

// System returns the handle of the daemon itself, over all tenants. It must
// not reach code that serves a caller.
func (s *Store) System() *System { return &System{} }

// Tenant reaches the rows of one tenant and no others.
type Tenant struct{}

// ID is the tenant's.
func (t *Tenant) ID() sandbox.TenantID { return "" }

// CreateSandbox inserts sb durably, in state Creating unless set.
func (t *Tenant) CreateSandbox(ctx context.Context, sb Sandbox, q Quota) (Sandbox, error) {
	return Sandbox{}, errSkeleton
}

// Sandbox returns one sandbox, dead ones included. KindNotFound.
func (t *Tenant) Sandbox(ctx context.Context, id sandbox.ID) (Sandbox, error) {
	return Sandbox{}, errSkeleton
}

// SandboxByName returns the live sandbox of that name.
func (t *Tenant) SandboxByName(ctx context.Context, name string) (Sandbox, error) {
	return Sandbox{}, errSkeleton
}

// ListSandboxes returns one page, newest first, and the token of the next
// page, empty on the last.
func (t *Tenant) ListSandboxes(ctx context.Context, f Filter, p Page) ([]Sandbox, string, error) {
	return nil, "", errSkeleton
}

// CountSandboxes counts those in any of states, or all without states.
func (t *Tenant) CountSandboxes(ctx context.Context, states ...State) (int, error) {
	return 0, errSkeleton
}

// UpdateSandbox writes sb if its Version is still the stored one, else
// KindConflict.
func (t *Tenant) UpdateSandbox(ctx context.Context, sb Sandbox) (Sandbox, error) {
	return Sandbox{}, errSkeleton
}

// EditSandbox applies edit to the current record and writes it, in one
// transaction. edit must be quick and must not call the store; its error is
// returned and nothing is written.
func (t *Tenant) EditSandbox(ctx context.Context, id sandbox.ID, edit func(*Sandbox) error) (Sandbox, error) {
	return Sandbox{}, errSkeleton
}

// CreateRun inserts r durably.
func (t *Tenant) CreateRun(ctx context.Context, r Run) (Run, error) { return Run{}, errSkeleton }

// Run returns one run.
func (t *Tenant) Run(ctx context.Context, id sandbox.RunID) (Run, error) { return Run{}, errSkeleton }

// EditRun applies edit to the current record and writes it.
func (t *Tenant) EditRun(ctx context.Context, id sandbox.RunID, edit func(*Run) error) (Run, error) {
	return Run{}, errSkeleton
}

// ListRuns returns one page, newest first.
func (t *Tenant) ListRuns(ctx context.Context, p Page) ([]Run, string, error) {
	return nil, "", errSkeleton
}

// Reserve claims an idempotency key; see Reservation.
func (t *Tenant) Reserve(ctx context.Context, req Request) (*Reservation, error) {
	return nil, errSkeleton
}

// Request describes an idempotent operation about to be done.
type Request struct {
	Key    string        // the caller's Idempotency-Key
	Hash   [32]byte      // of the request's canonical form
	Result string        // id of what the operation will make
	TTL    time.Duration // how long the result is remembered; default 24 h
}

// Reservation is the outcome of Reserve.
//
//	res, err := t.Reserve(ctx, store.Request{Key: key, Hash: hash, Result: string(id)})
//	if err != nil { … }                  // KindConflict: another body, or still in progress
//	if res.Done() { return res.Result() } // somebody did it before: answer with that
//	defer res.Release(ctx)               // forgotten unless completed
//	if prev := res.Abandoned(); prev != "" { … } // a dead process had begun making prev
//	…
//	err = res.Complete(ctx)
type Reservation struct{}

// Done reports whether the operation had been completed before.
func (r *Reservation) Done() bool { return false }

// Result is the id of what was made, or will be by the holder.
func (r *Reservation) Result() string { return "" }

// Abandoned is the id a process that died was making under this key, or empty.
func (r *Reservation) Abandoned() string { return "" }

// Complete records that the operation succeeded; Release is then a no-op.
func (r *Reservation) Complete(ctx context.Context) error { return errSkeleton }

// Release gives the key back after a failure, unless Complete succeeded. It
// works even when ctx has ended.
func (r *Reservation) Release(ctx context.Context) error { return errSkeleton }

// CreateKey inserts k durably.
func (t *Tenant) CreateKey(ctx context.Context, k Key) (Key, error) { return Key{}, errSkeleton }

// Key returns one key.
func (t *Tenant) Key(ctx context.Context, id string) (Key, error) { return Key{}, errSkeleton }

// ListKeys returns all keys, revoked ones included, oldest first.
func (t *Tenant) ListKeys(ctx context.Context) ([]Key, error) { return nil, errSkeleton }

// RevokeKey sets Revoked durably; again: no change. Use
// auth.Authenticator.Revoke, which also empties the cache.
func (t *Tenant) RevokeKey(ctx context.Context, id string) (Key, error) { return Key{}, errSkeleton }

// TouchKey sets LastUsed.
func (t *Tenant) TouchKey(ctx context.Context, id string, at time.Time) error { return errSkeleton }

// System reaches all tenants.
type System struct{}

// LiveSandboxes returns every sandbox that has not ended, oldest first.
func (y *System) LiveSandboxes(ctx context.Context) ([]Sandbox, error) { return nil, errSkeleton }

// SandboxByInstance finds the sandbox an instance belongs to, dead or alive.
func (y *System) SandboxByInstance(ctx context.Context, id sandbox.InstanceID) (Sandbox, error) {
	return Sandbox{}, errSkeleton
}

// ExpiredSandboxes returns up to limit live sandboxes with ExpiresAt <= now.
func (y *System) ExpiredSandboxes(ctx context.Context, now time.Time, limit int) ([]Sandbox, error) {
	return nil, errSkeleton
}

// UnfinishedRuns returns every run that has not ended, oldest first.
func (y *System) UnfinishedRuns(ctx context.Context) ([]Run, error) { return nil, errSkeleton }

// Key finds a key by id in any tenant.
func (y *System) Key(ctx context.Context, id string) (Key, error) { return Key{}, errSkeleton }

// Purge deletes records of sandboxes and runs that ended before t, and
// idempotency keys that have expired. It returns how many it deleted.
func (y *System) Purge(ctx context.Context, before time.Time) (int, error) { return 0, errSkeleton }

// Owner is exclusive ownership of a data directory.
type Owner struct{}

// Lock takes ownership of dir, creating it 0700 if need be. Errors:
// KindUnavailable wrapping *LockedError when another process owns it.
func Lock(dir string) (*Owner, error) { return nil, errSkeleton }

// Close gives dir up. It is idempotent.
func (o *Owner) Close() error { return errSkeleton }

// LockedError says who owns a data directory.
type LockedError struct {
	Dir string
	PID int // 0 when unknown
}

// Error implements error.
func (e *LockedError) Error() string { return "" }

var errSkeleton = sandbox.Errorf("store", sandbox.KindUnsupported, "not written yet")
