package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// MarshalJSON gives the entry as one JSON object on one line that is safe to
// show: every control, formatting and line-separating character is escaped, so
// that no record can imitate another or talk to a terminal. Bytes that are not
// UTF-8 become U+FFFD; the log itself keeps them.
func (e Entry) MarshalJSON() ([]byte, error) {
	class := "gate"
	if e.Record.Class == sandbox.Flow {
		class = "flow"
	}
	boot := ""
	if e.Boot != [16]byte{} {
		boot = hex.EncodeToString(e.Boot[:])
	}
	r := e.Record
	b, err := json.Marshal(struct {
		Position  sandbox.Position   `json:"position"`
		Hash      string             `json:"hash"`
		Time      time.Time          `json:"time"`
		Boot      string             `json:"boot_id,omitempty"`
		Monotonic time.Duration      `json:"monotonic_ns,omitempty"`
		Previous  sandbox.Position   `json:"previous,omitempty"`
		Class     string             `json:"class"`
		Tenant    sandbox.TenantID   `json:"tenant"`
		Sandbox   sandbox.ID         `json:"sandbox_id,omitempty"`
		Instance  sandbox.InstanceID `json:"instance_id,omitempty"`
		Principal string             `json:"principal"`
		Action    string             `json:"action"`
		Outcome   sandbox.Outcome    `json:"outcome"`
		Reason    sandbox.Reason     `json:"reason,omitempty"`
		Policy    uint64             `json:"policy,omitempty"`
		Object    string             `json:"object,omitempty"`
		Digest    string             `json:"digest,omitempty"`
		Detail    map[string]string  `json:"detail,omitempty"`
	}{
		e.Position, hex.EncodeToString(e.Hash[:]), r.Time, boot, e.Monotonic, e.Previous, class, r.Tenant, r.Sandbox, r.Instance, r.Principal,
		r.Action, r.Outcome, r.Reason, r.Policy, r.Object, r.Digest, r.Detail,
	})
	if err != nil {
		return nil, err
	}
	return escape(b), nil
}

// escape writes as \uXXXX what JSON would let stand in a string and a terminal
// or a browser would act on. Outside strings JSON has only ASCII.
func escape(b []byte) []byte {
	var out bytes.Buffer
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r < 0x7f || !unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co):
			out.Write(b[:n])
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(&out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out.Bytes()
}
