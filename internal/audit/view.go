package audit

import "encoding/binary"

// view is a payload taken apart where it lies: nothing is copied. Verification
// reads every record, and looks into few.
type view struct {
	position uint64
	previous uint64 // of the same sandbox; 0 in version 1, which has no links
	version  byte
	fields   [9][]byte // in the order of the format
	details  []byte    // (key | value)*
}

// Places of the fields that verification looks at.
const (
	fieldTenant  = 0
	fieldSandbox = 1
	fieldAction  = 4
	fieldObject  = 7
	fieldDigest  = 8
)

// viewPayload takes b apart; it accepts exactly what decodePayload does.
func viewPayload(b []byte, v *view) bool {
	*v = view{version: payloadVersion(b)}
	if v.version == 0 || len(b) > MaxRecord {
		return false
	}
	v.position = binary.BigEndian.Uint64(b[positionOff:])
	class, mono := oldClassOff, int64(0)
	if v.version != oldVersion {
		class, mono = classOff, int64(binary.BigEndian.Uint64(b[monoOff:]))
		v.previous = binary.BigEndian.Uint64(b[previousOff:])
	}
	if v.position == 0 || v.previous >= v.position || mono < 0 || b[class] > 1 {
		return false
	}
	b = b[class+1:]
	ok := true
	for i := range v.fields {
		v.fields[i], b, ok = cutBytes(b, ok)
	}
	if !ok || len(b) < 4 || len(v.fields[fieldSandbox]) == 0 && v.previous != 0 {
		return false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	v.details = b
	var k, last []byte
	for i := range n {
		k, b, ok = cutBytes(b, ok)
		_, b, ok = cutBytes(b, ok)
		if !ok || i > 0 && string(k) <= string(last) {
			return false
		}
		last = k
	}
	return len(b) == 0
}

// detail is the value of a key, or "".
func (v *view) detail(key string) string {
	for b := v.details; len(b) > 0; {
		k, rest, ok := cutBytes(b, true)
		value, rest, _ := cutBytes(rest, ok)
		if string(k) == key {
			return string(value)
		}
		b = rest
	}
	return ""
}

func (v *view) is(action string) bool { return string(v.fields[fieldAction]) == action }
