package server

import (
	"encoding/base64"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	largeAnswer = 1 << 20  // bytes of a message that is sent in pieces
	largePiece  = 48 << 10 // bytes of a value in one piece; base64 wants a multiple of 3
)

// answerLarge sends m piece by piece: escaping can make six bytes of one, and
// no answer may cost the memory of its JSON on top of its own.
func (x *exchange) answerLarge(m protoreflect.Message) error {
	h := x.Header()
	h["Content-Type"], h["Cache-Control"] = contentJSON, noStore
	x.WriteHeader(x.op.success)
	p := &pieces{x: x, b: []byte{'{'}}
	first := true
	for i, plan := 0, planOf(m.Descriptor()); i < len(plan.fields); i++ {
		f := &plan.fields[i]
		if f.optional && !m.Has(f.fd) {
			continue
		}
		if !first {
			p.b = append(p.b, ',')
		}
		first = false
		p.b = append(p.b, f.key...)
		p.field(f, m.Get(f.fd))
		p.flush()
	}
	p.b = append(p.b, "}\n"...)
	p.flush()
	return p.err
}

// pieces sends a document as it grows. After an error it sends nothing more.
type pieces struct {
	x   *exchange
	b   []byte
	err error
}

func (p *pieces) flush() {
	if p.err == nil {
		p.x.extendWrite(writeTimeout)
		_, p.err = p.x.Write(p.b)
	}
	p.b = p.b[:0]
}

func (p *pieces) field(f *fieldPlan, v protoreflect.Value) {
	single := f.fd.Cardinality() != protoreflect.Repeated && !isDocument(f.fd)
	switch {
	case single && f.fd.Kind() == protoreflect.StringKind:
		p.text(v.String())
	case single && f.fd.Kind() == protoreflect.BytesKind:
		p.b = append(p.b, '"')
		b := v.Bytes()
		for ; len(b) > largePiece; b = b[largePiece:] {
			p.b = base64.StdEncoding.AppendEncode(p.b, b[:largePiece])
			p.flush()
		}
		p.b = append(base64.StdEncoding.AppendEncode(p.b, b), '"')
	default:
		p.b = f.write(p.b, v)
	}
}

// text sends a string, cut between characters.
func (p *pieces) text(s string) {
	p.b = append(p.b, '"')
	for len(s) > largePiece {
		n := largePiece
		for n > largePiece-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		p.b = appendEscaped(p.b, s[:n])
		s = s[n:]
		p.flush()
	}
	p.b = append(appendEscaped(p.b, s), '"')
}
