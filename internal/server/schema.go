package server

import (
	"maps"
	"slices"
	"strings"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// request returns the schema of in as a body, without the fields the path
// carries.
func (d *document) request(in protoreflect.MessageDescriptor, inPath []string) object {
	return d.message(in, inPath, true)
}

// response returns the schema of out as an answer.
func (d *document) response(out protoreflect.MessageDescriptor) object {
	return d.message(out, nil, false)
}

// message enters md among the schemas and returns a reference to it. Requests
// take nothing else; answers hold every field that has no presence.
func (d *document) message(md protoreflect.MessageDescriptor, without []string, request bool) object {
	name := string(md.Name())
	ref := object{"$ref": "#/components/schemas/" + name}
	if d.schemas[name] != nil {
		return ref
	}
	schema := object{"type": "object"}
	d.schemas[name] = schema
	if c := d.comments[md.FullName()]; c != "" {
		schema["description"] = c
	}
	properties := object{}
	var required []string
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		key := string(fd.Name())
		if slices.Contains(without, key) {
			continue
		}
		property := d.property(fd, request)
		switch rules := ruleOf(fd); {
		case isDocument(fd):
			key = strings.TrimSuffix(key, "_json")
			property = object{"description": "A JSON value; null if there is none."}
			if key == "result" {
				property = object{"description": "What the program reported with firebreak.result, decoded; null if nothing."}
			}
			required = append(required, key)
		case request && rules.GetRequired(), !request && !fd.HasPresence():
			required = append(required, key)
		}
		if c := d.comments[fd.FullName()]; c != "" && key != "result" {
			property["description"] = c
		}
		if hidden(fd) {
			property["writeOnly"] = true
		}
		properties[key] = property
	}
	if len(properties) > 0 {
		schema["properties"] = properties
	}
	if request {
		schema["additionalProperties"] = false
	}
	if required != nil {
		schema["required"] = required
	}
	return ref
}

// property describes a field: a list, a map or one value.
func (d *document) property(fd protoreflect.FieldDescriptor, request bool) object {
	if fd.Message() != nil && !fd.IsMap() && fd.Message().FullName() != "google.protobuf.Timestamp" {
		// A description may stand beside a reference since 3.1.
		ref := d.message(fd.Message(), nil, request)
		if fd.IsList() {
			return object{"type": "array", "items": ref}
		}
		return maps.Clone(ref)
	}
	return d.field(fd)
}

// field describes a field without messages of ours in it.
func (d *document) field(fd protoreflect.FieldDescriptor) object {
	rules := ruleOf(fd)
	switch {
	case fd.IsMap():
		s := object{"type": "object", "additionalProperties": scalar(fd.MapValue(), rules.GetMap().GetValues())}
		if n := rules.GetMap().GetMaxPairs(); n > 0 {
			s["maxProperties"] = n
		}
		if keys := scalar(fd.MapKey(), rules.GetMap().GetKeys()); len(keys) > 1 {
			s["propertyNames"] = keys
		}
		return s
	case fd.IsList():
		s := object{"type": "array", "items": scalar(fd, rules.GetRepeated().GetItems())}
		if n := rules.GetRepeated().GetMaxItems(); n > 0 {
			s["maxItems"] = n
		}
		return s
	}
	return scalar(fd, rules)
}

// scalar describes one value with the rules the proto gives it.
func scalar(fd protoreflect.FieldDescriptor, rules *validate.FieldRules) object {
	s := object{}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		s["type"] = "boolean"
	case protoreflect.StringKind:
		s["type"] = "string"
		stringRules(s, rules.GetString())
	case protoreflect.BytesKind:
		s["type"], s["contentEncoding"] = "string", "base64"
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		s["type"] = "number"
		if r := rules.GetDouble(); r.HasGt() {
			s["exclusiveMinimum"] = r.GetGt()
		}
	case protoreflect.MessageKind:
		s["type"], s["format"] = "string", "date-time"
	case protoreflect.Int32Kind:
		s["type"], s["format"] = "integer", "int32"
		r := rules.GetInt32()
		integerRules(s, r.HasGte(), int64(r.GetGte()), r.HasGt(), int64(r.GetGt()), r.HasLte(), int64(r.GetLte()))
	default:
		s["type"], s["format"] = "integer", "int64"
		r := rules.GetInt64()
		integerRules(s, r.HasGte(), r.GetGte(), r.HasGt(), r.GetGt(), r.HasLte(), r.GetLte())
	}
	return s
}

func integerRules(s object, hasGte bool, gte int64, hasGt bool, gt int64, hasLte bool, lte int64) {
	if hasGte {
		s["minimum"] = gte
	}
	if hasGt {
		s["exclusiveMinimum"] = gt
	}
	if hasLte {
		s["maximum"] = lte
	}
}

func stringRules(s object, r *validate.StringRules) {
	if n := r.GetMinLen(); n > 0 {
		s["minLength"] = n
	}
	if n := r.GetMaxLen(); n > 0 {
		s["maxLength"] = n
	}
	if n := r.GetMaxBytes(); n > 0 {
		s["maxLength"] = n // bytes: at most that many characters
	}
	if p := r.GetPattern(); p != "" {
		s["pattern"] = p
	}
	if in := r.GetIn(); len(in) > 0 {
		s["enum"] = in
	}
}

// ruleOf returns the protovalidate rules of a field, or nil.
func ruleOf(fd protoreflect.FieldDescriptor) *validate.FieldRules {
	rules, _ := proto.GetExtension(fd.Options(), validate.E_Field).(*validate.FieldRules)
	return rules
}

func sortedKinds() []sandbox.Kind { return slices.Sorted(maps.Keys(codes)) }
