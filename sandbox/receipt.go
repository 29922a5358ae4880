package sandbox

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Receipt is the checked list of everything an instance owned.
type Receipt struct {
	Instance InstanceID
	Objects  []Object
	Clean    bool // every object is gone
	Time     time.Time
}

// Object is one host object and the result of looking for it after removal.
type Object struct {
	// Kind is one of process, namespace, cgroup, mount, link, directory, file,
	// socket, fifo, token; a backend that makes something else names it.
	Kind string
	// Name is its identity: a path or a number, enough to look for it again. A
	// process is "pid@start", start in clock ticks since boot; a namespace is
	// "type:[inode]".
	Name    string
	Gone    bool
	Check   string    // how it was looked for
	Checked time.Time // when
	Detail  string    // why it is still there
}

// Seal sets Clean from Objects and Time to now, and returns the receipt.
func (r Receipt) Seal() Receipt {
	r.Clean = true
	for _, o := range r.Objects {
		r.Clean = r.Clean && o.Gone
	}
	r.Time = time.Now().UTC()
	return r
}

// Digest is the SHA-256, in hex, of Canonical: what the audit record
// "sandbox.receipt" carries.
func (r Receipt) Digest() string {
	sum := sha256.Sum256(r.Canonical())
	return hex.EncodeToString(sum[:])
}

// Canonical is the receipt as the REST API returns it, brought into the one form
// of RFC 8785: members sorted by name, no space, nothing escaped that need not
// be. Times are RFC 3339 in UTC with the nanoseconds that are not zero; one that
// is not set is left out. Whoever has the answer of the API can make the same
// bytes again:
//
//	jq -jcS .receipt | sha256sum
//
// Receipts of records before version 2 of the log had another digest.
func (r Receipt) Canonical() []byte {
	b := fmt.Appendf(nil, `{"clean":%t,"instance":`, r.Clean)
	b = appendCanonical(b, string(r.Instance))
	b = append(b, `,"objects":[`...)
	for i, o := range r.Objects {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendCanonical(append(b, `{"check":`...), o.Check)
		b = appendTime(b, `,"checked_at":`, o.Checked)
		b = appendCanonical(append(b, `,"detail":`...), o.Detail)
		b = fmt.Appendf(b, `,"gone":%t,"kind":`, o.Gone)
		b = appendCanonical(b, o.Kind)
		b = appendCanonical(append(b, `,"name":`...), o.Name)
		b = append(b, '}')
	}
	b = append(b, ']')
	return append(appendTime(b, `,"time":`, r.Time), '}')
}

func appendTime(b []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	return append(t.UTC().AppendFormat(append(append(b, key...), '"'), time.RFC3339Nano), '"')
}

// appendCanonical appends s as RFC 8785 writes strings. What is not UTF-8 is
// replaced, as on every surface.
func appendCanonical(b []byte, s string) []byte {
	const short = "\b\t\n\f\r"
	b = append(b, '"')
	for _, c := range []byte(strings.ToValidUTF8(s, "\uFFFD")) {
		switch i := strings.IndexByte(short, c); {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case i >= 0:
			b = append(b, '\\', "btnfr"[i])
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
