package rego

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patient leaves time to a loaded machine.
var patient = Options{Timeout: time.Minute, Now: func() time.Time { return time.Date(2026, 2, 3, 14, 5, 6, 0, time.UTC) }}

func host(t testing.TB, s string) netaddr.Host {
	t.Helper()
	h, err := netaddr.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func question(t testing.TB) policy.Question {
	r := &policy.Compiled{ID: "p/web"}
	h := host(t, "api.example.com")
	return policy.Question{
		Flow:  policy.Flow{Host: h, Port: 443, Addr: netip.MustParseAddr("1.1.1.1"), Protocol: policy.ProtocolTLS, Claimed: h},
		Class: netaddr.Public, Rule: r, Candidates: []*policy.Compiled{r, {ID: "p/wide"}}, Generation: 7,
	}
}

func agree(t testing.TB, ctx context.Context, o Options, texts ...string) (bool, error) {
	t.Helper()
	var ms []policy.Module
	for _, s := range texts {
		ms = append(ms, policy.Module{File: "p.yaml", Line: 10, Text: "package firebreak\n" + s})
	}
	j, err := o.Judge(ms)
	if err != nil {
		t.Fatalf("%q: %v", texts, err)
	}
	return j.Agree(ctx, question(t))
}

func TestAgreement(t *testing.T) {
	for _, texts := range [][]string{
		{"allow := true"},
		{`allow if input.host == "api.example.com"`},
		{`allow if { input.port == 443; input.protocol == "tls"; input.address == "1.1.1.1"; input.class == "public"; input.claimed == input.host; input.rule == "p/web" }`},
		{`allow if { input.candidates == ["p/web", "p/wide"]; "p/wide" in input.candidates; input.generation == 7; not input.is_address }`},
		{`allow if { time.weekday(input.now_ns) == "Tuesday"; time.clock(input.now_ns) == [14, 5, 6] }`},
		{`default allow := false` + "\n" + `allow if endswith(input.host, ".example.com")`},
		{`allow if net.cidr_contains("1.1.0.0/16", input.address)`},
		{"allow if input.method == null"}, {"allow if { input.path == null; input.binding == null }"},
		{"allow if {\n some h in {\"api.example.com\", \"x\"}\n h == input.host\n}"},
		{`allow if every c in input.candidates { startswith(c, "p/") }`},
		{"allow := true", "allow if input.port == 443"},
	} {
		if ok, err := agree(t, t.Context(), patient, texts...); !ok || err != nil {
			t.Errorf("%q: %v, %v", texts, ok, err)
		}
	}
	for _, texts := range [][]string{ // no
		{"allow := false"}, {"allow if false"}, {"allow if input.port == 80"}, {"allow if input.nothing"}, {"allow if data.nothing"}, {"default allow := false"},
		{"allow := true", "allow := false"}, {"allow if input.port == 80", "allow := true"}, {"allow if not input.host"},
	} {
		if ok, err := agree(t, t.Context(), patient, texts...); ok || err != nil {
			t.Errorf("%q: %v, %v", texts, ok, err)
		}
	}
	for _, texts := range [][]string{ // no answer
		{`allow := "true"`}, {"allow := 1"}, {"allow := null"}, {"allow := {true}"}, {"allow := [true]"}, {`allow := {"allow": true}`}, {"allow := input"}, {"allow := input.host"},
		{`allow if to_number("x") == 1`}, {`allow if 1 / (input.port - 443) == 1`}, {`allow if regex.match("(", input.host)`},
		{"allow := true if input.port == 443\nallow := false if input.port > 1"}, // two values
		{"allow := true", "allow := 1"},
	} {
		if ok, err := agree(t, t.Context(), patient, texts...); ok || err == nil {
			t.Errorf("%q: %v, %v", texts, ok, err)
		}
	}
	if ok, err := (&judge{options: patient, slots: make(chan struct{}, 1)}).Agree(t.Context(), question(t)); ok || err != nil {
		t.Errorf("no modules agree: %v", err)
	}
	f := question(t)
	f.Flow.Claimed = netaddr.Host{}
	j, err := patient.Judge([]policy.Module{{Text: "package firebreak\nallow if input.claimed == null"}})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := j.Agree(t.Context(), f); !ok {
		t.Errorf("without a claim: %v", err)
	}
	q := question(t)
	q.Method, q.Path, q.Binding = "PUT", "/v1/things", "vendor"
	j, err = patient.Judge([]policy.Module{{Text: "package firebreak\nallow if { input.method == \"PUT\"; startswith(input.path, \"/v1/\"); input.binding == \"vendor\" }"}})
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := j.Agree(t.Context(), q); !ok {
		t.Errorf("of a request: %v", err)
	}
	q.Path = "/v2"
	if ok, err := j.Agree(t.Context(), q); ok || err != nil {
		t.Errorf("of another: %v, %v", ok, err)
	}
}

// endless would take years.
const endless = `
r := {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
n := {x | some a in r; some b in r; some c in r; some d in r; some e in r; some f in r; some g in r; some h in r; some i in r; x := [a, b, c, d, e, f, g, h, i]}
allow if count({1 | some x in n; some y in n; x == y}) > 0
`

func TestTimeout(t *testing.T) {
	begin := time.Now()
	ok, err := agree(t, t.Context(), Options{Timeout: 50 * time.Millisecond}, endless)
	if ok || err == nil {
		t.Errorf("%v, %v", ok, err)
	}
	if d := time.Since(begin); d > time.Minute {
		t.Errorf("it took %s", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ok, err := agree(t, ctx, patient, "allow := true"); ok || err == nil {
		t.Errorf("canceled: %v, %v", ok, err)
	}
}

// TestExpensive: a step that cannot be interrupted keeps nobody waiting, and many
// of them do not pile up.
func TestExpensive(t *testing.T) {
	var b strings.Builder
	b.WriteString("f(x) := [x, x]\nallow if {\n x0 := f(input.port)\n y0 := f(input.port)\n")
	for i := range 25 { // 2^26 comparisons
		fmt.Fprintf(&b, " x%d := f(x%d)\n y%d := f(y%d)\n", i+1, i, i+1, i)
	}
	b.WriteString(" x25 == y25\n}")
	p, err := Options{Timeout: 20 * time.Millisecond}.Judge([]policy.Module{{Text: "package firebreak\n" + b.String()}})
	if err != nil {
		t.Fatal(err)
	}
	j := p.(*judge)
	for range 2 * maxAtOnce {
		if ok, err := j.Agree(t.Context(), question(t)); ok || !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "cancel") {
			t.Errorf("%v, %v", ok, err)
		}
	}
	for range maxAtOnce { // all end
		j.slots <- struct{}{}
	}
}

func TestCompileErrors(t *testing.T) {
	chain := "" // its type has 2^40 parts
	for i := range 40 {
		chain += fmt.Sprintf("x%d := [x%d, x%d]\n", i+1, i, i)
	}
	for text, want := range map[string]string{
		"":                                    "p.yaml:10: ",
		"allow := true":                       "p.yaml:10: ",
		"package other\nallow := true":        "p.yaml:10: a policy's Rego is `package firebreak`",
		"package firebreak.x\nallow := true":  "p.yaml:10: a policy's Rego is `package firebreak`",
		"package firebreak\nalow := true":     "p.yaml:10: this Rego defines no `allow`",
		"package firebreak\nallow(x) := true": "defines no `allow`",
		"package firebreak\nallow contains 1": "defines no `allow`",
		"package firebreak\n\n\nallow if {\n  input.port ==\n}":                "p.yaml:15: ",
		"package firebreak\nallow if {\n  nothing(input.host)\n}":              "p.yaml:12: undefined function nothing",
		"package firebreak\nallow if {\n  x := 1\n  true\n}":                   "p.yaml:12: assigned var x unused",
		"package firebreak\nallow if input == x":                               "p.yaml:11: ",
		"package firebreak\nallow if allow":                                    "p.yaml:11: ",
		"package firebreak\nimport data.foo\nallow := true":                    "p.yaml:11: ",
		"package firebreak\nallow := " + strings.Repeat("[", 1000):             "nests deeper",
		"package firebreak\nallow if x[20] == 1\nx0 := [input.port]\n" + chain: "p.yaml:22: here are too many arrays",
		"package firebreak\n#" + strings.Repeat(" ", 64<<10):                   "at most 64 KiB",
	} {
		_, err := patient.Judge([]policy.Module{{File: "p.yaml", Line: 10, Text: text}})
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != sandbox.KindInvalid && e.Kind != sandbox.KindTooLarge || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
	// Whatever reaches out, is not the same twice, or costs more than its arguments.
	for _, call := range []string{`http.send({"method": "get", "url": "http://127.0.0.1"})`, `net.lookup_ip_addr("example.com")`, `opa.runtime()`, `time.now_ns()`, `rand.intn("x", 5)`,
		`uuid.rfc4122("x")`, `rego.parse_module("x", "package x")`, `trace("x")`, `net.cidr_expand("10.0.0.0/8")`, `numbers.range(1, 1000000000)`, `bits.lsh(1, 100000000000)`,
		`providers.aws.sign_req({}, {}, 1)`, `io.jwt.decode("x")`, `json.match_schema({}, {"$ref": "http://127.0.0.1/x"})`, `walk(input)`, `yaml.unmarshal("x")`, `sprintf("%d", [1])`,
		`concat("", ["x"])`, `replace("x", "x", "xx")`, `array.concat([], [])`, `2 * 3`,
		`crypto.sha256("x")`, `graph.reachable({}, [])`, `glob.match("*", [], "x")`, `regex.replace("a", "b", "c")`, `strings.render_template("x", {})`, `rego.metadata.rule()`} {
		_, err := patient.Judge([]policy.Module{{File: "p.yaml", Line: 10, Text: "package firebreak\nallow if {\n  " + call + "\n}"}})
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Hint == "" || !strings.Contains(err.Error(), "p.yaml:12: undefined function") {
			t.Errorf("%s: %v", call, err)
		}
	}
}

// TestCapabilities: every name that is allowed is one, and is what the library
// calls deterministic.
func TestCapabilities(t *testing.T) {
	all := ast.CapabilitiesForThisVersion().Builtins
	for _, name := range allowed {
		i := slices.IndexFunc(all, func(b *ast.Builtin) bool { return b.Name == name })
		if i < 0 || all[i].Nondeterministic {
			t.Errorf("%s is unknown, or not deterministic", name)
		}
	}
	if got := len(capabilities().Builtins); got != len(allowed) {
		t.Errorf("%d functions, want %d", got, len(allowed))
	}
}

// TestDocument: the line of an error is that of the document, and a table with
// Rego denies what its module does not agree with.
func TestDocument(t *testing.T) {
	text := "allow: ['*.x.example', a.example]\n# a comment\nrego: |\n  package firebreak\n\n  allow if not startswith(input.host, \"b\")\n"
	compile := func(text string) (*policy.Table, error) {
		d, err := policy.Parse("d.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return policy.Compile(policy.Options{Judge: patient.Judge}, d)
	}
	table, err := compile(text)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]policy.Reason{"a.example": policy.ReasonRule, "c.x.example": policy.ReasonRule, "b.x.example": policy.ReasonRego, "b.example": policy.ReasonNoRule} {
		h := host(t, name)
		if d := table.Decide(t.Context(), policy.Flow{Host: h, Port: 443, Addr: netip.MustParseAddr("1.1.1.1"), Protocol: policy.ProtocolTLS, Claimed: h}); d.Reason != want || d.Err != nil {
			t.Errorf("%s: %s, %v", name, d.Reason, d.Err)
		}
	}
	// A request is asked about, without its escapes, or as null if it means two things.
	table, err = compile("allow: [a.example]\nrego: |\n  package firebreak\n  allow if input.method == null\n  allow if { input.path != null; not startswith(input.path, \"/admin\") }\n")
	if err != nil {
		t.Fatal(err)
	}
	h := host(t, "a.example")
	f := policy.Flow{Host: h, Port: 443, Addr: netip.MustParseAddr("1.1.1.1"), Protocol: policy.ProtocolTLS, Claimed: h}
	for path, want := range map[string]policy.Reason{"/x": policy.ReasonRule, "/admin": policy.ReasonRego, "/%61dmin": policy.ReasonRego, "/x/..;/admin": policy.ReasonRego, "/x%2fy": policy.ReasonRego} {
		if d := table.DecideRequest(t.Context(), f, policy.Request{Method: "GET", Path: path}); d.Reason != want || d.Err != nil {
			t.Errorf("%s: %s, %v", path, d.Reason, d.Err)
		}
	}
	if d := table.Decide(t.Context(), f); !d.Allow {
		t.Errorf("%+v", d)
	}
	if _, err = compile(text + "  allow if nothing\n"); err == nil || !strings.Contains(err.Error(), "d.yaml:7: ") {
		t.Errorf("%v", err)
	}
}

// FuzzModule: whatever a module says, it compiles or is refused with its place,
// and agrees or does not, in time.
func FuzzModule(f *testing.F) {
	for _, s := range []string{"allow := true", endless, `allow if input.port in {443}`, "allow if regex.match(`^a+$`, input.host)", "import rego.v1\nallow if every x in [1] { x > 0 }",
		"allow if { x := input; x[y] == 443; y }", `allow := input`, "# METADATA\n# scope: document\nallow := true", `allow if $"{input.host}" == "a"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		j, err := Options{Timeout: 20 * time.Millisecond}.Judge([]policy.Module{{File: "p.yaml", Line: 1, Text: "package firebreak\n" + s}})
		if err != nil {
			var e *sandbox.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), "p.yaml:") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if ok, err := j.Agree(t.Context(), question(t)); ok && err != nil {
			t.Errorf("%q: %v, %v", s, ok, err)
		}
	})
}

// BenchmarkAgree is what a module costs each connection.
func BenchmarkAgree(b *testing.B) {
	j, err := patient.Judge([]policy.Module{{Text: "package firebreak\nhosts := {\"a.example\", \"api.example.com\"}\nallow if {\n input.host in hosts\n input.port == 443\n}"}})
	if err != nil {
		b.Fatal(err)
	}
	q := question(b)
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := j.Agree(b.Context(), q); !ok {
			b.Fatal(err)
		}
	}
}
