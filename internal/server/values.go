package server

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxValues bounds how many values a request may hold. Two bytes of JSON, or of
// protobuf, can become a message of a hundred: a body within its size could
// still cost gigabytes to decode and minutes to check. No request of ours comes
// near; what is large in them is text.
const maxValues = 100_000

func errCrowded() *sandbox.Error {
	return sandbox.Errorf("read request", sandbox.KindInvalid, "the request holds more than %d values", maxValues).
		WithHint("store many files with PUT /v1/sandboxes/{id}/files?path=…, or as one archive")
}

// countJSON refuses a body with too many values before it is decoded. It counts
// what separates values, and needs no valid JSON.
func countJSON(body []byte) error {
	n, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '{' || c == '['):
			if n++; n > maxValues {
				return errCrowded()
			}
		}
	}
	return nil
}

// countProto is countJSON for protobuf: it counts the fields of a message of
// type md and, to the depth we allow, of those in it.
func countProto(b []byte, md protoreflect.MessageDescriptor) error {
	left := maxValues
	var walk func([]byte, protoreflect.MessageDescriptor, int) error
	walk = func(b []byte, md protoreflect.MessageDescriptor, depth int) error {
		if depth > maxNesting {
			return invalidf("the message nests more than %d deep", maxNesting)
		}
		for len(b) > 0 {
			if left--; left < 0 {
				return errCrowded()
			}
			num, kind, n := protowire.ConsumeTag(b)
			if n < 0 {
				return nil // not ours to explain: decoding fails
			}
			size := protowire.ConsumeFieldValue(num, kind, b[n:])
			if size < 0 {
				return nil
			}
			fd := md.Fields().ByNumber(num)
			if value := b[n : n+size]; fd != nil && fd.Message() != nil && kind == protowire.BytesType {
				inner, _ := protowire.ConsumeBytes(value)
				if err := walk(inner, fd.Message(), depth+1); err != nil {
					return err
				}
			}
			b = b[n+size:]
		}
		return nil
	}
	return walk(b, md, 0)
}

// strictProto is Connect's protobuf codec for messages that are not crowded.
type strictProto struct{}

// Name implements connect.Codec.
func (strictProto) Name() string { return "proto" }

// Marshal implements connect.Codec.
func (strictProto) Marshal(v any) ([]byte, error) { return strictProto{}.MarshalAppend(nil, v) }

// MarshalAppend is Marshal into a buffer, which Connect prefers.
func (strictProto) MarshalAppend(b []byte, v any) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, errors.New("not a protobuf message")
	}
	return proto.MarshalOptions{}.MarshalAppend(b, m)
}

// Unmarshal implements connect.Codec.
func (strictProto) Unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return errors.New("not a protobuf message")
	}
	if err := countProto(b, m.ProtoReflect().Descriptor()); err != nil {
		return err
	}
	return proto.Unmarshal(b, m)
}
