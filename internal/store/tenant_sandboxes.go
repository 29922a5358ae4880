package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// CreateSandbox inserts sb, in state Creating unless it says otherwise, and
// returns the record as stored once it is on stable storage. This is the
// intent: call it before making anything on the host.
//
// Errors: KindInvalid for a malformed id, name or metadata; KindExists when
// the id, or the name among the tenant's live sandboxes, or the instance id is
// taken; KindCapacity when q would be exceeded.
//
// Cost: one disk flush, shared with whoever writes at the same time.
func (t *Tenant) CreateSandbox(ctx context.Context, sb Sandbox, q Quota) (Sandbox, error) {
	return t.CreateBeside(ctx, sb, q, nil)
}

// CreateBeside is CreateSandbox with something that is done, by another goroutine, once
// it is certain that the record can be there and before it is durable: to flush
// something else. It must not call the store, and not be long, for others wait, too. It
// is not done where the record cannot be there; where it was done, the record can still
// fail to be written.
func (t *Tenant) CreateBeside(ctx context.Context, sb Sandbox, q Quota, beside func()) (Sandbox, error) {
	const op = "create"
	sb = sb.clone().normal()
	sb.Tenant, sb.Version = t.id, 1
	if sb.State == "" {
		sb.State = Creating
	}
	if sb.Created.IsZero() {
		sb.Created = now()
	}
	if err := sb.check(op); err != nil {
		return Sandbox{}, err
	}
	err := t.s.writer.noteBeside(ctx, beside, func(x *txn) error {
		if err := x.mayCreate(&sb, q); err != nil {
			return err
		}
		return x.insertSandbox(&sb)
	})
	if err != nil {
		return Sandbox{}, fail(op, string(sb.ID), err)
	}
	return sb.clone(), nil
}

// Sandbox returns one sandbox, dead ones included. Errors: KindNotFound.
//
// Cost: about a microsecond when read recently, else some twenty.
func (t *Tenant) Sandbox(ctx context.Context, id sandbox.ID) (Sandbox, error) {
	const op = "get sandbox"
	if err := ctx.Err(); err != nil {
		return Sandbox{}, fail(op, string(id), err)
	}
	k := tenantKey{t.id, string(id)}
	sb, gen, ok := t.s.cache.get(k)
	if ok {
		return sb, nil
	}
	var r sandboxRow
	err := t.s.row(ctx, r.dest(), selectSandbox+` WHERE tenant = ? AND id = ?`, string(t.id), string(id))
	if err == nil {
		sb, err = r.sandbox()
	}
	if err != nil {
		return Sandbox{}, fail(op, string(id), err)
	}
	t.s.cache.put(k, sb.clone(), gen)
	return sb, nil
}

// SandboxByName returns the live sandbox of that name. Errors: KindNotFound.
func (t *Tenant) SandboxByName(ctx context.Context, name string) (Sandbox, error) {
	const op = "get sandbox"
	var r sandboxRow
	err := t.s.row(ctx, r.dest(), selectSandbox+` WHERE tenant = ? AND name = ? AND name <> '' AND state <> 'ended'`,
		string(t.id), name)
	if err != nil {
		return Sandbox{}, fail(op, name, err)
	}
	sb, err := r.sandbox()
	return sb, fail(op, name, err)
}

// CountSandboxes counts the tenant's sandboxes in any of states; without
// states, all of them.
func (t *Tenant) CountSandboxes(ctx context.Context, states ...State) (int, error) {
	q := strings.Builder{}
	q.WriteString(`SELECT COUNT(*) FROM sandboxes WHERE tenant = ?`)
	args := []any{string(t.id)}
	anyState(&q, &args, states)
	var n int
	return n, fail("count sandboxes", "", t.s.row(ctx, []any{&n}, q.String(), args...))
}

// UpdateSandbox writes sb durably if sb.Version is still the stored one, and
// returns the record as stored.
//
// ID, Tenant, Created and Principal never change: what sb says there is
// ignored. Errors: KindNotFound; KindConflict when the record was written
// since it was read, or when State would move backwards; KindGone when it has
// ended and sb would bring it back to life; KindExists when the new name or
// instance is taken.
func (t *Tenant) UpdateSandbox(ctx context.Context, sb Sandbox) (Sandbox, error) {
	return t.update(ctx, sb, true)
}

// EditSandbox applies edit to the current record and writes the result,
// provided that nobody else wrote meanwhile; else it starts again. So edit may
// run several times and must have no effect beyond its argument; its error is
// returned as it is, with nothing written.
//
// The write is durable when it changes State, Instance, Reason or Receipt; any
// other survives the process but perhaps not a power cut. Errors: as
// UpdateSandbox, apart from the lost race.
func (t *Tenant) EditSandbox(ctx context.Context, id sandbox.ID, edit func(*Sandbox) error) (Sandbox, error) {
	for {
		old, err := t.Sandbox(ctx, id)
		if err != nil {
			return Sandbox{}, err
		}
		sb := old.clone()
		if err := edit(&sb); err != nil {
			return Sandbox{}, err
		}
		sb.ID, sb.Version = old.ID, old.Version
		durable := sb.State != old.State || sb.Instance != old.Instance || sb.Reason != old.Reason ||
			(sb.Receipt == nil) != (old.Receipt == nil)
		sb, err = t.update(ctx, sb, durable)
		if err == nil || !errors.Is(err, errLostRace) {
			return sb, err
		}
	}
}

// errLostRace marks the KindConflict that a fresh read can mend.
var errLostRace = errors.New("the record was changed meanwhile")

func (t *Tenant) update(ctx context.Context, sb Sandbox, durable bool) (Sandbox, error) {
	const op = "update sandbox"
	sb = sb.clone().normal()
	sb.Tenant = t.id
	if sb.State == Ended && sb.Ended.IsZero() {
		sb.Ended = now()
	}
	if err := sb.check(op); err != nil {
		return Sandbox{}, err
	}
	err := t.s.writer.note(ctx, durable, func(x *txn) error {
		var r sandboxRow
		if err := x.row(r.dest(), selectSandbox+` WHERE tenant = ? AND id = ?`, string(t.id), string(sb.ID)); err != nil {
			return err
		}
		old, err := r.sandbox()
		if err != nil {
			return err
		}
		if old.Version != sb.Version {
			return &sandbox.Error{Op: op, ID: string(sb.ID), Kind: sandbox.KindConflict,
				Hint: "read it again and repeat", Err: errLostRace}
		}
		sb.Created, sb.Principal = old.Created, old.Principal
		if err := mayFollow(op, old, sb); err != nil {
			return err
		}
		if err := x.uniqueAfter(&sb, &old); err != nil {
			return err
		}
		sb.Version++
		return x.updateSandbox(&sb, &old)
	})
	if err != nil {
		return Sandbox{}, fail(op, string(sb.ID), err)
	}
	return sb, nil
}

var stateOrder = []State{Creating, Running, Paused, Stopping, Ended}

// mayFollow checks the transition from old to sb.
func mayFollow(op string, old, sb Sandbox) error {
	switch {
	case old.State == Ended && sb.State != Ended:
		return sandbox.Errorf(op, sandbox.KindGone, "the sandbox has ended: %s", old.Reason).WithID(string(sb.ID))
	case old.State == Paused && sb.State == Running:
	case slices.Index(stateOrder, sb.State) < slices.Index(stateOrder, old.State):
		return sandbox.Errorf(op, sandbox.KindConflict, "the sandbox is %s and cannot become %s", old.State, sb.State).
			WithID(string(sb.ID))
	}
	return nil
}

// mayCreate refuses sb when it would be one too many, and an id, name or instance that
// is taken. What can be is asked at once: each statement costs more than what it looks
// up.
func (x *txn) mayCreate(sb *Sandbox, q Quota) error {
	var tenant, host int
	var id, instance bool
	counted := sb.Live()
	err := x.row([]any{&tenant, &host, &id, &instance}, `SELECT
		CASE WHEN ?1 THEN (SELECT COUNT(*) FROM sandboxes WHERE tenant = ?3 AND state <> 'ended') ELSE 0 END,
		CASE WHEN ?2 THEN (SELECT COUNT(*) FROM sandboxes WHERE state <> 'ended') ELSE 0 END,
		EXISTS (SELECT 1 FROM sandboxes WHERE tenant = ?3 AND id = ?4),
		EXISTS (SELECT 1 FROM sandboxes WHERE instance = ?5 AND instance <> '')`,
		counted && q.Tenant > 0, counted && q.Host > 0, string(sb.Tenant), string(sb.ID), string(sb.Instance))
	if err != nil {
		return err
	}
	full := func(limit int, what string, n int) error {
		if limit <= 0 || !counted || n < limit {
			return nil
		}
		return sandbox.Errorf("create", sandbox.KindCapacity, "%s has %d live sandboxes, the limit is %d", what, n, limit).
			WithHint("end a sandbox, or retry when one has ended")
	}
	if err := cmp.Or(full(q.Tenant, "the tenant", tenant), full(q.Host, "this host", host)); err != nil {
		return err
	}
	if id {
		return sandbox.Errorf("create", sandbox.KindExists, "the id is taken").WithID(string(sb.ID))
	}
	if err := x.uniqueName(sb, &Sandbox{State: Ended}); err != nil || !instance {
		return err
	}
	return instanceTaken(sb)
}

// uniqueAfter refuses a name or instance that sb takes up over old and that
// another row holds.
func (x *txn) uniqueAfter(sb, old *Sandbox) error {
	if err := x.uniqueName(sb, old); err != nil || sb.Instance == "" || sb.Instance == old.Instance {
		return err
	}
	taken, err := x.exists(`SELECT 1 FROM sandboxes WHERE instance = ? AND instance <> ''`, string(sb.Instance))
	if err == nil && taken {
		err = instanceTaken(sb)
	}
	return err
}

func instanceTaken(sb *Sandbox) error {
	return sandbox.Errorf("create", sandbox.KindExists, "the instance id is taken").WithID(string(sb.ID))
}

// uniqueName is uniqueAfter for the name.
func (x *txn) uniqueName(sb, old *Sandbox) error {
	if sb.Name == "" || !sb.Live() || sb.Name == old.Name && old.Live() {
		return nil
	}
	taken, err := x.exists(`SELECT 1 FROM sandboxes WHERE tenant = ? AND name = ? AND name <> '' AND state <> 'ended'`,
		string(sb.Tenant), sb.Name)
	if err == nil && taken {
		err = sandbox.Errorf("create", sandbox.KindExists, "the name %q is taken by a live sandbox", sb.Name).
			WithID(string(sb.ID)).WithHint("choose another name, or end the sandbox that has it")
	}
	return err
}
