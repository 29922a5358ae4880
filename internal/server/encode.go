package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The JSON profile, fixed once for every REST answer:
//
//   - snake_case, in the order of the proto;
//   - scalars, lists ([]) and maps ({}) always present;
//   - a message or an optional scalar that is not set is left out;
//   - 64-bit integers are numbers, bytes are base64, times RFC 3339 in UTC;
//   - a string called x_json appears as "x", decoded: null where there is none.

// isDocument reports whether a field is JSON that is written as what it says.
func isDocument(fd protoreflect.FieldDescriptor) bool {
	return fd.Kind() == protoreflect.StringKind && !fd.IsList() && strings.HasSuffix(string(fd.Name()), "_json")
}

// plan is how one message type is written.
type plan struct{ fields []fieldPlan }

type fieldPlan struct {
	fd    protoreflect.FieldDescriptor
	key   string // `"name":`
	write func([]byte, protoreflect.Value) []byte
	// optional fields are left out when not set.
	optional bool
}

var plans sync.Map // protoreflect.FullName → *plan

func planOf(md protoreflect.MessageDescriptor) *plan {
	if p, ok := plans.Load(md.FullName()); ok {
		return p.(*plan)
	}
	p := &plan{}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		name := string(fd.Name())
		f := fieldPlan{fd: fd, optional: fd.HasPresence()}
		switch {
		case isDocument(fd):
			name, f.write = strings.TrimSuffix(name, "_json"), func(b []byte, v protoreflect.Value) []byte { return appendRaw(b, v.String()) }
		case fd.IsMap():
			f.write = mapWriter(fd)
		case fd.IsList():
			f.write = listWriter(fd)
		default:
			f.write = scalarWriter(fd)
		}
		f.key = `"` + name + `":`
		p.fields = append(p.fields, f)
	}
	actual, _ := plans.LoadOrStore(md.FullName(), p)
	return actual.(*plan)
}

// appendMessage appends m in the JSON profile.
func appendMessage(b []byte, m proto.Message) []byte { return appendReflect(b, m.ProtoReflect()) }

func appendReflect(b []byte, m protoreflect.Message) []byte {
	b = append(b, '{')
	first := true
	for i, p := 0, planOf(m.Descriptor()); i < len(p.fields); i++ {
		f := &p.fields[i]
		if f.optional && !m.Has(f.fd) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, f.key...)
		b = f.write(b, m.Get(f.fd))
	}
	return append(b, '}')
}

func listWriter(fd protoreflect.FieldDescriptor) func([]byte, protoreflect.Value) []byte {
	item := scalarWriter(fd)
	return func(b []byte, v protoreflect.Value) []byte {
		b = append(b, '[')
		for i, l := 0, v.List(); i < l.Len(); i++ {
			if i > 0 {
				b = append(b, ',')
			}
			b = item(b, l.Get(i))
		}
		return append(b, ']')
	}
}

func mapWriter(fd protoreflect.FieldDescriptor) func([]byte, protoreflect.Value) []byte {
	item := scalarWriter(fd.MapValue())
	return func(b []byte, v protoreflect.Value) []byte {
		if v.Map().Len() == 0 {
			return append(b, "{}"...)
		}
		keys := make([]protoreflect.MapKey, 0, v.Map().Len())
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k)
			return true
		})
		slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return strings.Compare(a.String(), b.String()) })
		b = append(b, '{')
		for i, k := range keys {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, k.String()), ':')
			b = item(b, v.Map().Get(k))
		}
		return append(b, '}')
	}
}

// scalarWriter writes one value of fd: a scalar or a message.
func scalarWriter(fd protoreflect.FieldDescriptor) func([]byte, protoreflect.Value) []byte {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return func(b []byte, v protoreflect.Value) []byte { return strconv.AppendBool(b, v.Bool()) }
	case protoreflect.StringKind:
		return func(b []byte, v protoreflect.Value) []byte { return appendString(b, v.String()) }
	case protoreflect.BytesKind:
		return func(b []byte, v protoreflect.Value) []byte {
			return append(base64.StdEncoding.AppendEncode(append(b, '"'), v.Bytes()), '"')
		}
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return func(b []byte, v protoreflect.Value) []byte { return appendFloat(b, v.Float()) }
	case protoreflect.EnumKind:
		return func(b []byte, v protoreflect.Value) []byte {
			if e := fd.Enum().Values().ByNumber(v.Enum()); e != nil {
				return appendString(b, string(e.Name()))
			}
			return strconv.AppendInt(b, int64(v.Enum()), 10)
		}
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return func(b []byte, v protoreflect.Value) []byte { return strconv.AppendUint(b, v.Uint(), 10) }
	case protoreflect.MessageKind, protoreflect.GroupKind:
		if fd.Message().FullName() == "google.protobuf.Timestamp" {
			return appendTime
		}
		return func(b []byte, v protoreflect.Value) []byte { return appendReflect(b, v.Message()) }
	}
	return func(b []byte, v protoreflect.Value) []byte { return strconv.AppendInt(b, v.Int(), 10) }
}

func appendTime(b []byte, v protoreflect.Value) []byte {
	ts, ok := v.Message().Interface().(*timestamppb.Timestamp)
	if !ok || !ts.IsValid() { // outside years 1 to 9999
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = ts.AsTime().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// appendFloat writes f as encoding/json does; JSON has no NaN and no infinity.
func appendFloat(b []byte, f float64) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return append(b, "null"...)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(b, f, format, -1, 64)
}

// appendRaw embeds a JSON document that came from a sandbox. It is checked
// again, whoever checked it before, and put on one line: it travels in event
// streams, where a newline would end the event.
func appendRaw(b []byte, doc string) []byte {
	n := len(b)
	buf := bytes.NewBuffer(b)
	if doc == "" || json.Compact(buf, []byte(doc)) != nil || buf.Len() == n || !utf8.ValidString(doc) {
		return append(buf.Bytes()[:n], "null"...)
	}
	return buf.Bytes()
}

const hexDigits = "0123456789abcdef"

// appendString writes s as a JSON string. Invalid UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte { return append(appendEscaped(append(b, '"'), s), '"') }

// appendEscaped appends the inside of a JSON string.
func appendEscaped(b []byte, s string) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r != utf8.RuneError || size > 1 {
				if r != '\u2028' && r != '\u2029' { // line ends in JavaScript
					i += size
					continue
				}
				b = append(append(b, s[start:i]...), `\u202`...)
				b = append(b, hexDigits[r&15])
			} else {
				b = append(append(b, s[start:i]...), `\ufffd`...)
			}
			i += size
			start = i
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}

// valid replaces what is not UTF-8, for protobuf strings.
func valid(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
