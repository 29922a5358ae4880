package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// SetBinding stores b durably under its name, in place of what was there, provided
// that its secret exists at that moment.
//
// Errors: KindInvalid without a name or a body; KindTooLarge; KindNotFound without the
// secret; KindCapacity when the tenant has MaxBindings.
func (t *Tenant) SetBinding(ctx context.Context, b Binding) (Binding, error) {
	const op = "set binding"
	b.Tenant, b.Updated = t.id, now()
	switch {
	case !t.id.Valid() || b.Name == "" || len(b.Name) > maxBindingName || len(b.Body) == 0:
		return Binding{}, sandbox.Errorf(op, sandbox.KindInvalid, "a binding needs a tenant, a name and a body").WithID(b.Name)
	case len(b.Body) > maxBinding:
		return Binding{}, sandbox.Errorf(op, sandbox.KindTooLarge, "the binding has %d bytes, at most %d are kept", len(b.Body), maxBinding).WithID(b.Name)
	}
	err := t.s.writer.do(ctx, true, func(x *txn) error {
		there, err := x.exists(`SELECT 1 FROM secrets WHERE tenant = ? AND name = ?`, string(t.id), b.Secret)
		if err != nil {
			return err
		}
		if !there {
			return sandbox.Errorf(op, sandbox.KindNotFound, "there is no secret called %.80q", b.Secret).WithID(b.Name).
				WithHint("set it first: `firebreak secret set`; `firebreak secret ls` lists those there are")
		}
		old, err := x.binding(t.id, b.Name)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if b.Version, b.Created = old.Version+1, old.Created; err == nil {
			_, err = x.exec(`UPDATE bindings SET secret = ?, version = ?, updated = ?, principal = ?, body = ? WHERE tenant = ? AND name = ?`,
				b.Secret, b.Version, nanos(b.Updated), b.Principal, string(b.Body), string(t.id), b.Name)
			return err
		}
		if err := x.room(op, b.Name, "bindings", "binding", t.id, MaxBindings); err != nil {
			return err
		}
		b.Created = b.Updated
		_, err = x.exec(`INSERT INTO bindings (tenant, name, secret, version, created, updated, principal, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			string(t.id), b.Name, b.Secret, b.Version, nanos(b.Created), nanos(b.Updated), b.Principal, string(b.Body))
		return err
	})
	if err != nil {
		return Binding{}, fail(op, b.Name, err)
	}
	return b, nil
}

func (x *txn) binding(tenant sandbox.TenantID, name string) (Binding, error) {
	return scanBinding(func(dest ...any) error {
		return x.row(dest, selectBinding+` WHERE tenant = ? AND name = ?`, string(tenant), name)
	})
}

// Binding returns one binding. Errors: KindNotFound.
func (t *Tenant) Binding(ctx context.Context, name string) (Binding, error) {
	b, err := scanBinding(func(dest ...any) error {
		return t.s.row(ctx, dest, selectBinding+` WHERE tenant = ? AND name = ?`, string(t.id), name)
	})
	return b, fail("get binding", name, err)
}

// ListBindings returns all the tenant's bindings by name.
func (t *Tenant) ListBindings(ctx context.Context) ([]Binding, error) {
	var list []Binding
	err := t.s.rows(ctx, func(rs *sql.Rows) error {
		b, err := scanBinding(rs.Scan)
		list = append(list, b)
		return err
	}, selectBinding+` WHERE tenant = ? ORDER BY name`, string(t.id))
	return list, fail("list bindings", "", err)
}

// RemoveBinding forgets a binding durably, and returns it. Errors: KindNotFound.
func (t *Tenant) RemoveBinding(ctx context.Context, name string) (Binding, error) {
	var b Binding
	err := t.s.writer.do(ctx, true, func(x *txn) (err error) {
		if b, err = x.binding(t.id, name); err == nil {
			_, err = x.exec(`DELETE FROM bindings WHERE tenant = ? AND name = ?`, string(t.id), name)
		}
		return err
	})
	if err != nil {
		return Binding{}, fail("remove binding", name, err)
	}
	return b, nil
}

// SealedSecrets counts the secrets, of all tenants, that only the broker's key opens.
func (y *System) SealedSecrets(ctx context.Context) (n int, err error) {
	err = y.s.row(ctx, []any{&n}, `SELECT COUNT(*) FROM secrets WHERE sealed <> ''`)
	return n, fail("count secrets", "", err)
}
