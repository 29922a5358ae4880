package store

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// now is the clock of records: UTC and without the monotonic reading, so that
// what a write returns equals what a read returns.
func now() time.Time { return time.Now().UTC().Round(0) }

// nanos is how a time is stored in a column.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// Bounds on what a caller names and tags.
const (
	maxName      = 64
	maxMetadata  = 64
	maxMetaKey   = 128
	maxMetaValue = 1024
	maxBody      = 1 << 20
)

func (sb *Sandbox) check(op string) error {
	bad := func(format string, args ...any) error {
		return sandbox.Errorf(op, sandbox.KindInvalid, format, args...).WithID(string(sb.ID))
	}
	switch {
	case !sb.Tenant.Valid():
		return bad("malformed tenant id %q", sb.Tenant)
	case !sb.ID.Valid():
		return bad("malformed sandbox id %q", sb.ID)
	case sb.Instance != "" && !sb.Instance.Valid():
		return bad("malformed instance id %q", sb.Instance)
	case !slices.Contains(stateOrder, sb.State):
		return bad("unknown state %q", sb.State)
	case len(sb.Name) > maxName || !utf8.ValidString(sb.Name):
		return bad("the name is longer than %d bytes or not UTF-8", maxName)
	case len(sb.Metadata) > maxMetadata:
		return bad("more than %d metadata entries", maxMetadata)
	}
	for k, v := range sb.Metadata {
		if k == "" || len(k) > maxMetaKey || len(v) > maxMetaValue || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return bad("metadata key %.40q or its value is empty, too long or not UTF-8", k).(*sandbox.Error).
				WithHint("keys have 1 to %d bytes, values at most %d", maxMetaKey, maxMetaValue)
		}
	}
	return nil
}

// normal returns sb with its times as they are read back.
func (sb Sandbox) normal() Sandbox {
	for _, t := range []*time.Time{&sb.ExpiresAt, &sb.Created, &sb.Started, &sb.Ended} {
		*t = t.Round(0).UTC()
	}
	return sb
}

// clone returns a copy that shares nothing that can change.
func (sb Sandbox) clone() Sandbox {
	sb.Metadata = maps.Clone(sb.Metadata)
	sb.Extra = slices.Clone(sb.Extra)
	if sb.Exit != nil {
		e := *sb.Exit
		sb.Exit = &e
	}
	if sb.Receipt != nil {
		r := *sb.Receipt
		r.Objects = slices.Clone(r.Objects)
		sb.Receipt = &r
	}
	return sb
}

const selectSandbox = `SELECT tenant, version, body FROM sandboxes`

// sandboxRow receives what selectSandbox selects.
type sandboxRow struct {
	tenant  string
	version int64
	body    []byte
}

func (r *sandboxRow) dest() []any { return []any{&r.tenant, &r.version, &r.body} }

func (r *sandboxRow) sandbox() (Sandbox, error) {
	var sb Sandbox
	if err := json.Unmarshal(r.body, &sb); err != nil {
		return Sandbox{}, sandbox.Errorf("read sandbox", sandbox.KindInternal, "damaged record: %w", err)
	}
	sb.Tenant, sb.Version = sandbox.TenantID(r.tenant), r.version
	return sb, nil
}

func (sb *Sandbox) body() (string, error) { return encodeBody(sb) }

func encodeBody(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", sandbox.Errorf("store", sandbox.KindInvalid, "the record is no JSON: %w", err)
	}
	if len(b) > maxBody {
		return "", sandbox.Errorf("store", sandbox.KindTooLarge, "the record has %d bytes, at most %d are kept", len(b), maxBody)
	}
	return string(b), nil
}

func (x *txn) insertSandbox(sb *Sandbox) error {
	body, err := sb.body()
	if err != nil {
		return err
	}
	if _, err := x.exec(`INSERT INTO sandboxes
		(tenant, id, version, state, name, instance, reason, created, expires, ended, body)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		string(sb.Tenant), string(sb.ID), sb.Version, string(sb.State), sb.Name, string(sb.Instance),
		string(sb.Reason), nanos(sb.Created), nanos(sb.ExpiresAt), nanos(sb.Ended), body); err != nil {
		return err
	}
	x.wrote(sb, body)
	return x.insertMetadata(sb)
}

func (x *txn) updateSandbox(sb, old *Sandbox) error {
	body, err := sb.body()
	if err != nil {
		return err
	}
	if _, err := x.exec(`UPDATE sandboxes
		SET version = ?, state = ?, name = ?, instance = ?, reason = ?, expires = ?, ended = ?, body = ?
		WHERE tenant = ? AND id = ?`,
		sb.Version, string(sb.State), sb.Name, string(sb.Instance), string(sb.Reason),
		nanos(sb.ExpiresAt), nanos(sb.Ended), body, string(sb.Tenant), string(sb.ID)); err != nil {
		return err
	}
	x.wrote(sb, body)
	if maps.Equal(sb.Metadata, old.Metadata) {
		return nil
	}
	if _, err := x.exec(`DELETE FROM sandbox_metadata WHERE tenant = ? AND sandbox = ?`,
		string(sb.Tenant), string(sb.ID)); err != nil {
		return err
	}
	return x.insertMetadata(sb)
}

func (x *txn) insertMetadata(sb *Sandbox) error {
	for k, v := range sb.Metadata {
		if _, err := x.exec(`INSERT INTO sandbox_metadata (tenant, sandbox, name, value) VALUES (?, ?, ?, ?)`,
			string(sb.Tenant), string(sb.ID), k, v); err != nil {
			return err
		}
	}
	return nil
}

// anyState adds "and state is one of states".
func anyState(q *strings.Builder, args *[]any, states []State) {
	if len(states) == 0 {
		return
	}
	if !slices.Contains(states, Ended) {
		// Says nothing new, but lets SQLite use the index of the living, which
		// are few among the dead.
		q.WriteString(` AND state <> 'ended'`)
	}
	q.WriteString(` AND state IN (?` + strings.Repeat(`, ?`, len(states)-1) + `)`)
	for _, s := range states {
		*args = append(*args, string(s))
	}
}
