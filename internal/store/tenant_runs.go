package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/firebreak-dev/firebreak/sandbox"
)

var runOrder = []RunState{RunPending, RunRunning, RunEnded}

func (r Run) clone() Run {
	r.Spec, r.Result, r.Extra = slices.Clone(r.Spec), slices.Clone(r.Result), slices.Clone(r.Extra)
	r.Timings, r.Artifacts = maps.Clone(r.Timings), slices.Clone(r.Artifacts)
	return r
}

func (r *Run) check(op string) error {
	bad := func(format string, args ...any) error {
		return sandbox.Errorf(op, sandbox.KindInvalid, format, args...).WithID(string(r.ID))
	}
	switch {
	case !r.Tenant.Valid():
		return bad("malformed tenant id %q", r.Tenant)
	case !r.ID.Valid():
		return bad("malformed run id %q", r.ID)
	case r.Sandbox != "" && !r.Sandbox.Valid():
		return bad("malformed sandbox id %q", r.Sandbox)
	case !slices.Contains(runOrder, r.State):
		return bad("unknown run state %q", r.State)
	}
	return nil
}

const selectRun = `SELECT tenant, version, body FROM runs`

func scanRun(scan func(...any) error) (Run, error) {
	var tenant string
	var version int64
	var body []byte
	if err := scan(&tenant, &version, &body); err != nil {
		return Run{}, err
	}
	var r Run
	if err := json.Unmarshal(body, &r); err != nil {
		return Run{}, sandbox.Errorf("read run", sandbox.KindInternal, "damaged record: %w", err)
	}
	r.Tenant, r.Version = sandbox.TenantID(tenant), version
	return r, nil
}

// CreateRun inserts r durably, in state RunPending unless it says otherwise.
// Errors: KindInvalid, KindExists.
func (t *Tenant) CreateRun(ctx context.Context, r Run) (Run, error) {
	const op = "create run"
	r = r.clone()
	r.Tenant, r.Version = t.id, 1
	if r.State == "" {
		r.State = RunPending
	}
	if r.Created.IsZero() {
		r.Created = now()
	}
	if err := r.check(op); err != nil {
		return Run{}, err
	}
	body, err := encodeBody(r)
	if err != nil {
		return Run{}, err
	}
	err = t.s.writer.do(ctx, true, func(x *txn) error {
		taken, err := x.exists(`SELECT 1 FROM runs WHERE tenant = ? AND id = ?`, string(t.id), string(r.ID))
		if err != nil {
			return err
		}
		if taken {
			return sandbox.Errorf(op, sandbox.KindExists, "the id is taken").WithID(string(r.ID))
		}
		_, err = x.exec(`INSERT INTO runs (tenant, id, version, state, sandbox, created, ended, body)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)`, string(t.id), string(r.ID), r.Version, string(r.State),
			string(r.Sandbox), nanos(r.Created), nanos(r.Ended), body)
		return err
	})
	if err != nil {
		return Run{}, fail(op, string(r.ID), err)
	}
	return r, nil
}

// Run returns one run. Errors: KindNotFound.
func (t *Tenant) Run(ctx context.Context, id sandbox.RunID) (Run, error) {
	r, err := scanRun(func(dest ...any) error {
		return t.s.row(ctx, dest, selectRun+` WHERE tenant = ? AND id = ?`, string(t.id), string(id))
	})
	return r, fail("get run", string(id), err)
}

// EditRun applies edit to the current record and writes the result, starting
// again when somebody else wrote meanwhile; so edit may run several times. Its
// error is returned as it is, with nothing written. The write is durable when
// State changes. Errors: KindNotFound; KindConflict when State would move
// backwards.
func (t *Tenant) EditRun(ctx context.Context, id sandbox.RunID, edit func(*Run) error) (Run, error) {
	for {
		old, err := t.Run(ctx, id)
		if err != nil {
			return Run{}, err
		}
		r := old.clone()
		if err := edit(&r); err != nil {
			return Run{}, err
		}
		r.ID, r.Tenant, r.Created, r.Principal, r.Version = old.ID, old.Tenant, old.Created, old.Principal, old.Version
		r, err = t.updateRun(ctx, old, r)
		if !errors.Is(err, errLostRace) {
			return r, err
		}
	}
}

func (t *Tenant) updateRun(ctx context.Context, old, r Run) (Run, error) {
	const op = "update run"
	if r.State == RunEnded && r.Ended.IsZero() {
		r.Ended = now()
	}
	if err := r.check(op); err != nil {
		return Run{}, err
	}
	if slices.Index(runOrder, r.State) < slices.Index(runOrder, old.State) {
		return Run{}, sandbox.Errorf(op, sandbox.KindConflict, "the run is %s and cannot become %s", old.State, r.State).
			WithID(string(r.ID))
	}
	r.Version++
	body, err := encodeBody(r)
	if err != nil {
		return Run{}, err
	}
	err = t.s.writer.do(ctx, r.State != old.State, func(x *txn) error {
		n, err := x.exec(`UPDATE runs SET version = ?, state = ?, sandbox = ?, ended = ?, body = ?
			WHERE tenant = ? AND id = ? AND version = ?`, r.Version, string(r.State), string(r.Sandbox),
			nanos(r.Ended), body, string(t.id), string(r.ID), old.Version)
		if err == nil && n == 0 {
			err = &sandbox.Error{Op: op, ID: string(r.ID), Kind: sandbox.KindConflict, Err: errLostRace}
		}
		return err
	})
	if err != nil {
		return Run{}, fail(op, string(r.ID), err)
	}
	return r, nil
}

// ListRuns returns one page of the tenant's runs, newest first, and the token
// of the next page, empty on the last. Pages are stable as with ListSandboxes.
func (t *Tenant) ListRuns(ctx context.Context, p Page) ([]Run, string, error) {
	const op = "list runs"
	size, err := p.size()
	if err != nil {
		return nil, "", err
	}
	q, args := selectRun+` WHERE tenant = ?`, []any{string(t.id)}
	filter := digest("runs", t.id, nil)
	if p.Token != "" {
		tok, err := decodeToken(p.Token, filter)
		if err != nil {
			return nil, "", err
		}
		q += ` AND (created, id) < (?, ?)`
		args = append(args, tok.Created, tok.ID)
	}
	list, err := t.s.runs(ctx, q+` ORDER BY created DESC, id DESC LIMIT ?`, append(args, size+1)...)
	if err != nil {
		return nil, "", fail(op, "", err)
	}
	if len(list) <= size {
		return list, "", nil
	}
	last := list[size-1]
	return list[:size], pageToken{nanos(last.Created), string(last.ID), filter}.encode(), nil
}

// runs runs a query that begins with selectRun.
func (s *Store) runs(ctx context.Context, q string, args ...any) ([]Run, error) {
	var list []Run
	err := s.rows(ctx, func(rs *sql.Rows) error {
		r, err := scanRun(rs.Scan)
		list = append(list, r)
		return err
	}, q, args...)
	return list, err
}
