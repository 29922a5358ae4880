package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// SavedSandbox is the record of a snapshot: what is known of it beside its files.
// The store does not read its body, which is JSON.
type SavedSandbox struct {
	ID      sandbox.SnapshotID
	Tenant  sandbox.TenantID // set by the store
	Name    string           // unique among the tenant's snapshots, or empty
	Sandbox sandbox.ID       // that it was taken of; it may have ended
	Created time.Time        // set by the store when zero
	Expires time.Time        // zero: never
	Size    int64            // bytes on disk
	Body    json.RawMessage
}

// MaxSnapshots is how many snapshots one tenant may have. What they may take on
// disk is the orchestrator's quota.
const MaxSnapshots = 1000

const selectSnapshot = `SELECT tenant, id, name, sandbox, created, expires, size, body FROM snapshots`

func scanSnapshot(scan func(...any) error) (SavedSandbox, error) {
	var s SavedSandbox
	var tenant, id, of, body string
	var created, expires int64
	if err := scan(&tenant, &id, &s.Name, &of, &created, &expires, &s.Size, &body); err != nil {
		return SavedSandbox{}, err
	}
	s.Tenant, s.ID, s.Sandbox = sandbox.TenantID(tenant), sandbox.SnapshotID(id), sandbox.ID(of)
	s.Created, s.Expires, s.Body = fromNanos(created), fromNanos(expires), json.RawMessage(body)
	return s, nil
}

// AddSnapshot stores s durably. Its files are there already: what has files and no
// record is nobody's.
//
// With takeName a snapshot that has the name already is left without one.
//
// Errors: KindInvalid for a malformed id or name; KindExists when the name is
// taken, and not to be; KindCapacity when the tenant has MaxSnapshots; KindTooLarge.
func (t *Tenant) AddSnapshot(ctx context.Context, s SavedSandbox, takeName bool) (SavedSandbox, error) {
	const op = "snapshot"
	s.Tenant = t.id
	if s.Created.IsZero() {
		s.Created = now()
	}
	s.Created, s.Expires = s.Created.Round(0).UTC(), s.Expires.Round(0).UTC()
	switch {
	case !t.id.Valid() || !s.ID.Valid() || len(s.Name) > maxName || len(s.Body) == 0:
		return SavedSandbox{}, sandbox.Errorf(op, sandbox.KindInvalid, "a snapshot needs a tenant, an id and a body").WithID(string(s.ID))
	case len(s.Body) > maxBody:
		return SavedSandbox{}, sandbox.Errorf(op, sandbox.KindTooLarge, "the record has %d bytes, at most %d are kept", len(s.Body), maxBody).WithID(string(s.ID))
	}
	err := t.s.writer.do(ctx, true, func(x *txn) error {
		if err := x.room(op, string(s.ID), "snapshots", "snapshot", t.id, MaxSnapshots); err != nil {
			return err
		}
		if takeName && s.Name != "" {
			if _, err := x.exec(`UPDATE snapshots SET name = '' WHERE tenant = ? AND name = ?`, string(t.id), s.Name); err != nil {
				return err
			}
		}
		taken, err := x.exists(`SELECT 1 FROM snapshots WHERE tenant = ? AND (id = ? OR name = ? AND name <> '')`, string(t.id), string(s.ID), s.Name)
		if err != nil {
			return err
		}
		if taken {
			return snapshotTaken(s.Name)
		}
		_, err = x.exec(`INSERT INTO snapshots (tenant, id, name, sandbox, created, expires, size, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			string(t.id), string(s.ID), s.Name, string(s.Sandbox), nanos(s.Created), nanos(s.Expires), s.Size, string(s.Body))
		return err
	})
	if err != nil {
		return SavedSandbox{}, fail(op, string(s.ID), err)
	}
	return s, nil
}

func snapshotTaken(name string) error {
	return sandbox.Errorf("snapshot", sandbox.KindExists, "there is a snapshot called %q", name).
		WithHint("choose another name, or remove that one: firebreak snapshot rm")
}

// Snapshot returns the snapshot that ref names: an id, or a name. Errors:
// KindNotFound.
func (t *Tenant) Snapshot(ctx context.Context, ref string) (SavedSandbox, error) {
	s, err := scanSnapshot(func(dest ...any) error {
		return t.s.row(ctx, dest, selectSnapshot+` WHERE tenant = ? AND (id = ? OR name = ? AND name <> '') ORDER BY id = ? DESC LIMIT 1`,
			string(t.id), ref, ref, ref)
	})
	return s, fail("get snapshot", ref, err)
}

// ListSnapshots returns all the tenant's snapshots, newest first.
func (t *Tenant) ListSnapshots(ctx context.Context) ([]SavedSandbox, error) {
	list, err := t.s.snapshots(ctx, selectSnapshot+` WHERE tenant = ? ORDER BY created DESC, id`, string(t.id))
	return list, fail("list snapshots", "", err)
}

// RemoveSnapshot forgets a snapshot durably, by its id, and returns it. Its files
// are the caller's to remove. Errors: KindNotFound.
func (t *Tenant) RemoveSnapshot(ctx context.Context, id sandbox.SnapshotID) (SavedSandbox, error) {
	var s SavedSandbox
	err := t.s.writer.do(ctx, true, func(x *txn) (err error) {
		s, err = scanSnapshot(func(dest ...any) error {
			return x.row(dest, selectSnapshot+` WHERE tenant = ? AND id = ?`, string(t.id), string(id))
		})
		if err == nil {
			_, err = x.exec(`DELETE FROM snapshots WHERE tenant = ? AND id = ?`, string(t.id), string(id))
		}
		return err
	})
	if err != nil {
		return SavedSandbox{}, fail("remove snapshot", string(id), err)
	}
	return s, nil
}

// Snapshots returns every snapshot, of all tenants, without their bodies: whose
// files are somebody's.
func (y *System) Snapshots(ctx context.Context) ([]SavedSandbox, error) {
	list, err := y.s.snapshots(ctx, `SELECT tenant, id, name, sandbox, created, expires, size, '' FROM snapshots ORDER BY created`)
	return list, fail("list snapshots", "", err)
}

// ExpiredSnapshots returns up to limit snapshots whose Expires is not after at, the
// longest overdue first, without their bodies.
func (y *System) ExpiredSnapshots(ctx context.Context, at time.Time, limit int) ([]SavedSandbox, error) {
	list, err := y.s.snapshots(ctx, `SELECT tenant, id, name, sandbox, created, expires, size, '' FROM snapshots WHERE expires > 0 AND expires <= ? ORDER BY expires LIMIT ?`,
		at.UnixNano(), limit)
	return list, fail("list expired snapshots", "", err)
}

func (s *Store) snapshots(ctx context.Context, q string, args ...any) ([]SavedSandbox, error) {
	var list []SavedSandbox
	err := s.rows(ctx, func(rs *sql.Rows) error {
		one, err := scanSnapshot(rs.Scan)
		list = append(list, one)
		return err
	}, q, args...)
	return list, err
}
