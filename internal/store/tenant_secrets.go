package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	selectSecret  = `SELECT tenant, name, version, created, updated, principal, reference, sealed FROM secrets`
	selectBinding = `SELECT tenant, name, secret, version, created, updated, principal, body FROM bindings`
)

func scanSecret(scan func(...any) error) (Secret, error) {
	var s Secret
	var tenant string
	var created, updated int64
	if err := scan(&tenant, &s.Name, &s.Version, &created, &updated, &s.Principal, &s.Reference, &s.Sealed); err != nil {
		return Secret{}, err
	}
	s.Tenant, s.Created, s.Updated = sandbox.TenantID(tenant), fromNanos(created), fromNanos(updated)
	return s, nil
}

func scanBinding(scan func(...any) error) (Binding, error) {
	var b Binding
	var tenant, body string
	var created, updated int64
	if err := scan(&tenant, &b.Name, &b.Secret, &b.Version, &created, &updated, &b.Principal, &body); err != nil {
		return Binding{}, err
	}
	b.Tenant, b.Created, b.Updated, b.Body = sandbox.TenantID(tenant), fromNanos(created), fromNanos(updated), json.RawMessage(body)
	return b, nil
}

// SetSecret stores s durably under its name, in place of what was there. A crash
// leaves the one or the other, whole.
//
// Errors: KindInvalid without a name, or without exactly one of Sealed and Reference;
// KindTooLarge; KindCapacity when the tenant has MaxSecrets.
func (t *Tenant) SetSecret(ctx context.Context, s Secret) (Secret, error) {
	const op = "set secret"
	s.Tenant, s.Updated = t.id, now()
	switch {
	case !t.id.Valid() || s.Name == "" || len(s.Name) > maxSecretName || (s.Sealed == "") == (s.Reference == ""):
		return Secret{}, sandbox.Errorf(op, sandbox.KindInvalid, "a secret needs a tenant, a name, and what is sealed or a reference").WithID(s.Name)
	case len(s.Sealed) > maxSealed || len(s.Reference) > maxReference:
		return Secret{}, sandbox.Errorf(op, sandbox.KindTooLarge, "the secret is too long").WithID(s.Name)
	}
	err := t.s.writer.do(ctx, true, func(x *txn) error {
		old, err := x.secret(t.id, s.Name)
		there := err == nil
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if s.Version, s.Created = old.Version+1, old.Created; there {
			_, err = x.exec(`UPDATE secrets SET version = ?, updated = ?, principal = ?, reference = ?, sealed = ? WHERE tenant = ? AND name = ?`,
				s.Version, nanos(s.Updated), s.Principal, s.Reference, s.Sealed, string(t.id), s.Name)
			return err
		}
		if err := x.room(op, s.Name, "secrets", "secret", t.id, MaxSecrets); err != nil {
			return err
		}
		s.Created = s.Updated
		_, err = x.exec(`INSERT INTO secrets (tenant, name, version, created, updated, principal, reference, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			string(t.id), s.Name, s.Version, nanos(s.Created), nanos(s.Updated), s.Principal, s.Reference, s.Sealed)
		return err
	})
	if err != nil {
		return Secret{}, fail(op, s.Name, err)
	}
	return s, nil
}

// room refuses one row more than limit.
func (x *txn) room(op, name, table, noun string, tenant sandbox.TenantID, limit int) error {
	var n int
	if err := x.row([]any{&n}, `SELECT COUNT(*) FROM `+table+` WHERE tenant = ?`, string(tenant)); err != nil || n < limit {
		return err
	}
	return sandbox.Errorf(op, sandbox.KindCapacity, "the tenant has %d %s, the limit is %d", n, table, limit).WithID(name).
		WithHint("remove one that nobody needs: firebreak %s ls, firebreak %s rm", noun, noun)
}

func (x *txn) secret(tenant sandbox.TenantID, name string) (Secret, error) {
	return scanSecret(func(dest ...any) error {
		return x.row(dest, selectSecret+` WHERE tenant = ? AND name = ?`, string(tenant), name)
	})
}

// Secret returns one secret as it is kept. Errors: KindNotFound.
func (t *Tenant) Secret(ctx context.Context, name string) (Secret, error) {
	s, err := scanSecret(func(dest ...any) error {
		return t.s.row(ctx, dest, selectSecret+` WHERE tenant = ? AND name = ?`, string(t.id), name)
	})
	return s, fail("get secret", name, err)
}

// ListSecrets returns all the tenant's secrets by name, without what is sealed.
func (t *Tenant) ListSecrets(ctx context.Context) ([]Secret, error) {
	var list []Secret
	err := t.s.rows(ctx, func(rs *sql.Rows) error {
		s, err := scanSecret(rs.Scan)
		list = append(list, s)
		return err
	}, `SELECT tenant, name, version, created, updated, principal, reference, '' FROM secrets WHERE tenant = ? ORDER BY name`, string(t.id))
	return list, fail("list secrets", "", err)
}

// RemoveSecret forgets a secret durably, and returns what was known of it without
// what is sealed. Errors: KindNotFound; KindConflict, naming them, while bindings use
// it.
func (t *Tenant) RemoveSecret(ctx context.Context, name string) (Secret, error) {
	const op = "remove secret"
	var s Secret
	err := t.s.writer.do(ctx, true, func(x *txn) (err error) {
		if s, err = x.secret(t.id, name); err != nil {
			return err
		}
		if err := x.unused(op, t.id, name); err != nil {
			return err
		}
		_, err = x.exec(`DELETE FROM secrets WHERE tenant = ? AND name = ?`, string(t.id), name)
		return err
	})
	if err != nil {
		return Secret{}, fail(op, name, err)
	}
	s.Sealed = ""
	return s, nil
}

// unused refuses what bindings of the tenant need, naming some.
func (x *txn) unused(op string, tenant sandbox.TenantID, name string) error {
	users, err := x.names(`SELECT name FROM bindings WHERE tenant = ? AND secret = ? ORDER BY name LIMIT 5`, string(tenant), name)
	if err != nil || len(users) == 0 {
		return err
	}
	what := "the binding " + users[0]
	if len(users) > 1 {
		what = "the bindings " + strings.Join(users[:min(len(users), 4)], ", ")
	}
	if len(users) > 4 {
		what += " and others"
	}
	return sandbox.Errorf(op, sandbox.KindConflict, "it is used by %s", what).WithID(name).
		WithHint("remove those first, with `firebreak binding rm`, or let them use another secret")
}

// names runs a query for one column of text.
func (x *txn) names(q string, args ...any) (list []string, err error) {
	st, err := x.w.stmt(q)
	if err != nil {
		return nil, err
	}
	rs, err := st.Query(args...)
	if err != nil {
		return nil, err
	}
	defer rs.Close()
	for rs.Next() {
		var s string
		if err := rs.Scan(&s); err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, rs.Err()
}
