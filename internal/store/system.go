package store

import (
	"context"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Tenant returns the handle of one tenant.
func (y *System) Tenant(id sandbox.TenantID) *Tenant { return y.s.Tenant(id) }

// LiveSandboxes returns every sandbox that has not ended, of all tenants,
// oldest first: what recovery has to account for.
func (y *System) LiveSandboxes(ctx context.Context) ([]Sandbox, error) {
	list, err := y.s.sandboxes(ctx, selectSandbox+` WHERE state <> 'ended' ORDER BY created, id`)
	return list, fail("list live sandboxes", "", err)
}

// SandboxByInstance finds the sandbox whose current incarnation is id, dead or
// alive. Errors: KindNotFound, which makes the instance an orphan.
func (y *System) SandboxByInstance(ctx context.Context, id sandbox.InstanceID) (Sandbox, error) {
	const op = "get sandbox"
	var r sandboxRow
	err := y.s.row(ctx, r.dest(), selectSandbox+` WHERE instance = ? AND instance <> ''`, string(id))
	if err != nil {
		return Sandbox{}, fail(op, string(id), err)
	}
	sb, err := r.sandbox()
	return sb, fail(op, string(id), err)
}

// ExpiredSandboxes returns up to limit live sandboxes whose ExpiresAt is not
// after at, the longest overdue first.
func (y *System) ExpiredSandboxes(ctx context.Context, at time.Time, limit int) ([]Sandbox, error) {
	list, err := y.s.sandboxes(ctx, selectSandbox+
		` WHERE expires > 0 AND state <> 'ended' AND expires <= ? ORDER BY expires LIMIT ?`, at.UnixNano(), limit)
	return list, fail("list expired sandboxes", "", err)
}

// UnfinishedRuns returns every run that has not ended, of all tenants, oldest
// first.
func (y *System) UnfinishedRuns(ctx context.Context) ([]Run, error) {
	list, err := y.s.runs(ctx, selectRun+` WHERE state <> 'ended' ORDER BY created`)
	return list, fail("list unfinished runs", "", err)
}

// Key finds a key by its id in whatever tenant has it: authentication comes
// before the tenant is known. Errors: KindNotFound.
func (y *System) Key(ctx context.Context, id string) (Key, error) {
	k, err := scanKey(func(dest ...any) error {
		return y.s.row(ctx, dest, selectKey+` WHERE id = ?`, id)
	})
	return k, fail("get key", id, err)
}

// purgeChunk bounds one transaction of Purge, so that writers wait little.
const purgeChunk = 200

// Purge deletes the records of sandboxes and runs that ended before t, and
// idempotency keys that have expired by now and are not being used. It returns
// how many records it deleted, also when it fails half way; repeating it is
// safe. Keys, revoked ones too, are kept: the audit log names them.
func (y *System) Purge(ctx context.Context, t time.Time) (int, error) {
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
	total := 0
	for i, st := range steps {
		for {
			n, err := y.purgeChunk(ctx, st.list, st.del, st.args, i == 0)
			total += n
			if err != nil {
				return total, fail("purge", "", err)
			}
			if n < purgeChunk {
				break
			}
		}
	}
	return total, nil
}

func (y *System) purgeChunk(ctx context.Context, list, del string, args []any, sandboxes bool) (n int, err error) {
	err = y.s.writer.do(ctx, false, func(x *txn) error {
		keys, err := x.keys(list, append(slices.Clone(args), purgeChunk)...)
		if err != nil {
			return err
		}
		for _, k := range keys {
			if sandboxes {
				if _, err := x.exec(`DELETE FROM sandbox_metadata WHERE tenant = ? AND sandbox = ?`, string(k.tenant), k.id); err != nil {
					return err
				}
				x.wrote(k.tenant, sandbox.ID(k.id))
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
