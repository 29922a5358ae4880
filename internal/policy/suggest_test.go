package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

func TestSuggest(t *testing.T) {
	table := compile(t, Options{}, "allow: [have.example.com]\ndeny: [bad.example.com]")
	lines := `{"host":"pypi.org","port":443,"decision":"observe"}
{"host":"PyPI.org.","port":443}

{"host":"pypi.org","port":80,"protocol":"http"}
{"type":"process","pid":4}
{"egress":[{"host":"git.example.com","port":22,"protocol":"tcp"},{"host":"have.example.com","port":443},{"host":"bad.example.com","port":443}]}
{"host":"a.cdn.example.com","port":443}
{"host":"b.cdn.example.com","port":443}
{"host":"c.cdn.example.com","port":443}
{"host":"d.cdn.example.com","port":443}
{"host":"x.few.example.com","port":443}
{"host":"y.few.example.com","port":443}
{"host":"u1.github.io","port":443}
{"host":"u2.github.io","port":443}
{"host":"u3.github.io","port":443}
{"host":"u4.github.io","port":443}
{"host":"a.com","port":443}
{"host":"b.com","port":443}
{"host":"c.com","port":443}
{"host":"d.com","port":443}
{"host":"cdn.example.com","port":443}
{"host":"93.184.216.34","port":443}
{"host":"10.0.0.7","port":5432,"protocol":"tcp"}
{"host":"169.254.169.254","port":80}
{"host":"evil\u0000.example.com","port":443}
{"host":"q.example.net","port":0}
{"id":1,"type":"egress","egress":{"host":"event.example.com","port":443,"decision":"observe","kind":"connect"}}
{"id":2,"type":"egress","egress":{"host":"event.example.com","port":443,"decision":"observe","kind":"close"}}
{"id":3,"type":"egress","egress":{"host":"asked.example.com","port":0,"decision":"observe","kind":"dns"}}
{"id":4,"type":"state","state":"running"}
`
	observed, err := ReadObservations(strings.NewReader(lines))
	if err != nil {
		t.Fatal(err)
	}
	s := Suggest(observed, table)
	want := `version: 1
allow:
  - host: ['*.cdn.example.com']
    budget: {names: 8}
  - cidr: [10.0.0.7/32]
    ports: ["5432"]
    protocol: [tcp]
  - cidr: [93.184.216.34/32]
  - host: [a.com]
  - host: [b.com]
  - host: [c.com]
  - host: [cdn.example.com]
  - host: [d.com]
  - host: [event.example.com]
  - host: [git.example.com]
    ports: ["22"]
    protocol: [tcp]
  - host: [pypi.org]
    ports: ["80", "443"]
  - host: [u1.github.io]
  - host: [u2.github.io]
  - host: [u3.github.io]
  - host: [u4.github.io]
  - host: [x.few.example.com]
  - host: [y.few.example.com]
`
	if got := string(s.Document.YAML()); got != want {
		t.Errorf("suggested:\n%s", got)
	}
	left := strings.Join(s.Left, "\n")
	for _, want := range []string{"10.0.0.7 is private", "169.254.169.254 is never dialled: metadata", "is not a host", "without a port", `bad.example.com:443 is denied by the rule "deny bad.example.com"`} {
		if !strings.Contains(left, want) {
			t.Errorf("%q is not told of in\n%s", want, left)
		}
	}
	if _, err := ReadObservations(strings.NewReader("{\"host\":\"a\"}\nnot JSON\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v", err)
	}
}

// TestSuggestRequests: a request that a policy did not permit becomes a rule for its
// host; one through a binding, or that nothing permits, does not.
func TestSuggestRequests(t *testing.T) {
	line := func(host, decision, reason, more string) string {
		return `{"kind":"request","host":"` + host + `","port":443,"protocol":"tls","decision":"` + decision + `","reason":"` + reason + `"` + more + "}\n"
	}
	observed, err := ReadObservations(strings.NewReader(line("get.example.com", "allow", "rule", `,"method":"GET"`) + line("put.example.com", "observe", "observed", `,"method":"PUT"`) +
		line("post.example.com", "deny", "method", `,"method":"POST"`) + line("path.example.com", "allow", "rule", `,"method":"GET"`) + line("below.example.net", "deny", "path", `,"method":"GET"`) +
		line("leak.example.com", "deny", "leak", `,"method":"GET"`) + line("bound.example.com", "allow", "binding", `,"method":"GET","binding":"x"`) + line("new.example.org", "observe", "observed", `,"method":"GET"`)))
	if err != nil {
		t.Fatal(err)
	}
	rules := "{methods: [GET], host: [get.example.com, put.example.com, post.example.com]}, {paths: [/v1], host: [path.example.com, below.example.net]}, leak.example.com"
	want := "version: 1\nallow:\n  - host: [below.example.net]\n  - host: [new.example.org]\n  - host: [post.example.com]\n  - host: [put.example.com]\n"
	if s := Suggest(observed, compile(t, Options{}, "allow: ["+rules+"]")); string(s.Document.YAML()) != want || len(s.Left) != 0 {
		t.Errorf("suggested:\n%s%q", s.Document.YAML(), s.Left)
	}
	if s := Suggest(observed, nil); strings.Count(string(s.Document.YAML()), "'*.example.com'") != 1 || strings.Contains(string(s.Document.YAML()), "methods") { // *.example.com
		t.Errorf("suggested:\n%s", s.Document.YAML())
	}
}

// FuzzSuggest: what is suggested for hostile observations is a policy that
// allows each public one of them, and no wildcard is over a public suffix.
func FuzzSuggest(f *testing.F) {
	f.Add([]byte(`{"host":"a.x.example","port":443}`))
	f.Add([]byte("{\"host\":\"a.x.example\",\"port\":1}\n{\"host\":\"b.x.example\",\"port\":1}\n{\"host\":\"c.x.example\",\"port\":1}\n{\"host\":\"d.x.example\",\"port\":1}"))
	f.Add([]byte(`{"egress":[{"host":"1.2.3.4","port":22,"protocol":"tcp"},{"host":"64:ff9b::101:101","port":443}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		observed, err := ReadObservations(bytes.NewReader(text))
		if err != nil {
			return
		}
		s := Suggest(observed, nil)
		d := again(t, s.Document)
		table, err := Compile(Options{}, d)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range observed {
			want, err := o.flow()
			if c := netaddr.Classify(want.Host.Addr()); err != nil || c != netaddr.Invalid && c != netaddr.Public {
				continue
			}
			if d := table.Could(want); !d.Allow {
				t.Errorf("%+v: %s by\n%s", o, d.Reason, s.Document.YAML())
			}
		}
	})
}

// TestObservationsAreBounded: a sandbox that names a million hosts does not make
// the reader hold them all.
func TestObservationsAreBounded(t *testing.T) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range maxFlows + 1 {
		if err := enc.Encode(Observation{Host: fmt.Sprintf("h%d.example.com", i), Port: 443}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadObservations(&b); err == nil {
		t.Error("all of them were read")
	}
}
