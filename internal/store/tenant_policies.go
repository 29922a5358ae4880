package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const selectPolicy = `SELECT tenant, name, version, digest, created, updated, principal, body FROM policies`

func scanPolicy(scan func(...any) error) (Policy, error) {
	var p Policy
	var tenant string
	var created, updated int64
	if err := scan(&tenant, &p.Name, &p.Version, &p.Digest, &created, &updated, &p.Principal, &p.Text); err != nil {
		return Policy{}, err
	}
	p.Tenant, p.Created, p.Updated = sandbox.TenantID(tenant), fromNanos(created), fromNanos(updated)
	return p, nil
}

// SetPolicy stores p durably under its name, in place of what was there, provided
// that what was there has the digest had: AnyDigest, NoDigest or one in hex.
//
// Errors: KindInvalid without a name or a text; KindTooLarge; KindConflict when
// something else was there; KindCapacity when the tenant has MaxPolicies.
func (t *Tenant) SetPolicy(ctx context.Context, p Policy, had string) (Policy, error) {
	const op = "set policy"
	sum := sha256.Sum256([]byte(p.Text))
	p.Tenant, p.Digest, p.Updated = t.id, hex.EncodeToString(sum[:]), now()
	switch {
	case !t.id.Valid() || p.Name == "" || len(p.Name) > maxPolicyName || p.Text == "":
		return Policy{}, sandbox.Errorf(op, sandbox.KindInvalid, "a policy needs a tenant, a name and a text").WithID(p.Name)
	case len(p.Text) > maxPolicyText:
		return Policy{}, sandbox.Errorf(op, sandbox.KindTooLarge, "the policy has %d bytes, at most %d are kept", len(p.Text), maxPolicyText).WithID(p.Name)
	}
	err := t.s.writer.do(ctx, true, func(x *txn) error {
		old, err := x.policy(t.id, p.Name)
		there := err == nil
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if had == NoDigest && there || had != NoDigest && had != AnyDigest && had != old.Digest {
			return sandbox.Errorf(op, sandbox.KindConflict, "the policy is not what it was expected to be").WithID(p.Name).
				WithHint("read it again and repeat with its digest")
		}
		if p.Version, p.Created = old.Version+1, old.Created; there {
			_, err = x.exec(`UPDATE policies SET version = ?, digest = ?, updated = ?, principal = ?, body = ? WHERE tenant = ? AND name = ?`,
				p.Version, p.Digest, nanos(p.Updated), p.Principal, p.Text, string(t.id), p.Name)
			return err
		}
		var n int
		if err := x.row([]any{&n}, `SELECT COUNT(*) FROM policies WHERE tenant = ?`, string(t.id)); err != nil {
			return err
		}
		if n >= MaxPolicies {
			return sandbox.Errorf(op, sandbox.KindCapacity, "the tenant has %d policies, the limit is %d", n, MaxPolicies).WithID(p.Name).
				WithHint("remove one that nobody needs: firebreak policy ls, firebreak policy rm")
		}
		p.Created = p.Updated
		_, err = x.exec(`INSERT INTO policies (tenant, name, version, digest, created, updated, principal, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			string(t.id), p.Name, p.Version, p.Digest, nanos(p.Created), nanos(p.Updated), p.Principal, p.Text)
		return err
	})
	if err != nil {
		return Policy{}, fail(op, p.Name, err)
	}
	return p, nil
}

func (x *txn) policy(tenant sandbox.TenantID, name string) (Policy, error) {
	return scanPolicy(func(dest ...any) error {
		return x.row(dest, selectPolicy+` WHERE tenant = ? AND name = ?`, string(tenant), name)
	})
}

// Policy returns one policy. Errors: KindNotFound.
func (t *Tenant) Policy(ctx context.Context, name string) (Policy, error) {
	p, err := scanPolicy(func(dest ...any) error {
		return t.s.row(ctx, dest, selectPolicy+` WHERE tenant = ? AND name = ?`, string(t.id), name)
	})
	return p, fail("get policy", name, err)
}

// ListPolicies returns all the tenant's policies by name, without their texts.
func (t *Tenant) ListPolicies(ctx context.Context) ([]Policy, error) {
	var list []Policy
	err := t.s.rows(ctx, func(rs *sql.Rows) error {
		p, err := scanPolicy(rs.Scan)
		list = append(list, p)
		return err
	}, `SELECT tenant, name, version, digest, created, updated, principal, '' FROM policies WHERE tenant = ? ORDER BY name`, string(t.id))
	return list, fail("list policies", "", err)
}

// RemovePolicy forgets a policy durably, and returns it. Errors: KindNotFound.
func (t *Tenant) RemovePolicy(ctx context.Context, name string) (Policy, error) {
	var p Policy
	err := t.s.writer.do(ctx, true, func(x *txn) (err error) {
		if p, err = x.policy(t.id, name); err == nil {
			_, err = x.exec(`DELETE FROM policies WHERE tenant = ? AND name = ?`, string(t.id), name)
		}
		return err
	})
	if err != nil {
		return Policy{}, fail("remove policy", name, err)
	}
	return p, nil
}
