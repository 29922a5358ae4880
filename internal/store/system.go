package store

import (
	"context"
	"database/sql"
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

// Kept adds up, by tenant, what ended runs left on disk and what sandboxes that
// ended after since did: the events of older ones are gone.
//
// Cost: a few microseconds for each such record.
func (y *System) Kept(ctx context.Context, since time.Time) (map[sandbox.TenantID]int64, error) {
	kept := map[sandbox.TenantID]int64{}
	add := func(rs *sql.Rows) error {
		var tenant string
		var n int64
		err := rs.Scan(&tenant, &n)
		kept[sandbox.TenantID(tenant)] += n
		return err
	}
	const sum = `SELECT tenant, COALESCE(SUM(json_extract(body, '$.kept')), 0) FROM `
	err := y.s.rows(ctx, add, sum+`runs WHERE state = 'ended' GROUP BY tenant`)
	if err == nil {
		err = y.s.rows(ctx, add, sum+`sandboxes WHERE state = 'ended' AND ended > ? GROUP BY tenant`, nanos(since))
	}
	return kept, fail("add up what is kept", "", err)
}

// Key finds a key by its id in whatever tenant has it: authentication comes
// before the tenant is known. Errors: KindNotFound.
func (y *System) Key(ctx context.Context, id string) (Key, error) {
	k, err := scanKey(func(dest ...any) error {
		return y.s.row(ctx, dest, selectKey+` WHERE id = ?`, id)
	})
	return k, fail("get key", id, err)
}
