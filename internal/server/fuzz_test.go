package server

import (
	"encoding/json"
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func newMessage(md protoreflect.MessageDescriptor) proto.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(md.FullName())
	if err != nil {
		panic(err)
	}
	return mt.New().Interface()
}

// FuzzDecodeJSON: no body panics; an error is typed and prints as JSON; what was
// accepted means the same to the standard decoder.
func FuzzDecodeJSON(f *testing.F) {
	for _, s := range []string{``, ` `, `{}`, `{"name":"a","limits":{"memory_bytes":1}}`, `{"limits":{"memory":1}}`, `{"env":{"A":"b"}}`,
		`{"timeout_ms":9007199254740993}`, `{"timeout_ms":"5"}`, `[[[[`, `{"name":"\ud800"}`, "{\"name\":\"\xff\"}", `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m := &v1.CreateSandboxRequest{}
		err := decodeJSON(body, m)
		if err == nil {
			want := &v1.CreateSandboxRequest{}
			if strings.TrimSpace(string(body)) != "" {
				if err := protojson.Unmarshal(body, want); err != nil || !proto.Equal(m, want) {
					t.Fatalf("%q: %v, want %v (%v)", body, m, want, err)
				}
			}
			return
		}
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != sandbox.KindInvalid || e.Hint == "" {
			t.Fatalf("%q: %v", body, err)
		}
		if doc := appendError(nil, e); !json.Valid(doc) || !utf8.Valid(doc) {
			t.Fatalf("%q: %s", body, doc)
		}
	})
}

// FuzzQuery: no query panics, and errors are typed.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{"", "state=all", "metadata.a=b&metadata.a=c", "metadata.=x", "page_size=1e9", "a%zz", "metadata=1", "=", "page_size=%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		m := &v1.ListSandboxesRequest{}
		err := decodeQuery(query, m.ProtoReflect())
		var e *sandbox.Error
		if err != nil && (!errors.As(err, &e) || e.Kind != sandbox.KindInvalid) {
			t.Fatalf("%q: %v", query, err)
		}
		if _, err := proto.Marshal(m); err != nil {
			t.Fatalf("%q: accepted what cannot be encoded: %v", query, err)
		}
	})
}

// FuzzString: every string is a JSON string that reads back as itself, invalid
// UTF-8 replaced.
func FuzzString(f *testing.F) {
	f.Add("a\"b\\c\n\x00\x1f\x7fü\u2028\u2029\U0001f600\xff\xc3")
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var back string
		if err := json.Unmarshal(b, &back); err != nil || back != string([]rune(s)) {
			t.Fatalf("%q became %s (%v)", s, b, err)
		}
		if strings.ContainsAny(string(b), "\n\r") || !utf8.Valid(b) {
			t.Fatalf("%q became %q", s, b)
		}
	})
}

// FuzzRaw: whatever a sandbox calls its result, the answer stays one line of
// valid JSON.
func FuzzRaw(f *testing.F) {
	for _, s := range []string{``, `{}`, `{"a": [1, 2]}`, `{`, `1 2`, "\"\n\"", "{\n\"a\":\n1}", "\"\xff\"", `"` + "\u2028" + `"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		b := appendMessage(nil, &v1.ProcessExit{ResultJson: doc, Detail: doc})
		if !json.Valid(b) || strings.ContainsAny(string(b), "\n\r") {
			t.Fatalf("%q became %q", doc, b)
		}
	})
}

// FuzzRouter compares the router with regular expressions over the same routes.
func FuzzRouter(f *testing.F) {
	g, err := newRegistry()
	if err != nil {
		f.Fatal(err)
	}
	if err := g.build(&fake{}); err != nil {
		f.Fatal(err)
	}
	type pattern struct {
		r  *route
		re *regexp.Regexp
		// literals decide between patterns: more and earlier ones win.
		rank string
	}
	var patterns []pattern
	for _, o := range g.order {
		for _, r := range o.routes {
			p := pattern{r: r}
			expr := ""
			for _, s := range strings.Split(r.template[1:], "/") {
				switch {
				case strings.HasSuffix(s, "...}"):
					expr, p.rank = expr+`/(.+)`, p.rank+"c"
				case strings.HasPrefix(s, "{"):
					expr, p.rank = expr+`/([^/]+)`, p.rank+"b"
				default:
					expr, p.rank = expr+"/"+regexp.QuoteMeta(s), p.rank+"a"
				}
			}
			p.re = regexp.MustCompile(`^(?s:` + expr + `)$`)
			patterns = append(patterns, p)
			f.Add(r.method, r.template)
		}
	}
	for _, s := range []string{"/", "", "//", "/v1/sandboxes/a%2Fb", "/v1/sandboxes/%zz", "/v1/sandboxes/%", "/v1/sandboxes//exec", "/v1/runs/x/artifacts/a/b%2fc/", "/v1/sandboxes/x/files/stat"} {
		f.Add("GET", s)
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		if strings.Count(path, "/") > maxSegments {
			return
		}
		var want *pattern
		known := false
		for i := range patterns {
			p := &patterns[i]
			m := p.re.FindStringSubmatch(path)
			if m == nil {
				continue
			}
			ok := true
			for _, v := range m[1:] {
				_, err := url.PathUnescape(v)
				ok = ok && err == nil
			}
			if !ok {
				continue
			}
			known = true
			if p.r.method == method || method == "HEAD" && p.r.method == "GET" {
				if want == nil || p.rank < want.rank {
					want = p
				}
			}
		}
		r, values, allow := g.router.match(method, path, nil)
		switch {
		case want == nil && r != nil:
			t.Fatalf("%s %q matched %s", method, path, r.template)
		case want == nil && known != (len(allow) > 0):
			t.Fatalf("%s %q: allow %v", method, path, allow)
		case want != nil && r != want.r:
			t.Fatalf("%s %q matched %v, want %s", method, path, r, want.r.template)
		case want != nil:
			for i, v := range want.re.FindStringSubmatch(path)[1:] {
				if u, _ := url.PathUnescape(v); values[i] != u {
					t.Fatalf("%s %q: values %q", method, path, values)
				}
			}
		}
	})
}
