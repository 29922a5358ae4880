// Package store keeps Firebreak's durable state: sandboxes, runs, idempotency
// keys, API keys, policies, bindings and sealed secrets, in one embedded SQLite database
// per data directory.
//
// Code that serves a caller holds a handle bound to that caller's tenant and
// cannot name another one. Code that belongs to the daemon itself (reaper,
// recovery, authentication) holds the System handle:
//
//	lock, err := store.Lock(dir)              // one owner per data directory
//	s, err := store.Open(ctx, filepath.Join(dir, "state.db"), log)
//	t := s.Tenant(principal.Tenant)           // all a handler ever gets
//	sb, err := t.CreateSandbox(ctx, store.Sandbox{ID: sandbox.NewID()}, store.Quota{})
//	sb, err = t.EditSandbox(ctx, sb.ID, func(sb *store.Sandbox) error {
//		sb.State = store.Running
//		return nil
//	})
//	live, err := s.System().LiveSandboxes(ctx) // all tenants: recovery
//
// # Tenancy
//
// Every row is keyed (tenant, id). A method of Tenant given an id that exists
// only in another tenant behaves exactly as if it did not exist anywhere:
// KindNotFound, by the same statement.
//
// # Durability
//
// Intent is journalled before effect: a method that changes what exists
// (CreateSandbox, a change of a sandbox's State, Instance or Reason, runs'
// states, every write to keys) returns after its transaction is on stable
// storage. Writes that only refresh (an expiry, a key's last use, an
// idempotency reservation) survive the death of the process but may be lost
// with the power; since the log is sequential, each is durable at the latest
// with the next write of the first kind. Concurrent writers share one
// transaction and one flush. That of sandboxes' rows is a redo file's, which takes
// a fraction of the database's; see redo.
//
// # Errors
//
// All are *sandbox.Error: KindNotFound, KindExists (id or name taken),
// KindConflict (lost a race, or the state does not permit it), KindGone (the
// sandbox has ended), KindInvalid, KindCapacity (a Quota), KindNoSpace (disk
// full; nothing was changed), KindUnavailable (another process holds the
// database, or the store is closed), KindCanceled, KindTimeout.
//
// The SQL keeps to what SQLite and PostgreSQL share, apart from the
// placeholder "?" and the pragmas in open.go.
package store
