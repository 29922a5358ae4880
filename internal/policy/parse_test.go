package policy

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                                  "p.yaml:1: the policy is empty",
		"# nothing":                                         "p.yaml:1: the policy is empty",
		"allow: [":                                          "p.yaml:1: this is not YAML",
		"allow: []\n---\nallow: []":                         "p.yaml:1: there is more than one document",
		"- a":                                               "p.yaml:1: a policy is a mapping",
		"allow: a":                                          "p.yaml:1: allow is a list of rules",
		"\nalow: []":                                        `p.yaml:2: a policy has no key "alow"`,
		"allow: []\nallow: []":                              `p.yaml:2: "allow" is there twice`,
		"version: 2":                                        `p.yaml:1: version "2"`,
		"mode: off":                                         "p.yaml:1: \"off\" is not a mode",
		"name: A":                                           `"A" is not a name`,
		"include: []":                                       "the list is empty",
		"allow: [*.example.com]":                            `put a pattern between quotation marks: "*.example.com"`,
		"allow: &x []\ndeny: *x":                            "anchors and aliases",
		"allow:\n  - host: a.b\n    prt: 1":                 `p.yaml:3: a rule of allow has no key "prt"`,
		"allow: [{ports: 1}]":                               "names nothing",
		"allow: [{host: }]":                                 "a value is missing",
		"allow: [{host: []}]":                               "the list is empty",
		"allow: [[a.b]]":                                    "is a mapping",
		"allow: [a_b.c]":                                    "is not a host",
		"allow: ['a.b:443']":                                "ports belong into `ports` (host: a.b, ports: 443)",
		"allow: [https://a.b]":                              "is not a host",
		"allow: ['*']":                                      "a star stands for whole labels",
		"allow: ['*.*.example.com']":                        "a star stands for whole labels",
		"allow: ['a*.example.com']":                         "a star stands for whole labels",
		"allow: ['a.*.example.com']":                        "a star stands for whole labels",
		"allow: ['***.example.com']":                        "a star stands for whole labels",
		"allow: ['*.com']":                                  "anybody can register a name below com",
		"allow: ['**.co.uk']":                               "anybody can register a name below co.uk",
		"allow: ['*.github.io']":                            "anybody can register a name below github.io",
		"allow: ['**.s3.amazonaws.com']":                    "anybody can register",
		"allow: ['*.internal']":                             "anybody can register",
		"allow: [api.binding.internal]":                     "no rule is about names in binding.internal",
		"deny: [Binding.Internal]":                          "no rule is about names in binding.internal",
		"allow: ['**.binding.internal']":                    "no rule is about names in binding.internal",
		"allow: ['*.1.2.3.4']":                              "nothing in front of it",
		"allow: [127.1]":                                    "is not a host",
		"allow: ['0x7f000001']":                             "is not a host",
		"allow: [169.254.169.254]":                          "is never dialled: metadata",
		"allow: ['::127.0.0.1']":                            "is never dialled: v4-compatible",
		"allow: [{cidr: 10.0.0.1/8}]":                       "write 10.0.0.0/8",
		"allow: [{cidr: example.com}]":                      "neither a network nor an address",
		"allow: [{cidr: 10.0.0.0/33}]":                      "is not a network",
		"allow: [{cidr: '::ffff:10.0.0.0/104'}]":            "write the IPv4 network",
		"allow: [{cidr: '64:ff9b::/96'}]":                   "rules are about the IPv4 addresses",
		"allow: [{host: a.b, ports: 0}]":                    "is not a port",
		"allow: [{host: a.b, ports: [80, 65536]}]":          "is not a port",
		"allow: [{host: a.b, ports: 90-80}]":                "ends before it begins",
		"allow: [{host: a.b, ports: http}]":                 "is not a port",
		"allow: [{host: a.b, protocol: udp}]":               `"udp" is not a protocol`,
		"allow: [{host: a.b, protocol: tcp}]":               "a rule for raw TCP names its ports",
		"allow: [{host: a.b, budget: {upload: lots}}]":      "is not a size",
		"allow: [{host: a.b, budget: {connections: 0}}]":    "is not a positive number",
		"allow: [{host: a.b, budget: {rate: 1/d}}]":         "is not a rate",
		"allow: [{host: a.b, budget: {rate: 0/s}}]":         "is not a rate",
		"allow: [{host: a.b, budget: {names: 3}}]":          "a budget of names is for wildcards",
		"allow: [{host: a.b, budget: {bytes: 3}}]":          `a budget has no key "bytes"`,
		"allow: [{host: a.b, id: 'A B'}]":                   "is not an id",
		"deny: [{host: a.b, budget: {connections: 1}}]":     `a rule of deny has no key "budget"`,
		"deny: [{host: a.b, protocol: tls}]":                `a rule of deny has no key "protocol"`,
		"allow: [{host: a.b, inspect: all}]":                `"all" is no way to inspect`,
		"allow:\n  - host: a.b\n    inspect: [none]":        `p.yaml:3: "" is no way to inspect`,
		"deny: [{host: a.b, inspect: none}]":                `a rule of deny has no key "inspect"`,
		"allow: [{host: a.b, inspect: none, methods: GET}]": "methods and paths are not seen where `inspect: none`",
		"allow: [{host: a.b, inspect: none, paths: [/v1]}]": "methods and paths are not seen where `inspect: none`",
		"allow: [{host: a.b, ports: 1, protocol: tcp, inspect: none}]":                      "raw TCP is never inspected",
		"allow: [{host: a.b, ports: 1, protocol: tcp, methods: GET}]":                       "methods and paths are not seen in raw TCP",
		"allow: [{host: a.b, ports: 1, protocol: [tcp, tls], paths: [/v1]}]":                "methods and paths are not seen in raw TCP",
		"allow: [{host: a.b, ports: 1, protocol: [tcp, tls], paths: [/]}]":                  "methods and paths are not seen in raw TCP",
		"allow:\n  - host: a.b\n    methods: [GET, get]":                                    `p.yaml:3: "get" is not a method`,
		"allow: [{host: a.b, methods: []}]":                                                 "the list is empty",
		"allow: [{host: a.b, methods: }]":                                                   "a value is missing",
		"allow: [{host: a.b, methods: CONNECT}]":                                            "no request with CONNECT ever passes",
		"deny: [{host: a.b, methods: PRI}]":                                                 "no request with PRI ever passes",
		"deny: [{cidr: 0.0.0.0/0, methods: PUT}]":                                           "a deny rule with methods or paths names hosts",
		"deny: [{host: [a.b, 1.1.1.1], paths: [/x]}]":                                       "a deny rule with methods or paths names hosts",
		"deny: [{host: a.b, methods: '*'}]":                                                 "is not a method",
		"deny: [{host: a.b, methods: [A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q]}]": "at most 16 methods",
		"allow: [{host: a.b, paths: [" + strings.Repeat("/a, ", 65) + "]}]":                 "64 paths",
		"allow:\n  - host: a.b\n    paths:\n    - /v1\n    - v1":                            `p.yaml:5: "v1" is not a path`,
		"allow: [{host: a.b, paths: //}]":                                                   "is not a path",
		"allow: [{host: a.b, paths: /a//b}]":                                                "is not a path",
		"allow: [{host: a.b, paths: /a/../b}]":                                              "has a segment of dots",
		"allow: [{host: a.b, paths: /.}]":                                                   "has a segment of dots",
		"allow: [{host: a.b, paths: /a/...}]":                                               "has a segment of dots",
		"allow: [{host: a.b, paths: /a%20b}]":                                               "is not a path",
		"allow: [{host: a.b, paths: /a;b}]":                                                 "is not a path",
		"allow: [{host: a.b, paths: '/a?b'}]":                                               "is not a path",
		"allow: [{host: a.b, paths: /é}]":                                                   "is not a path",
		"allow: [{host: a.b, paths: /" + strings.Repeat("a", 1024) + "}]":                   "is not a path",
		"rego: ":                     "a value is missing",
		"allow: [!!binary aGk=]":     "a value is missing",
		"\tallow: []":                "this is not YAML",
		strings.Repeat("#", 300<<10): "at most 256 KiB",
	} {
		_, err := Parse("p.yaml", []byte(text))
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != sandbox.KindInvalid && e.Kind != sandbox.KindTooLarge || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
	for _, text := range []string{
		"allow: [{id: a, host: a.b}, {id: a, host: c.d}]",
		"include: nothing-is-called-this",
		"include: ../presets/pypi",
	} {
		if _, err := Compile(Options{}, parse(t, text)); err == nil {
			t.Errorf("%q compiles", text)
		}
	}
}

func TestParseJSON(t *testing.T) {
	d := parse(t, "{\n\t\"version\": 1,\n\t\"allow\": [{\"host\": [\"a.b\", \"*.example.com\"], \"ports\": [80, \"8000-8001\"], \"budget\": {\"upload\": \"1MiB\", \"rate\": \"5/m\"}}],\n\t\"deny\": [\"c.d\"]\n}")
	r := d.Allow[0]
	if len(r.Hosts) != 2 || r.Hosts[1] != (Pattern{"example.com", 1}) || !slices.Equal(r.Ports, []PortRange{{80, 80}, {8000, 8001}}) || r.Budget.Upload != 1<<20 ||
		r.Budget.Rate != 5 || r.Budget.Names != 256 || len(d.Deny) != 1 || d.Deny[0].Ports[0] != allPorts[0] {
		t.Errorf("%+v", d)
	}
}

func TestPresets(t *testing.T) {
	for _, want := range []string{"model-providers", "pypi", "npm", "github", "debian", "go"} {
		if !slices.Contains(Presets(), want) {
			t.Errorf("there is no %s", want)
		}
	}
	for _, name := range Presets() {
		d, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := PresetText(name)
		if err != nil || d.Name != name || d.Mode != ModeEnforce || len(d.Allow) == 0 || d.Rego != "" || len(d.Include) > 0 || !strings.HasPrefix(string(text), "# ") {
			t.Errorf("%s is %+v, %v", name, d, err)
		}
		table := compile(t, Options{}, "include: "+name)
		for _, r := range d.Allow {
			for _, h := range r.Hosts {
				if h.Stars > 0 || r.Protocols.has(ProtocolTCP) || r.Opaque || r.ID == "" {
					t.Errorf("%s: %s is not one host by TLS or HTTP that is read, with an id", name, h)
				}
				// What package managers do; npm install posts, and so does git fetch.
				for method, want := range map[string]bool{"GET": true, "HEAD": true, "POST": slices.Contains([]string{"registry.npmjs.org", "github.com", "api.github.com"}, h.Name) || name == "model-providers"} {
					if d := table.DecideRequest(t.Context(), flow(t, h.Name+":443 tls 1.1.1.1"), Request{Method: method, Path: "/@types%2fnode"}); d.Allow != want {
						t.Errorf("%s: %s %s: %s", name, method, h, d.Reason)
					}
				}
				if d := table.Decide(t.Context(), flow(t, h.Name+":443 tls 1.1.1.1")); !d.Allow || d.Rule.ID != name+"/"+r.ID {
					t.Errorf("%s: %s: %s", name, h, d.Reason)
				}
			}
		}
	}
}

// again is a document as it reads back.
func again(t testing.TB, d *Document) *Document {
	t.Helper()
	text := d.YAML()
	back, err := Parse(d.File, text)
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	back.RegoLine = d.RegoLine
	for _, rules := range [][]Rule{d.Allow, d.Deny, back.Allow, back.Deny} {
		for i := range rules {
			rules[i].line = 0
		}
	}
	return back
}

func same(a, b *Document) bool { // an empty list is none
	for _, d := range []*Document{a, b} {
		if len(d.Allow) == 0 {
			d.Allow = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

func TestYAML(t *testing.T) {
	for _, text := range []string{sample, "mode: observe\ninclude: [pypi]\nrego: |\n  package firebreak\n  allow := true\nallow: []",
		"allow: [{host: '*.a.example', note: \"x: 'y' #z\", budget: {upload: 5MiB, download: 7B, connections: 3, concurrent: 2, rate: 5/h, names: 9}}]",
		"allow: [{host: a.b, inspect: none}, {host: a.b, methods: [PUT, GET], paths: [/v1/, /a]}]\ndeny: [{host: a.b, methods: DELETE}, {host: a.b, paths: '/'}]"} {
		d := parse(t, text)
		if back := again(t, d); !same(back, d) {
			t.Errorf("reads back as\n%s", back.YAML())
		}
	}
}

// FuzzParse: what is accepted reads back the same, compiles or says where it
// does not, and allows nothing that is never dialled.
func FuzzParse(f *testing.F) {
	for _, s := range []string{sample, "include: [pypi]", "mode: observe\nallow: []", `{"allow":[{"host":"*.a.example","budget":{"rate":"1/s"}}]}`,
		"allow: [{cidr: 0.0.0.0/0, ports: 1-65535, protocol: [tcp, tls, http]}]", "rego: |\n  package firebreak", "allow: [a.b, {host: [1.2.3.4, '::1']}]",
		"allow: [{host: a.b, inspect: none}, {host: a.b, methods: [GET], paths: [/v1]}]\ndeny: [{host: c.d, methods: PUT, paths: /x}]", "min_isolation: hypervisor", "min_isolation: user-kernel\ninclude: [pypi]", "min_isolation: hypervisor\nmode: observe\nallow: []"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse("p.yaml", text)
		if err != nil {
			if sandbox.KindOf(err) != sandbox.KindInvalid && sandbox.KindOf(err) != sandbox.KindTooLarge {
				t.Errorf("%v", err)
			}
			return
		}
		if back := again(t, d); !same(back, d) {
			t.Errorf("%q reads back as\n%s", text, back.YAML())
		}
		table, err := Compile(Options{}, d)
		if err != nil {
			return
		}
		for _, in := range []string{"169.254.169.254:443 tls 169.254.169.254", "10.0.0.1:443 tls 10.0.0.1", "127.0.0.1:80 http 127.0.0.1", "a.b:443 tls ::1", "a.b:443 tls 1.1.1.1 c.d"} {
			if table.Decide(t.Context(), flow(t, in)).Allow {
				t.Errorf("%q allows %s", text, in)
			}
			if table.DecideRequest(t.Context(), flow(t, in), Request{Method: "GET", Path: "/x"}).Allow {
				t.Errorf("%q allows a request to %s", text, in)
			}
		}
	})
}
