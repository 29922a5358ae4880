package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	// purgeChunk bounds one transaction of Purge, so that writers wait little.
	purgeChunk = 200
	// purgePass bounds one Purge, of each kind of record.
	purgePass = 10_000
	// maxAmong bounds the ids of one question.
	maxAmong = 500
)

// Purge deletes the records of sandboxes and runs that ended before t,
// idempotency keys that have expired by now and are not being used, and copies
// of the database that a migration before t left. One call deletes at most
// 10 000 records of a kind; more tells that there are others. Then it gives free
// pages back to the disk.
//
// It returns how many records it deleted, also when it fails half way;
// repeating it is safe. Keys, revoked ones too, are kept: the audit log names
// them.
//
// Cost: 200 records per transaction, between which other writers get their
// turn; about 30 µs a record.
func (y *System) Purge(ctx context.Context, t time.Time) (total int, more bool, err error) {
	steps := []struct {
		list, del string
		args      []any
	}{
		{`SELECT tenant, id FROM sandboxes WHERE state = 'ended' AND ended < ? LIMIT ?`,
			`DELETE FROM sandboxes WHERE tenant = ? AND id = ? AND state = 'ended'`, []any{t.UnixNano()}},
		{`SELECT tenant, id FROM runs WHERE state = 'ended' AND ended < ? LIMIT ?`,
			`DELETE FROM runs WHERE tenant = ? AND id = ? AND state = 'ended'`, []any{t.UnixNano()}},
		{`SELECT tenant, name FROM idempotency WHERE expires < ? AND (done = 1 OR owner <> ?) LIMIT ?`,
			`DELETE FROM idempotency WHERE tenant = ? AND name = ?`, []any{time.Now().UnixNano(), y.s.epoch}},
	}
	for i, st := range steps {
		for done, n := 0, purgeChunk; n == purgeChunk; {
			if done >= purgePass {
				more = true
				break
			}
			n, err = y.purgeChunk(ctx, st.list, st.del, st.args, i == 0)
			done, total = done+n, total+n
			if err != nil {
				return total, more, fail("purge", "", err)
			}
			failpoint.Hit("purge/after-chunk")
		}
	}
	if err := purgeCopies(y.s.path, t); err != nil {
		return total, more, sandbox.Wrap("purge", "", err)
	}
	return total, more, fail("purge", "", y.shrink(ctx))
}

// Free pages are given back once there are this many of them and they are this
// share of the file: a database that breathes would otherwise be cut and grown
// all the time.
const (
	shrinkPages = 1024
	shrinkShare = 4
	shrinkChunk = 512 // pages moved in one transaction
)

// shrink gives free pages back to the disk. In a database that was made before
// there was auto_vacuum it does nothing: its free pages are reused, and a
// restored backup is small.
func (y *System) shrink(ctx context.Context) error {
	var free, pages, mode int64
	for _, q := range []struct {
		to *int64
		q  string
	}{{&mode, `PRAGMA auto_vacuum`}, {&free, `PRAGMA freelist_count`}, {&pages, `PRAGMA page_count`}} {
		if err := y.s.row(ctx, []any{q.to}, q.q); err != nil {
			return err
		}
	}
	const incremental = 2
	if mode != incremental || free < shrinkPages || free < pages/shrinkShare {
		return nil
	}
	for ; free > 0; free -= shrinkChunk {
		err := y.s.writer.do(ctx, false, func(x *txn) error {
			rs, err := x.w.conn.QueryContext(context.WithoutCancel(ctx), `PRAGMA incremental_vacuum(512)`)
			if err != nil {
				return err
			}
			defer rs.Close()
			for rs.Next() { // it works as it is read
			}
			return rs.Err()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// RunsAmong tells which of ids, at most 500, have a record in any tenant.
func (y *System) RunsAmong(ctx context.Context, ids []sandbox.RunID) (map[sandbox.RunID]bool, error) {
	return among(ctx, y.s, "runs", ids)
}

// SandboxesAmong tells which of ids, at most 500, have a record in any tenant.
func (y *System) SandboxesAmong(ctx context.Context, ids []sandbox.ID) (map[sandbox.ID]bool, error) {
	return among(ctx, y.s, "sandboxes", ids)
}

func among[T ~string](ctx context.Context, s *Store, table string, ids []T) (map[T]bool, error) {
	known := map[T]bool{}
	if len(ids) == 0 {
		return known, nil
	}
	if len(ids) > maxAmong {
		return nil, sandbox.Errorf("look up "+table, sandbox.KindInvalid, "%d ids, at most %d are looked up at once", len(ids), maxAmong)
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = string(id)
	}
	rs, err := s.readDB.QueryContext(ctx, `SELECT id FROM `+table+` WHERE id IN (?`+strings.Repeat(`,?`, len(ids)-1)+`)`, args...)
	if err != nil {
		return nil, fail("look up "+table, "", err)
	}
	defer rs.Close()
	for rs.Next() {
		var id string
		if err := rs.Scan(&id); err != nil {
			return nil, fail("look up "+table, "", err)
		}
		known[T(id)] = true
	}
	return known, fail("look up "+table, "", rs.Err())
}

func (y *System) purgeChunk(ctx context.Context, list, del string, args []any, sandboxes bool) (n int, err error) {
	do := func(f func(*txn) error) error { return y.s.writer.do(ctx, false, f) }
	if sandboxes {
		do = func(f func(*txn) error) error { return y.s.writer.remove(ctx, f) }
	}
	err = do(func(x *txn) error {
		keys, err := x.keys(list, append(slices.Clone(args), purgeChunk)...)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if sandboxes {
				if _, err := x.exec(`DELETE FROM sandbox_metadata WHERE tenant = ? AND sandbox = ?`, string(k.tenant), k.id); err != nil {
					return err
				}
				x.removed(k)
			}
			if _, err := x.exec(del, string(k.tenant), k.id); err != nil {
				return err
			}
		}
		n = len(keys)
		return nil
	})
	if err != nil {
		n = 0
	}
	return n, err
}

// keys runs a query for (tenant, id) pairs.
func (x *txn) keys(q string, args ...any) ([]tenantKey, error) {
	st, err := x.w.stmt(q)
	if err != nil {
		return nil, err
	}
	rs, err := st.Query(args...)
	if err != nil {
		return nil, err
	}
	defer rs.Close()
	var ks []tenantKey
	for rs.Next() {
		var k tenantKey
		if err := rs.Scan((*string)(&k.tenant), &k.id); err != nil {
			return nil, err
		}
		ks = append(ks, k)
	}
	return ks, rs.Err()
}
