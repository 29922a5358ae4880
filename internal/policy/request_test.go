package policy

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

const requests = `
name: p
allow:
  - {id: api, host: api.example.com, ports: [443, 8443], methods: [GET, HEAD], paths: [/v1, /simple/x]}
  - {id: post, host: api.example.com, methods: POST, paths: /v1/things}
  - {id: wide, host: "*.example.com", paths: [/wide/]}
  - {id: root, host: root.example.org, methods: [GET], paths: [/v1, /]}
  - {id: any, host: any.example.org}
  - {id: blind, host: blind.example.org, inspect: none}
  - {id: both, host: both.example.org, ports: 443, inspect: none, protocol: [tcp, tls]}
  - {id: raw, host: both.example.org, ports: 5432, protocol: tcp}
  - {id: fall, host: fall.example.org, inspect: none}
  - {id: fallen, host: "*.example.org"}
  - {id: net, cidr: 93.184.0.0/16, methods: [GET]}
  - {id: lan, cidr: 10.1.0.0/16, methods: [GET]}
  - {id: open, cidr: 10.2.0.0/16}
  - {id: db, host: db.example.net, methods: [GET, PUT]}
deny:
  - {id: delete, host: any.example.org, methods: [DELETE]}
  - {id: admin, host: any.example.org, ports: 443, paths: [/admin, /v1/secret]}
  - {id: purge, host: any.example.org, ports: 443, methods: [POST], paths: [/cache]}
  - {id: read, host: [both.example.org, fall.example.org], ports: [1-1000], methods: [PUT]}
  - {id: shut, host: api.example.com, ports: 8443, paths: [/]}
`

func TestDecideRequest(t *testing.T) {
	table := compile(t, Options{Private: prefixes("10.0.0.0/8")}, requests)
	for in, want := range map[string]string{
		"GET api.example.com:443/v1":                            "rule p/api",
		"HEAD api.example.com:443/v1/x%20y/":                    "rule p/api",
		"GET api.example.com:443/v1/":                           "rule p/api",
		"GET api.example.com:443/v1x":                           "path",
		"GET api.example.com:443/V1":                            "path",
		"GET api.example.com:443/%761":                          "path", // a server may take it for /v1, or not
		"GET api.example.com:443/":                              "path",
		"GET api.example.com:443/simple":                        "path",
		"GET api.example.com:443/simple/x/y":                    "rule p/api",
		"GET api.example.com:443/v1/../admin":                   "path",
		"GET api.example.com:443/v1/%2e%2e/admin":               "path",
		"GET api.example.com:443/v1/..;/admin":                  "path",
		"GET api.example.com:443/v1//x":                         "path",
		"GET api.example.com:443/v1%2fx":                        "path",
		"GET api.example.com:443/v1\\..\\x":                     "path",
		"GET api.example.com:443/v1/x?y":                        "path",
		"GET api.example.com:443/v1/%c0%ae%c0%ae/x":             "path",
		"GET api.example.com:443*":                              "path",
		"GET api.example.com:443/wide":                          "rule p/wide", // by the less specific one
		"POST api.example.com:443/wide/x":                       "rule p/wide",
		"POST api.example.com:443/v1/things/1":                  "rule p/post",
		"POST api.example.com:443/v1":                           "path",
		"get api.example.com:443/v1":                            "path", // any method may reach /wide
		"GET api.example.com:8443/v1":                           "denied p/shut",
		"GET root.example.org:443/a/%2e%2e;":                    "rule p/root", // where all paths are, none is odd
		"POST root.example.org:443/":                            "rule p/fallen",
		"POST any.example.org:443/x":                            "rule p/any",
		"DELETE any.example.org:443/x":                          "denied p/delete",
		"delete any.example.org:443/x":                          "denied p/delete", // a server may not tell them apart
		"DELETE\t any.example.org:443/x":                        "denied p/delete",
		"GET any.example.org:443/admin":                         "denied p/admin",
		"GET any.example.org:443/Admin/x":                       "denied p/admin",
		"GET any.example.org:443/%61dmin":                       "denied p/admin",
		"GET any.example.org:443/%61dmi%6E/x":                   "denied p/admin",
		"GET any.example.org:443/x/../admin":                    "denied p/admin",
		"GET any.example.org:443//admin":                        "denied p/admin",
		"GET any.example.org:443/x;y":                           "denied p/admin", // nobody knows what it is
		"GET any.example.org:443":                               "denied p/admin",
		"GET any.example.org:443/administrator":                 "rule p/any",
		"GET any.example.org:443/v1/secre":                      "rule p/any",
		"GET any.example.org:443/v1/secret%20/x":                "rule p/any",
		"GET any.example.org:443/cache":                         "rule p/any",
		"POST any.example.org:443/cache/1":                      "denied p/purge",
		"PUT fall.example.org:443/":                             "denied p/read",
		"GET fall.example.org:443/":                             "rule p/fall",
		"GET both.example.org:443/":                             "rule p/both",
		"GET nothing.example.net:443/":                          "no_rule",
		"GET any.example.org:80/":                               "port",
		"GET 93.184.1.2:443/x":                                  "rule p/net",
		"PUT 93.184.1.2:443/x":                                  "method",
		"GET db.example.net:443/ 10.1.2.3":                      "private", // a rule for some requests opens its network to no name
		"PUT db.example.net:443/ 10.2.2.3":                      "rule p/db",
		"POST db.example.net:443/ 10.2.2.3":                     "method",
		"GET 10.1.2.3:443/":                                     "rule p/lan",
		"PUT 10.1.2.3:443/":                                     "method",
		"PUT 10.2.2.3:443/":                                     "rule p/open",
		"GET api.example.com:443/v1 169.254.169.254":            "address",
		"GET api.example.com:443/v1 1.1.1.1 other.org":          "claim",
		"PUT api.example.com:443/v1 1.1.1.1 any.example.org":    "claim",
		"DELETE api.example.com:443/v1 1.1.1.1 any.example.org": "denied p/delete",
	} {
		f, r := request(t, in)
		d := table.DecideRequest(t.Context(), f, r)
		got := d.Reason.String()
		if d.Rule != nil && (d.Reason == ReasonRule || d.Reason == ReasonDenied) {
			got += " " + d.Rule.ID
		}
		if got != want || d.Allow != strings.HasPrefix(want, "rule ") {
			t.Errorf("%q: %s (%v), want %s", in, got, d.Allow, want)
		}
		if hint := table.Hint(f, d); (hint == "") != d.Allow {
			t.Errorf("%s: hint %q", in, hint)
		}
		if c := table.CouldRequest(f, r); c != d {
			t.Errorf("%s: could be %+v", in, c)
		}
		if x := table.ExplainRequest(t.Context(), f, r); *x.Request != r || x.Decision != d && table.Decide(t.Context(), f) != x.Decision {
			t.Errorf("%s: explained as %+v", in, x.Decision)
		}
	}
}

func TestDecideRequestMissing(t *testing.T) {
	table := compile(t, Options{}, "allow: [{host: a.example, ports: [443, 80]}, {host: a.example, ports: 443, protocol: tcp}]")
	full := flow(t, "a.example:443 tls 1.1.1.1")
	if d := table.DecideRequest(t.Context(), full, Request{Method: "GET", Path: "/"}); !d.Allow {
		t.Fatalf("%+v", d)
	}
	raw := flow(t, "a.example:443 tcp 1.1.1.1")
	for name, f := range map[string]Flow{
		"no host": {Port: 443, Addr: full.Addr, Protocol: ProtocolTLS}, "no port": {Host: full.Host, Addr: full.Addr, Protocol: ProtocolTLS, Claimed: full.Host},
		"no address": {Host: full.Host, Port: 443, Protocol: ProtocolTLS, Claimed: full.Host}, "no protocol": {Host: full.Host, Port: 443, Addr: full.Addr}, "nothing": {}, "raw": raw,
	} {
		if d := table.DecideRequest(t.Context(), f, Request{Method: "GET", Path: "/"}); d.Allow || d.Reason != ReasonInvalid {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if d := table.DecideRequest(t.Context(), full, Request{Path: "/"}); d.Allow || d.Reason != ReasonInvalid {
		t.Errorf("no method: %+v", d)
	}
}

// TestUnread: nothing passes unread to where a deny rule has to see requests, and
// connections are decided about without methods and paths.
func TestUnread(t *testing.T) {
	table := compile(t, Options{}, requests)
	for in, want := range map[string]string{
		"api.example.com:443 tls 1.1.1.1":    "rule p/api read",
		"api.example.com:443 http 1.1.1.1":   "rule p/api read",
		"api.example.com:8443 tls 1.1.1.1":   "denied p/shut", // all paths are all connections
		"any.example.org:443 tls 1.1.1.1":    "rule p/any read",
		"blind.example.org:443 tls 1.1.1.1":  "rule p/blind unread",
		"blind.example.org:443 http 1.1.1.1": "rule p/blind unread",
		"both.example.org:443 tls 1.1.1.1":   "rule p/fallen read", // by a rule that reads
		"both.example.org:443 tcp 1.1.1.1":   "inspect p/read",
		"both.example.org:5432 tcp 1.1.1.1":  "rule p/raw read",
		"fall.example.org:443 tls 1.1.1.1":   "rule p/fallen read",
	} {
		f := flow(t, in)
		d := table.Decide(t.Context(), f)
		got := d.Reason.String() + " " + d.Rule.ID
		if d.Allow {
			got += map[bool]string{true: " unread", false: " read"}[d.Opaque()]
		}
		if got != want || d.Allow != strings.HasPrefix(want, "rule ") {
			t.Errorf("%s: %s (%v), want %s", in, got, d.Allow, want)
		}
		if hint := table.Hint(f, d); (hint == "") != d.Allow {
			t.Errorf("%s: hint %q", in, hint)
		}
		if x := table.Explain(t.Context(), f); x.Decision != d {
			t.Errorf("%s: explained as %+v", in, x.Decision)
		}
	}
	// Nobody reads what a policy that observes lets pass raw.
	observe := compile(t, Options{}, "mode: observe\nallow: []\ndeny: [{host: a.example, ports: 443, methods: [PUT]}]")
	for in, want := range map[string]string{
		"a.example:443 tcp 1.1.1.1": "inspect false", "a.example:444 tcp 1.1.1.1": "observed true", "a.example:443 tls 1.1.1.1": "observed true",
	} {
		if d := observe.Decide(t.Context(), flow(t, in)); fmt.Sprint(d.Reason, d.Allow) != want {
			t.Errorf("%s: %s, want %s", in, d.Reason, want)
		}
	}
	// What comes before a connection is accepted knows no protocol yet.
	only := compile(t, Options{}, "allow: [{host: a.x.example, ports: 443, protocol: tcp}, {host: b.x.example, inspect: none}, c.x.example]\ndeny: [{host: '**.x.example', methods: [PUT]}]\n")
	for in, want := range map[string]bool{"a.x.example": false, "b.x.example": false, "c.x.example": true} {
		if d := only.Could(Flow{Host: host(t, in), Port: 443}); d.Allow != want {
			t.Errorf("%s could: %v (%s)", in, d.Allow, d.Reason)
		}
	}
}

func TestParticular(t *testing.T) {
	table := compile(t, Options{}, requests)
	for in, want := range map[string]bool{"api.example.com:443 tls 1.1.1.1": true, "other.example.com:443 tls 1.1.1.1": true, "any.example.org:443 tls 1.1.1.1": true, "root.example.org:443 tls 1.1.1.1": true,
		"new.example.org:443 tls 1.1.1.1": false, "nothing.example.net:443 tls 1.1.1.1": false, "93.184.1.2:443 tls 93.184.1.2": true, "both.example.org:443 tls 1.1.1.1": true} {
		if got := table.Particular(flow(t, in)); got != want {
			t.Errorf("%s: %v", in, got)
		}
	}
	o := Options{Judge: func([]Module) (Judge, error) { return judge(nil), nil }}
	if !compile(t, o, "allow: [a.example]\nrego: package one").Particular(flow(t, "a.example:443 tls 1.1.1.1")) {
		t.Error("Rego is told what a request is")
	}
}

func TestObserveRequests(t *testing.T) {
	table := compile(t, Options{}, "mode: observe\nallow: [{host: a.example, methods: [GET]}]\ndeny: [{host: a.example, paths: [/admin]}, {host: b.example, methods: [PUT]}]")
	for in, want := range map[string]string{
		"GET a.example:443/": "rule true", "PUT a.example:443/": "observed true", "PUT a.example:443/admin": "denied false", "PUT c.example:443//": "observed true",
		"PUT b.example:443/": "denied false", "GET b.example:443/": "observed true", "GET b.example:443/ 10.0.0.1": "private false",
	} {
		f, r := request(t, in)
		if d := table.DecideRequest(t.Context(), f, r); fmt.Sprint(d.Reason, d.Allow) != want || d.Observed() != (d.Reason == ReasonObserved) {
			t.Errorf("%s: %s %v, want %s", in, d.Reason, d.Allow, want)
		}
	}
}

// TestJudgeRequests: Rego is asked about each request that a rule allows, and is
// told what it is.
func TestJudgeRequests(t *testing.T) {
	var asked []Question
	answer := true
	o := Options{Judge: func([]Module) (Judge, error) {
		return judge(func(q Question) (bool, error) { asked = append(asked, q); return answer, nil }), nil
	}}
	table := compile(t, o, "allow: [{host: a.example, methods: [GET]}, {host: a.example, id: put, methods: [PUT]}, {host: a.example, id: all}]\nrego: package one")
	f, r := request(t, "PUT a.example:443/v1/%61")
	r.Binding = "vendor"
	d := table.DecideRequest(t.Context(), f, r)
	if !d.Allow || d.Rule.ID != "put" || len(asked) != 1 {
		t.Fatalf("%+v, asked %+v", d, asked)
	}
	if q := asked[0]; q.Flow != f || q.Method != "PUT" || q.Path != "/v1/a" || q.Binding != "vendor" || q.Rule != d.Rule || len(q.Candidates) != 2 || q.Candidates[1].ID != "all" {
		t.Errorf("asked %+v", q)
	}
	r.Path = "/v1/../x"
	if table.DecideRequest(t.Context(), f, r); len(asked) != 2 || asked[1].Path != "" || asked[1].Method != "PUT" {
		t.Errorf("asked %+v", asked)
	}
	if table.Decide(t.Context(), f); len(asked) != 3 || asked[2].Method+asked[2].Path+asked[2].Binding != "" || len(asked[2].Candidates) != 3 {
		t.Errorf("asked %+v", asked)
	}
	if table.CouldRequest(f, r); len(asked) != 3 {
		t.Error("asked before it is known what is asked about")
	}
	answer = false
	if d := table.DecideRequest(t.Context(), f, r); d.Allow || d.Reason != ReasonRego {
		t.Errorf("%+v", d)
	}
}

// TestRequestHints: a hint says what rules there are for, and never all of many.
func TestRequestHints(t *testing.T) {
	var list []string
	for i := range 64 {
		list = append(list, fmt.Sprintf("/p%d", i))
	}
	table := compile(t, Options{}, requests, "allow: [{host: many.example.net, paths: ["+strings.Join(list, ", ")+"]}]")
	for in, want := range map[string]string{
		"GET api.example.com:443/x":  "to permit it: a rule for api.example.com:443 with the path in `paths`, or without any; there is /simple/x, /v1, /v1/things, /wide",
		"PUT 93.184.1.2:443/x":       "to permit it: a rule for 93.184.1.2:443 with the method in `methods`, or without any; there is GET",
		"GET many.example.net:443/x": "to permit it: a rule for many.example.net:443 with the path in `paths`, or without any; there is /p0, /p1, /p10, /p11, /p12, /p13 and others",
	} {
		f, r := request(t, in)
		if hint := table.Hint(f, table.DecideRequest(t.Context(), f, r)); hint != want {
			t.Errorf("%s: %s", in, hint)
		}
	}
	f := flow(t, "both.example.org:443 tcp 1.1.1.1")
	if hint := table.Hint(f, table.Decide(t.Context(), f)); !strings.Contains(hint, `"p/read" denies some requests to both.example.org:443`) {
		t.Error(hint)
	}
	if hint := table.Hint(f, Decision{Reason: ReasonInspect}); !strings.Contains(hint, "has to be read") { // for another reason
		t.Error(hint)
	}
}

// TestRequestIDs: rules that differ have ids that do, and those of before are what
// they were.
func TestRequestIDs(t *testing.T) {
	long := "/" + strings.Repeat("a", 150)
	table := compile(t, Options{}, `allow:
  - a.example
  - {host: a.example, inspect: none}
  - {host: a.example, methods: [PUT, GET, GET]}
  - {host: a.example, paths: [/v1]}
  - {host: a.example, paths: [/v1/, /simple], methods: GET}
  - {host: a.example, paths: [/v1, /]}
  - {host: a.example, paths: [`+long+`, /x`+long+`, /y]}
  - {host: a.example, paths: [`+long+`, /x`+long+`, /z]}
deny: [{host: a.example, methods: [DELETE]}, a.example]`)
	want := []string{"deny a.example DELETE", "deny a.example", "allow a.example:443", "allow a.example:443 inspect:none", "allow a.example:443 GET,PUT", "allow a.example:443 /v1",
		"allow a.example:443 GET /simple /v1", "allow a.example:443#2"}
	for i, r := range table.Rules() {
		switch {
		case i < len(want) && r.ID != want[i]:
			t.Errorf("%q, want %q", r.ID, want[i])
		case i >= len(want) && (strings.Contains(r.ID, "#") || len(r.ID) > 300):
			t.Errorf("%q", r.ID)
		}
	}
}

func TestScope(t *testing.T) {
	s := compile(t, Options{}, `
allow: [z.example.com, {host: ["**.b.example.com", "*.a.example.org", x.b.example.com, "*.c.b.example.com", b.example.com]}, {host: blind.example.com, inspect: none},
  {host: raw.example.com, protocol: tcp, ports: 443}, {host: plain.example.com, protocol: http}, {host: both.example.com, protocol: [tcp, tls], ports: 1}, {host: get.example.com, methods: GET},
  {cidr: [10.0.0.0/8, 10.1.0.0/16, 1.1.1.1, '2606:4700::/32']}, {cidr: 9.9.9.9, inspect: none}]
deny: [denied.example.com]
include: [go]`).Scope()
	names := []string{".a.example.org", ".b.example.com", "b.example.com", "both.example.com", "get.example.com", "proxy.golang.org", "sum.golang.org", "z.example.com"}
	if !slices.Equal(s.Names, names) || !slices.Equal(s.Networks, prefixes("1.1.1.1/32", "10.0.0.0/8", "2606:4700::/32")) || s.Any {
		t.Errorf("%+v", s)
	}
	if s := compile(t, Options{}, "allow: []").Scope(); len(s.Names)+len(s.Networks) > 0 || s.Any {
		t.Errorf("of nothing %+v", s)
	}
	if s := compile(t, Options{}, "mode: observe\nallow: [a.example]").Scope(); len(s.Names) != 1 || !s.Any {
		t.Errorf("of what observes %+v", s)
	}
	if s := new(Table).Scope(); len(s.Names)+len(s.Networks) > 0 || s.Any {
		t.Errorf("of no table %+v", s)
	}
}

// TestScopeIsBounded: many names become their domains, many domains no bound.
func TestScopeIsBounded(t *testing.T) {
	var hosts, domains, networks []string
	for i := range 1100 {
		hosts = append(hosts, fmt.Sprintf("h%d.d%d.example", i, i%9))
		domains = append(domains, fmt.Sprintf("d%d.example", i))
		networks = append(networks, fmt.Sprintf("93.%d.%d.0/24", i/100, i%100))
	}
	rule := func(key string, list []string) string {
		return "allow: [{" + key + ": [" + strings.Join(list, ", ") + "]}]"
	}
	s := compile(t, Options{}, rule("host", append(hosts, "github.io"))).Scope()
	if s.Any || len(s.Names) != 19 || s.Names[0] != ".d0.example" || s.Names[9] != "d0.example" || s.Names[18] != "github.io" {
		t.Errorf("%+v", s)
	}
	if s := compile(t, Options{}, rule("host", domains)).Scope(); !s.Any || len(s.Names) != 0 {
		t.Errorf("%v, %d names", s.Any, len(s.Names))
	}
	if s := compile(t, Options{}, rule("cidr", networks)).Scope(); !slices.Equal(s.Networks, prefixes("0.0.0.0/0", "::/0")) || s.Any {
		t.Errorf("%+v", s)
	}
}

// FuzzRequest: what is allowed, an allow rule names, to every reader of the path,
// and what some reader could take for something a deny rule names, is not.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{"/v1/x", "/v1/%2e%2e/", "/a;b", "/%c3%a9", "/..%20/", "/ADMIN", "/%61dmin", "//admin", "*", "", "/admin%"} {
		f.Add("GET", s)
		f.Add("delete", s)
	}
	table := compile(f, Options{}, `
allow: [{host: a.example, methods: [GET, PUT, DELETE], paths: [/v1, /x/y, /admin]}, {host: b.example}, {host: c.example, methods: [GET, DELETE]}]
deny: [{host: [a.example, b.example], paths: [/admin, /v1/secret]}, {host: c.example, methods: [DELETE]}]`)
	below := func(p string, prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") })
	}
	a, b, c := flow(f, "a.example:443 tls 1.1.1.1"), flow(f, "b.example:443 tls 1.1.1.1"), flow(f, "c.example:443 tls 1.1.1.1")
	f.Fuzz(func(t *testing.T, method, sent string) {
		ctx, r := context.Background(), Request{Method: method, Path: sent}
		plain, err := url.PathUnescape(sent)
		if OddPath(sent) == "" {
			clean := path.Clean(plain)
			if err != nil || !utf8.ValidString(plain) || clean != plain && clean+"/" != plain || strings.ContainsAny(plain, "\\;?#%") || strings.Count(plain, "/") != strings.Count(sent, "/") {
				t.Fatalf("%q is %q for who cleans it", sent, clean)
			}
		}
		readers := []string{sent, plain, path.Clean(sent), path.Clean(plain), path.Clean(strings.ReplaceAll(plain, "\\", "/"))}
		if table.DecideRequest(ctx, a, r).Allow {
			for _, p := range readers {
				if !below(p, "/v1", "/x/y") || below(p, "/v1/secret") || !slices.Contains([]string{"GET", "PUT", "DELETE"}, method) {
					t.Errorf("%q %q is allowed, and may be %q", method, sent, p)
				}
			}
		}
		if table.DecideRequest(ctx, b, r).Allow {
			for _, p := range readers {
				if below(strings.ToLower(p), "/admin", "/v1/secret") {
					t.Errorf("%q %q is allowed, and may be %q", method, sent, p)
				}
			}
		}
		if table.DecideRequest(ctx, c, r).Allow && method != "GET" {
			t.Errorf("%q is allowed", method)
		}
	})
}

// TestDecideRequestIsCheap: a path without escapes costs no memory.
func TestDecideRequestIsCheap(t *testing.T) {
	table := compile(t, Options{}, requests)
	for in, want := range map[string]float64{"GET api.example.com:443/v1/x": 0, "POST any.example.org:443/cachet/y": 0, "PUT 93.184.1.2:443/x": 0, "GET 93.184.1.2:443/v1/../x": 0, "GET api.example.com:443/v1/%20": 2} {
		f, r := request(t, in)
		ctx := t.Context()
		if n := testing.AllocsPerRun(100, func() { table.DecideRequest(ctx, f, r) }); n > want {
			t.Errorf("%s: %v allocations, want at most %v", in, n, want)
		}
	}
}

// BenchmarkDecideRequest is the cost of a request in a policy of 5400 rules and one
// that is about requests.
func BenchmarkDecideRequest(b *testing.B) {
	table := large(b, "  - {host: host1234.example34.com, methods: [GET, HEAD, POST], paths: [/v1, /v2, /static]}\n")
	f := flow(b, "host1234.example34.com:443 tls 1.1.1.1")
	r := Request{Method: "POST", Path: "/v2/chat/completions"}
	if d := table.DecideRequest(b.Context(), f, r); !d.Allow {
		b.Fatal(d.Reason)
	}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		table.DecideRequest(ctx, f, r)
	}
}

// request reads "METHOD HOST:PORTPATH [ADDR [CLAIM]]", of TLS.
func request(t testing.TB, s string) (Flow, Request) {
	t.Helper()
	i := strings.Index(s, " ")
	if j := strings.Index(s, "\t "); j >= 0 { // a method with a tab at its end
		i = j + 1
	}
	method, rest := s[:i], strings.Fields(s[i+1:])
	if !strings.Contains(s[i+1:], " ") { // a path may hold anything but a space
		rest = []string{s[i+1:]}
	}
	k := strings.IndexAny(rest[0], "/*")
	if k < 0 {
		k = len(rest[0])
	}
	in := append([]string{rest[0][:k], "tls"}, rest[1:]...)
	if len(in) == 2 {
		in = append(in, "1.1.1.1")
		if h, _, err := netaddr.ParseHostPort(in[0]); err == nil && h.Addr().IsValid() {
			in[2] = h.Addr().String()
		}
	}
	return flow(t, strings.Join(in, " ")), Request{Method: method, Path: rest[0][k:]}
}
