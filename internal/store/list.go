package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// pageToken says where the next page begins and for which question.
type pageToken struct {
	Created int64  `json:"c"` // of the last row given out
	ID      string `json:"i"`
	Filter  []byte `json:"f"` // digest of the question
}

func (p pageToken) encode() string {
	b, _ := json.Marshal(p) // cannot fail: numbers, strings and bytes
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeToken(s string, filter []byte) (pageToken, error) {
	var p pageToken
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil || !slices.Equal(p.Filter, filter) {
		return p, sandbox.Errorf("list", sandbox.KindInvalid, "the page token does not belong to this list").
			WithHint("start without page_token, and keep the other parameters the same from page to page")
	}
	return p, nil
}

func (p Page) size() (int, error) {
	switch {
	case p.Size < 0:
		return 0, sandbox.Errorf("list", sandbox.KindInvalid, "page size %d is negative", p.Size)
	case p.Size == 0:
		return DefaultPageSize, nil
	}
	return min(p.Size, MaxPageSize), nil
}

// digest identifies the question a page token belongs to.
func digest(kind string, tenant sandbox.TenantID, v any) []byte {
	b, _ := json.Marshal(v) // maps are written in key order
	sum := sha256.Sum256(append([]byte(kind+"\x00"+string(tenant)+"\x00"), b...))
	return sum[:8]
}

// ListSandboxes returns one page of the tenant's sandboxes, newest first, and
// the token of the next page, which is empty on the last one. Rows made
// meanwhile never shift a page: each sandbox that exists throughout and
// matches throughout appears exactly once.
//
// Errors: KindInvalid for an unknown state, a negative size, or a token of
// another list.
func (t *Tenant) ListSandboxes(ctx context.Context, f Filter, p Page) ([]Sandbox, string, error) {
	const op = "list sandboxes"
	for _, s := range f.States {
		if !slices.Contains(stateOrder, s) {
			return nil, "", sandbox.Errorf(op, sandbox.KindInvalid, "unknown state %q", s).
				WithHint("one of creating, running, stopping, ended")
		}
	}
	size, err := p.size()
	if err != nil {
		return nil, "", err
	}
	var q strings.Builder
	q.WriteString(selectSandbox + ` WHERE tenant = ?`)
	args := []any{string(t.id)}
	filter := digest("sandboxes", t.id, f)
	if p.Token != "" {
		tok, err := decodeToken(p.Token, filter)
		if err != nil {
			return nil, "", err
		}
		q.WriteString(` AND (created, id) < (?, ?)`)
		args = append(args, tok.Created, tok.ID)
	}
	anyState(&q, &args, f.States)
	if f.Name != "" {
		q.WriteString(` AND name = ?`)
		args = append(args, f.Name)
	}
	for _, k := range slices.Sorted(maps.Keys(f.Metadata)) {
		q.WriteString(` AND EXISTS (SELECT 1 FROM sandbox_metadata m
			WHERE m.tenant = sandboxes.tenant AND m.sandbox = sandboxes.id AND m.name = ? AND m.value = ?)`)
		args = append(args, k, f.Metadata[k])
	}
	q.WriteString(` ORDER BY created DESC, id DESC LIMIT ?`)
	list, err := t.s.sandboxes(ctx, q.String(), append(args, size+1)...)
	if err != nil {
		return nil, "", fail(op, "", err)
	}
	if len(list) <= size {
		return list, "", nil
	}
	list = list[:size]
	last := list[size-1]
	return list, pageToken{nanos(last.Created), string(last.ID), filter}.encode(), nil
}

// sandboxes runs a query that begins with selectSandbox.
func (s *Store) sandboxes(ctx context.Context, q string, args ...any) ([]Sandbox, error) {
	var list []Sandbox
	err := s.rows(ctx, func(rs *sql.Rows) error {
		var r sandboxRow
		if err := rs.Scan(r.dest()...); err != nil {
			return err
		}
		sb, err := r.sandbox()
		list = append(list, sb)
		return err
	}, q, args...)
	return list, err
}
