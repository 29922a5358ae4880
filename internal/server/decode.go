package server

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	maxJSON = 8 << 20 // bytes of a JSON body or of one Connect message
	// maxNesting of a request. Our messages nest five deep at most.
	maxNesting = 32
)

// readBody reads a JSON body to its end, under the deadline ServeHTTP has set.
func readBody(r *http.Request) ([]byte, error) {
	if r.ContentLength > maxJSON {
		return nil, errTooLarge()
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, invalidf("content encoding %q is not understood", valid(e)).WithHint("send the body as it is")
	}
	if r.ContentLength == 0 {
		return nil, nil
	}
	body, err := readAll(io.LimitReader(r.Body, maxJSON+1), r.ContentLength)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &httpError{errSlowBody(), http.StatusRequestTimeout}
	case err != nil:
		return nil, &sandbox.Error{Op: "read request", Kind: sandbox.KindCanceled, Err: errors.New("the request body ended early")}
	case len(body) > maxJSON:
		return nil, errTooLarge()
	}
	return body, nil
}

// readAll is io.ReadAll into a buffer of the announced size.
func readAll(r io.Reader, size int64) ([]byte, error) {
	b := make([]byte, 0, min(max(size, 512), 64<<10)+1) // +1: the read that finds EOF
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		if len(b) == cap(b) {
			b = slices.Grow(b, cap(b))
		}
	}
}

func errTooLarge() *sandbox.Error {
	return sandbox.Errorf("read request", sandbox.KindTooLarge, "the request is over %s", sandbox.FormatSize(maxJSON)).
		WithHint("store large content with PUT /v1/sandboxes/{id}/files?path=…, which takes raw bodies of any size")
}

func errSlowBody() *sandbox.Error {
	return sandbox.Errorf("read request", sandbox.KindTimeout, "the request body did not arrive in time").
		WithHint("send the whole body within %s", bodyTimeout)
}

// invalidf is the error of a malformed request, with a hint that always fits.
func invalidf(format string, args ...any) *sandbox.Error {
	return sandbox.Errorf("read request", sandbox.KindInvalid, format, args...).
		WithHint("/openapi.json describes what each route takes")
}

// decodeJSON reads body into m, strictly. An empty body is {}.
func decodeJSON(body []byte, m proto.Message) error {
	if len(strings.TrimSpace(string(body[:min(len(body), 64)]))) == 0 && strings.TrimSpace(string(body)) == "" {
		return nil
	}
	if err := countJSON(body); err != nil {
		return err
	}
	err := protojson.UnmarshalOptions{RecursionLimit: maxNesting}.Unmarshal(body, m)
	if err == nil {
		return nil
	}
	return explainJSON(err, m.ProtoReflect().Descriptor())
}

var (
	reUnknownField = regexp.MustCompile(`unknown field "((?:[^"\\]|\\.)*)"`)
	reJSONName     = regexp.MustCompile(`\bfield [a-z][a-zA-Z0-9]*`)
	rePlace        = regexp.MustCompile(`\(line \d+:\d+\)`)
	rePosition     = regexp.MustCompile(`^(?:syntax error )?\(line \d+:\d+\): `)
)

// explainJSON says in our words what protojson found wrong.
func explainJSON(err error, md protoreflect.MessageDescriptor) error {
	// protobuf varies its text on purpose: sometimes the space is not a space.
	text := strings.ReplaceAll(valid(err.Error()), "\u00a0", " ")
	text = strings.TrimPrefix(text, "proto: ")
	if secretive(md) {
		return explainNothing(text, md)
	}
	if m := reUnknownField.FindStringSubmatch(text); m != nil {
		return misplaced(unknownField(m[1], fieldNames(md)), m[1], md)
	}
	text = reJSONName.ReplaceAllStringFunc(text, snakeCase)
	position := rePosition.FindString(text)
	text = strings.TrimPrefix(text, position)
	position = strings.TrimSuffix(strings.TrimPrefix(position, "syntax error "), ": ")
	if position != "" {
		text += " " + position
	}
	return invalidf("the body is not the JSON that was expected: %s", clip(text, 300)).
		WithHint("send one JSON object; /openapi.json describes its fields")
}

// secretive reports whether a message has a field that nothing may quote.
func secretive(md protoreflect.MessageDescriptor) bool {
	for i := range md.Fields().Len() {
		if hidden(md.Fields().Get(i)) {
			return true
		}
	}
	return false
}

// hidden reports whether the proto marks a field as one that is not shown.
func hidden(fd protoreflect.FieldDescriptor) bool {
	o, ok := fd.Options().(*descriptorpb.FieldOptions)
	return ok && o.GetDebugRedact()
}

// explainNothing says where the JSON of a message is wrong that may hold a secret,
// and of what is there only what is nearly the name of a field.
func explainNothing(text string, md protoreflect.MessageDescriptor) error {
	if m := reUnknownField.FindStringSubmatch(text); m != nil && nearest(m[1], fieldNames(md)) != "" {
		return unknownField(m[1], fieldNames(md))
	}
	e := invalidf("the body is not the JSON that was expected")
	if at := rePlace.FindString(text); at != "" {
		e = invalidf("the body is not the JSON that was expected %s", at)
	}
	return e.WithHint("send one JSON object with strings, like {\"value\": \"…\"}; what is there is not repeated here, since it may be a secret")
}

// snakeCase undoes protobuf's lowerCamelCase: our profile never shows it.
func snakeCase(s string) string {
	var b strings.Builder
	for _, c := range s {
		if c >= 'A' && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

func unknownField(name string, known []string) *sandbox.Error {
	e := invalidf("unknown field %q", clip(name, 80))
	if near := nearest(name, known); near != "" {
		return e.WithHint("did you mean %q?", near)
	}
	return e
}

// misplaced adds to e, about a field that is known elsewhere in md, where.
func misplaced(e *sandbox.Error, name string, md protoreflect.MessageDescriptor) *sandbox.Error {
	if md.Fields().ByName(protoreflect.Name(name)) != nil {
		return e.WithHint("%q belongs at the top of the request", name)
	}
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		if fd.Message() != nil && !fd.IsMap() && fd.Message().Fields().ByName(protoreflect.Name(name)) != nil {
			return e.WithHint("%q belongs inside %q", name, fd.Name())
		}
	}
	return e
}

// fieldNames lists the names of md's fields and of those below.
func fieldNames(md protoreflect.MessageDescriptor) []string {
	var names []string
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			names = append(names, string(fd.Name()))
			if fd.Message() != nil && !fd.IsMap() {
				walk(fd.Message())
			}
		}
	}
	walk(md)
	return names
}

// nearest returns the known name that name was probably meant to be, or "".
func nearest(name string, known []string) string {
	if len(name) > 64 {
		return ""
	}
	fold := func(s string) string { return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s)) }
	best, bestDistance := "", 1+max(1, len(name)/3)
	for _, k := range known {
		d := distance(fold(name), fold(k))
		// "memory" for "memory_bytes": the unit is what people leave out.
		if len(name) >= 4 && strings.HasPrefix(k, name+"_") {
			d = min(d, 1)
		}
		if d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short strings.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// clip shortens s to about n bytes for an error text.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return valid(s[:n]) + "…"
}

// decodeQuery sets m's fields from a query string: scalars by name, lists by
// repetition, maps as name.key=value. What m does not have is refused.
func decodeQuery(raw string, m protoreflect.Message) error {
	if raw == "" {
		return nil
	}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return invalidf("the query string is malformed: %s", clip(valid(err.Error()), 120))
	}
	fields := m.Descriptor().Fields()
	for name, values := range query {
		key, inMap := "", false
		fd := fields.ByName(protoreflect.Name(name))
		if fd == nil || fd.IsMap() {
			var base string
			base, key, inMap = strings.Cut(name, ".")
			fd = fields.ByName(protoreflect.Name(base))
			if fd == nil || !inMap || !fd.IsMap() {
				return unknownParameter(name, fields)
			}
		}
		if !inQuery(fd) {
			return unknownParameter(name, fields)
		}
		if err := setQuery(m, fd, name, key, values); err != nil {
			return err
		}
	}
	return nil
}

func unknownParameter(name string, fields protoreflect.FieldDescriptors) error {
	var known []string
	for i := range fields.Len() {
		if fd := fields.Get(i); inQuery(fd) {
			known = append(known, string(fd.Name()))
		}
	}
	e := invalidf("unknown query parameter %q", clip(valid(name), 80))
	if near := nearest(name, known); near != "" {
		return e.WithHint("did you mean %q?", near)
	}
	if len(known) > 0 {
		return e.WithHint("this route takes %s", strings.Join(known, ", "))
	}
	return e.WithHint("this route takes none")
}

// inQuery reports whether a query parameter can carry fd. URLs are logged on the way.
func inQuery(fd protoreflect.FieldDescriptor) bool {
	if hidden(fd) {
		return false
	}
	if fd.IsMap() {
		return fd.MapKey().Kind() == protoreflect.StringKind && fd.MapValue().Kind() == protoreflect.StringKind
	}
	return fd.Message() == nil
}

func setQuery(m protoreflect.Message, fd protoreflect.FieldDescriptor, name, key string, values []string) error {
	switch {
	case fd.IsMap():
		if key == "" || len(values) != 1 {
			return invalidf("query parameter %q needs one key and one value", clip(valid(name), 80)).
				WithHint("write %s.KEY=VALUE", fd.Name())
		}
		m.Mutable(fd).Map().Set(protoreflect.ValueOfString(valid(key)).MapKey(), protoreflect.ValueOfString(valid(values[0])))
		return nil
	case fd.IsList():
		for _, s := range values {
			v, err := parseScalar(fd, s)
			if err != nil {
				return badParameter(name, s, err)
			}
			m.Mutable(fd).List().Append(v)
		}
		return nil
	case len(values) != 1:
		return invalidf("query parameter %q is given %d times", clip(valid(name), 80), len(values))
	}
	v, err := parseScalar(fd, values[0])
	if err != nil {
		return badParameter(name, values[0], err)
	}
	m.Set(fd, v)
	return nil
}

func badParameter(name, value string, err error) error {
	return invalidf("parameter %s: %q is not %w", name, clip(valid(value), 80), err)
}

// parseScalar reads a value as it stands in a path or a query.
func parseScalar(fd protoreflect.FieldDescriptor, s string) (protoreflect.Value, error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if valid(s) != s {
			return protoreflect.Value{}, errors.New("valid UTF-8")
		}
		return protoreflect.ValueOfString(s), nil
	case protoreflect.BoolKind:
		if s == "true" || s == "1" || s == "" { // ?recursive
			return protoreflect.ValueOfBool(true), nil
		}
		if s == "false" || s == "0" {
			return protoreflect.ValueOfBool(false), nil
		}
		return protoreflect.Value{}, errors.New("true or false")
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, err := strconv.ParseInt(s, 10, 32)
		return protoreflect.ValueOfInt32(int32(n)), orNil(err, "a 32-bit integer")
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, err := strconv.ParseInt(s, 10, 64)
		return protoreflect.ValueOfInt64(n), orNil(err, "an integer")
	case protoreflect.DoubleKind:
		f, err := strconv.ParseFloat(s, 64)
		if math.IsNaN(f) || math.IsInf(f, 0) {
			err = strconv.ErrRange
		}
		return protoreflect.ValueOfFloat64(f), orNil(err, "a number")
	case protoreflect.BytesKind:
		b, err := base64.StdEncoding.DecodeString(s)
		return protoreflect.ValueOfBytes(b), orNil(err, "base64")
	}
	return protoreflect.Value{}, fmt.Errorf("of a kind (%s) that a query can carry", fd.Kind())
}

func orNil(err error, want string) error {
	if err == nil {
		return nil
	}
	return errors.New(want)
}

// bindPath sets the fields the path names. A body that contradicts the path is
// refused.
func bindPath(m protoreflect.Message, names []string, values params) error {
	for i, name := range names {
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		v, err := parseScalar(fd, values[i])
		if err != nil {
			return badParameter(name, values[i], err)
		}
		if m.Has(fd) && !m.Get(fd).Equal(v) {
			return invalidf("%s in the request is not the one in the path", name).WithHint("leave %s out of the body and the query", name)
		}
		m.Set(fd, v)
	}
	return nil
}

// refuseUnknown fails if m carries fields this server does not know. A newer
// client that asks for something must not believe it got it.
func refuseUnknown(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return invalidf("the %s has fields this server does not know", m.Descriptor().Name()).
			WithHint("the client is newer than the server; GetVersion says what is running")
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				if err = refuseUnknown(v.List().Get(i).Message()); err != nil {
					break
				}
			}
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				err = refuseUnknown(v.Message())
				return err == nil
			})
		case fd.Message() != nil && !fd.IsMap():
			err = refuseUnknown(v.Message())
		}
		return err == nil
	})
	return err
}
