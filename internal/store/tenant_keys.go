package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const selectKey = `SELECT id, tenant, name, hash, role, scopes, created, last_used, expires, revoked FROM api_keys`

func scanKey(scan func(...any) error) (Key, error) {
	var k Key
	var tenant, hash, scopes string
	var created, lastUsed, expires, revoked int64
	if err := scan(&k.ID, &tenant, &k.Name, &hash, &k.Role, &scopes, &created, &lastUsed, &expires, &revoked); err != nil {
		return Key{}, err
	}
	if n, err := hex.Decode(k.Hash[:], []byte(hash)); len(hash) != 64 || err != nil || n != 32 {
		return Key{}, sandbox.Errorf("read key", sandbox.KindInternal, "damaged record").WithID(k.ID)
	}
	k.Tenant = sandbox.TenantID(tenant)
	if scopes != "" {
		k.Scopes = strings.Fields(scopes)
	}
	k.Created, k.LastUsed = fromNanos(created), fromNanos(lastUsed)
	k.Expires, k.Revoked = fromNanos(expires), fromNanos(revoked)
	return k, nil
}

// CreateKey inserts k durably. Errors: KindInvalid without id, role or hash;
// KindExists when the id is taken, in any tenant.
func (t *Tenant) CreateKey(ctx context.Context, k Key) (Key, error) {
	const op = "create key"
	k.Tenant = t.id
	if k.Created.IsZero() {
		k.Created = now()
	}
	if !t.id.Valid() || k.ID == "" || k.Role == "" || k.Hash == [32]byte{} {
		return Key{}, sandbox.Errorf(op, sandbox.KindInvalid, "a key needs a tenant, an id, a role and a hash").WithID(k.ID)
	}
	err := t.s.writer.do(ctx, true, func(x *txn) error {
		taken, err := x.exists(`SELECT 1 FROM api_keys WHERE id = ?`, k.ID)
		if err != nil {
			return err
		}
		if taken {
			return sandbox.Errorf(op, sandbox.KindExists, "the key id is taken").WithID(k.ID)
		}
		_, err = x.exec(`INSERT INTO api_keys
			(tenant, id, name, hash, role, scopes, created, last_used, expires, revoked)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, string(t.id), k.ID, k.Name, hex.EncodeToString(k.Hash[:]),
			k.Role, strings.Join(k.Scopes, " "), nanos(k.Created), nanos(k.LastUsed), nanos(k.Expires), nanos(k.Revoked))
		return err
	})
	if err != nil {
		return Key{}, fail(op, k.ID, err)
	}
	return k, nil
}

// Key returns one key, revoked ones included. Errors: KindNotFound.
func (t *Tenant) Key(ctx context.Context, id string) (Key, error) {
	k, err := scanKey(func(dest ...any) error {
		return t.s.row(ctx, dest, selectKey+` WHERE tenant = ? AND id = ?`, string(t.id), id)
	})
	return k, fail("get key", id, err)
}

// ListKeys returns all the tenant's keys, revoked ones included, oldest first.
func (t *Tenant) ListKeys(ctx context.Context) ([]Key, error) {
	var list []Key
	err := t.s.rows(ctx, func(rs *sql.Rows) error {
		k, err := scanKey(rs.Scan)
		list = append(list, k)
		return err
	}, selectKey+` WHERE tenant = ? ORDER BY created, id`, string(t.id))
	return list, fail("list keys", "", err)
}

// RevokeKey marks a key revoked, durably, and returns it; again: no change.
// Errors: KindNotFound. Callers use auth.Authenticator.RevokeKey, which also
// forgets what it had verified.
func (t *Tenant) RevokeKey(ctx context.Context, id string) (Key, error) {
	var k Key
	err := t.s.writer.do(ctx, true, func(x *txn) error {
		if _, err := x.exec(`UPDATE api_keys SET revoked = ? WHERE tenant = ? AND id = ? AND revoked = 0`,
			now().UnixNano(), string(t.id), id); err != nil {
			return err
		}
		var err error
		k, err = scanKey(func(dest ...any) error {
			return x.row(dest, selectKey+` WHERE tenant = ? AND id = ?`, string(t.id), id)
		})
		return err
	})
	if err != nil {
		return Key{}, fail("revoke key", id, err)
	}
	return k, nil
}

// TouchKey moves LastUsed forward to at; an older at changes nothing. It costs
// no flush. Errors: KindNotFound.
func (t *Tenant) TouchKey(ctx context.Context, id string, at time.Time) error {
	err := t.s.writer.do(ctx, false, func(x *txn) error {
		n, err := x.exec(`UPDATE api_keys SET last_used = CASE WHEN last_used < ? THEN ? ELSE last_used END
			WHERE tenant = ? AND id = ?`, nanos(at), nanos(at), string(t.id), id)
		if err == nil && n == 0 {
			err = sql.ErrNoRows
		}
		return err
	})
	return fail("touch key", id, err)
}
