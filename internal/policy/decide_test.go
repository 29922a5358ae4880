package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const sample = `
version: 1
name: p
allow:
  - api.example.com
  - {id: web, host: [www.example.com, example.org], ports: [80, 443, 8000-8010]}
  - {id: one, host: "*.one.example.com"}
  - {id: many, host: "**.many.example.com"}
  - {id: deeper, host: "**.deeper.many.example.com", ports: 8443}
  - {id: exact, host: x.deeper.many.example.com, ports: 8443}
  - {id: aws, host: "**.amazonaws.com"}
  - {id: ssh, host: git.example.com, ports: 22, protocol: tcp}
  - {id: net, cidr: [93.184.0.0/16, 2606:4700::/32]}
  - {id: all, cidr: 0.0.0.0/0, ports: 9999, protocol: [tcp, tls]}
  - {id: lan, cidr: 10.1.0.0/16, ports: [443, 5432], protocol: [tcp, tls]}
  - {id: unpermitted, cidr: 192.168.0.0/16}
  - {id: self, cidr: 203.0.113.9, ports: 443}
  - {id: db, host: db.example.com, ports: 5432, protocol: tcp}
deny:
  - {id: evil, host: ["**.evil.many.example.com", bad.one.example.com]}
  - {id: noport, host: www.example.com, ports: 8005}
  - {id: badnet, cidr: 93.184.216.0/24}
`

func TestDecide(t *testing.T) {
	self := netip.MustParseAddr("203.0.113.9")
	o := Options{
		Private: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("203.0.113.9/32")},
		Own: func(a netip.Addr) bool {
			return a == self || a == netip.MustParseAddr("10.1.0.1") || a == netip.MustParseAddr("93.184.1.1")
		},
	}
	table := compile(t, o, sample)
	for in, want := range map[string]string{
		"api.example.com:443 tls 1.1.1.1":          "rule p/allow api.example.com:443",
		"api.example.com:443 http 1.1.1.1":         "rule p/allow api.example.com:443",
		"api.example.com:443 tls 64:ff9b::101:101": "rule p/allow api.example.com:443",
		"api.example.com:443 tcp 1.1.1.1":          "protocol",
		"api.example.com:80 http 1.1.1.1":          "port",
		"example.com:443 tls 1.1.1.1":              "no_rule",
		"xapi.example.com:443 tls 1.1.1.1":         "no_rule",
		"api.example.com.evil.org:443 tls 1.1.1.1": "no_rule",
		"www.example.com:80 http 1.1.1.1":          "rule p/web",
		"example.org:8010 tls 1.1.1.1":             "rule p/web",
		"example.org:8011 tls 1.1.1.1":             "port",
		"www.example.com:8005 tls 1.1.1.1":         "denied p/noport",
		"www.example.com:8006 tls 1.1.1.1":         "rule p/web",

		"a.one.example.com:443 tls 1.1.1.1":                   "rule p/one",
		"one.example.com:443 tls 1.1.1.1":                     "no_rule",
		"a.b.one.example.com:443 tls 1.1.1.1":                 "no_rule",
		"bad.one.example.com:443 tls 1.1.1.1":                 "denied p/evil",
		"aone.example.com:443 tls 1.1.1.1":                    "no_rule",
		"a.many.example.com:443 tls 1.1.1.1":                  "rule p/many",
		"a.b.c.d.e.f.many.example.com:443 tls 1.1.1.1":        "rule p/many",
		"many.example.com:443 tls 1.1.1.1":                    "no_rule",
		"a.evil.many.example.com:443 tls 1.1.1.1":             "denied p/evil",
		"evil.many.example.com:443 tls 1.1.1.1":               "rule p/many",
		"a.deeper.many.example.com:8443 tls 1.1.1.1":          "rule p/deeper",
		"x.deeper.many.example.com:8443 tls 1.1.1.1":          "rule p/exact",
		"x.deeper.many.example.com:443 tls 1.1.1.1":           "rule p/many",
		"sts.amazonaws.com:443 tls 1.1.1.1":                   "rule p/aws",
		"a.b.amazonaws.com:443 tls 1.1.1.1":                   "rule p/aws",
		"bucket.s3.amazonaws.com:443 tls 1.1.1.1":             "no_rule", // anybody's
		"s3.amazonaws.com:443 tls 1.1.1.1":                    "no_rule",
		"a.b.bucket.s3.amazonaws.com:443 tls 1.1.1.1":         "no_rule",
		"git.example.com:22 tcp 1.1.1.1":                      "rule p/ssh",
		"git.example.com:22 tls 1.1.1.1":                      "protocol",
		"git.example.com:22 tcp 1.1.1.1 evil.org":             "claim",
		"api.example.com:443 tls 1.1.1.1 evil.org":            "claim",
		"api.example.com:443 tls 1.1.1.1 -":                   "claim",
		"api.example.com:443 http 1.1.1.1 -":                  "claim",
		"api.example.com:443 tls 1.1.1.1 1.1.1.1":             "claim",
		"api.example.com:443 tls 1.1.1.1 bad.one.example.com": "denied p/evil",

		"93.184.1.2:443 tls 93.184.1.2":                     "rule p/net",
		"93.184.1.2:443 tls 93.184.1.2 a.example.net":       "rule p/net",
		"93.184.1.2:443 tls 93.184.1.2 bad.one.example.com": "denied p/evil",
		"93.184.1.2:443 tls 93.184.1.3":                     "invalid",
		"93.184.1.1:443 tls 93.184.1.1":                     "private", // this machine's
		"93.184.216.1:443 tls 93.184.216.1":                 "denied p/badnet",
		"api.example.com:443 tls 93.184.216.1":              "denied p/badnet",
		"api.example.com:443 tls 64:ff9b::5db8:d801":        "denied p/badnet",
		"[64:ff9b::5db8:101]:443 tls 64:ff9b::5db8:101":     "private", // this machine's, wrapped
		"[64:ff9b::5db8:102]:443 tls 64:ff9b::5db8:102":     "rule p/net",
		"[2606:4700::1]:443 tls 2606:4700::1":               "rule p/net",
		"[2606:4701::1]:443 tls 2606:4701::1":               "no_rule",
		"8.8.8.8:9999 tcp 8.8.8.8":                          "rule p/all",
		"8.8.8.8:443 tls 8.8.8.8":                           "port",

		"10.1.2.3:443 tls 10.1.2.3":                       "rule p/lan",
		"10.1.2.3:5432 tcp 10.1.2.3":                      "rule p/lan",
		"10.1.2.3:9999 tcp 10.1.2.3":                      "private", // only 0.0.0.0/0 has the port
		"10.2.2.3:9999 tcp 10.2.2.3":                      "private",
		"10.1.0.1:443 tls 10.1.0.1":                       "private", // this machine's
		"203.0.113.9:443 tls 203.0.113.9":                 "rule p/self",
		"192.168.1.1:443 tls 192.168.1.1":                 "private",
		"127.0.0.1:9999 tcp 127.0.0.1":                    "private",
		"db.example.com:5432 tcp 10.1.9.9":                "rule p/db", // both its name and its network have a rule
		"db.example.com:5432 tcp 10.2.9.9":                "private",
		"db.example.com:5432 tcp 1.1.1.1":                 "rule p/db",
		"api.example.com:443 tls 10.1.9.9":                "rule p/allow api.example.com:443",
		"api.example.com:443 tls 10.2.9.9":                "private",
		"api.example.com:443 tls 127.0.0.1":               "private",
		"other.example.com:443 tls 10.1.9.9":              "private",
		"api.example.com:443 tls 169.254.169.254":         "address",
		"api.example.com:443 tls ::ffff:169.254.169.254":  "address",
		"api.example.com:443 tls 64:ff9b::a9fe:a9fe":      "address",
		"api.example.com:443 tls 2002:a9fe:a9fe::":        "address",
		"api.example.com:443 tls 0.0.0.0":                 "address",
		"169.254.169.254:9999 tcp 169.254.169.254":        "address",
		"168.63.129.16:9999 tcp 168.63.129.16":            "address",
		"[fd00:ec2::254]:9999 tcp fd00:ec2::254":          "address",
		"[64:ff9b:1::a01:203]:443 tls 64:ff9b:1::a01:203": "address",
		"[64:ff9b::a01:203]:443 tls 64:ff9b::a01:203":     "address",
	} {
		f := flow(t, in)
		d := table.Decide(t.Context(), f)
		got := d.Reason.String()
		if d.Rule != nil && (d.Reason == ReasonRule || d.Reason == ReasonDenied) {
			got += " " + d.Rule.ID
		}
		if got != want || d.Allow != strings.HasPrefix(want, "rule ") {
			t.Errorf("%s: %s (%v), want %s", in, got, d.Allow, want)
		}
		if hint := table.Hint(f, d); (hint == "") != d.Allow {
			t.Errorf("%s: hint %q", in, hint)
		}
		if x := table.Explain(t.Context(), f); x.Decision != d || len(x.Steps) != len(table.Rules()) {
			t.Errorf("%s: explained as %+v", in, x.Decision)
		}
	}
	if w := table.Warnings(); len(w) != 1 || !strings.Contains(w[0], "p.yaml:16: 192.168.0.0/16 is not public (private)") {
		t.Errorf("warnings %q", w)
	}
}

func TestCould(t *testing.T) {
	table := compile(t, Options{}, sample)
	for in, want := range map[string]bool{"api.example.com": true, "git.example.com": true, "a.many.example.com": true, "a.evil.many.example.com": false, "example.com": false,
		"www.example.com": true, "93.184.1.2": true, "93.184.216.1": false, "169.254.169.254": false, "10.1.2.3": false} {
		if d := table.Could(Flow{Host: host(t, in)}); d.Allow != want {
			t.Errorf("%s could: %v (%s)", in, d.Allow, d.Reason)
		}
	}
	full := flow(t, "api.example.com:443 tls 1.1.1.1")
	for name, f := range map[string]Flow{
		"no host": {Port: 443, Addr: full.Addr, Protocol: ProtocolTLS}, "no port": {Host: full.Host, Addr: full.Addr, Protocol: ProtocolTLS, Claimed: full.Host},
		"no address": {Host: full.Host, Port: 443, Protocol: ProtocolTLS, Claimed: full.Host}, "no protocol": {Host: full.Host, Port: 443, Addr: full.Addr}, "nothing": {},
	} {
		if d := table.Decide(t.Context(), f); d.Allow || d.Reason != ReasonInvalid {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if (Decision{}).Allow || compile(t, Options{}, "allow: []").Decide(t.Context(), full).Allow || new(Table).Decide(t.Context(), full).Allow {
		t.Error("allowed by nothing")
	}
}

func TestObserve(t *testing.T) {
	observe := "mode: observe\nallow: [api.example.com]\ndeny: [bad.example.com]\n"
	table := compile(t, Options{}, observe)
	for in, want := range map[string]string{
		"api.example.com:443 tls 1.1.1.1": "rule true", "new.example.com:443 tls 1.1.1.1": "observed true", "api.example.com:22 tcp 1.1.1.1": "observed true",
		"8.8.8.8:53 tcp 8.8.8.8": "observed true", "bad.example.com:443 tls 1.1.1.1": "denied false", "new.example.com:443 tls 169.254.169.254": "address false",
		"new.example.com:443 tls 10.0.0.1": "private false", "new.example.com:443 tls 1.1.1.1 evil.org": "claim false", "127.0.0.1:80 http 127.0.0.1": "private false",
	} {
		d := table.Decide(t.Context(), flow(t, in))
		if got := fmt.Sprint(d.Reason, d.Allow); got != want || d.Observed() != (d.Reason == ReasonObserved) {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	// One that enforces makes all enforce; what is included has no say.
	if compile(t, Options{}, observe, "allow: []").Observes() || !compile(t, Options{}, observe, observe).Observes() {
		t.Error("the mode of merged policies")
	}
	named := func(string) (*Document, error) { return parse(t, observe), nil }
	if compile(t, Options{Named: named}, "include: mine").Observes() {
		t.Error("an included policy made the policy observe")
	}
}

// TestMerge: allowed is what any document allows and none denies.
func TestMerge(t *testing.T) {
	table := compile(t, Options{}, "name: a\nallow: [one.example.com, two.example.com]", "name: b\nallow: [three.example.com]\ndeny: [two.example.com]\ninclude: [pypi, pypi]")
	for in, want := range map[string]bool{"one.example.com": true, "two.example.com": false, "three.example.com": true, "pypi.org": true, "files.pythonhosted.org": true, "four.example.com": false} {
		if d := table.Decide(t.Context(), flow(t, in+":443 tls 1.1.1.1")); d.Allow != want {
			t.Errorf("%s: %v %s", in, d.Allow, d.Reason)
		}
	}
	var ids []string
	for _, r := range table.Rules() {
		ids = append(ids, r.ID)
	}
	if want := []string{"b/deny two.example.com", "a/allow one.example.com:443", "a/allow two.example.com:443", "b/allow three.example.com:443", "pypi/index", "pypi/files"}; !slices.Equal(ids, want) {
		t.Errorf("rules %q", ids)
	}
	// Circles end.
	var named func(string) (*Document, error)
	named = func(n string) (*Document, error) {
		return parse(t, "name: "+n+"\ninclude: [x, y]\nallow: ["+n+".example.com]"), nil
	}
	if rules := compile(t, Options{Named: named}, "include: x").Rules(); len(rules) != 2 {
		t.Errorf("%d rules of a circle", len(rules))
	}
	endless := 0
	named = func(string) (*Document, error) {
		endless++
		return parse(t, fmt.Sprintf("include: [n%d]", endless)), nil
	}
	if _, err := Compile(Options{Named: named}, parse(t, "include: n")); err == nil {
		t.Error("includes without end")
	}
}

func TestDecideIsCheap(t *testing.T) {
	table := compile(t, Options{Own: func(netip.Addr) bool { return false }}, sample)
	for in, want := range map[string]float64{"api.example.com:443 tls 1.1.1.1": 0, "93.184.1.2:443 tls 93.184.1.2": 0, "nothing.example.net:443 tls 1.1.1.1": 0,
		"93.184.216.1:443 tls 93.184.216.1": 0, "api.example.com:443 tls 169.254.169.254": 0, "a.many.example.com:443 tls 1.1.1.1": 2} {
		f, ctx := flow(t, in), t.Context()
		if n := testing.AllocsPerRun(100, func() { table.Decide(ctx, f) }); n > want {
			t.Errorf("%s: %v allocations, want at most %v", in, n, want)
		}
	}
}

type judge func(Question) (bool, error)

func (j judge) Agree(_ context.Context, q Question) (bool, error) { return j(q) }

// TestJudge: Rego is asked about what a rule allows and nothing else, and can
// only say no.
func TestJudge(t *testing.T) {
	var asked []Question
	answer, failure := true, error(nil)
	o := Options{Judge: func(m []Module) (Judge, error) {
		if len(m) != 2 || m[0].Line != 3 || m[0].Text != "package one\n" || m[1].Text != "package two" {
			t.Errorf("modules %+v", m)
		}
		return judge(func(q Question) (bool, error) { asked = append(asked, q); return answer, failure }), nil
	}}
	texts := []string{"allow: [a.x.example, '*.x.example', '**.x.example', {host: a.x.example, ports: 80}]\nrego: |\n  package one\n", "deny: [b.x.example]\nrego: package two"}
	table := compile(t, o, texts...)
	for in, want := range map[string]Reason{"b.x.example:443 tls 1.1.1.1": ReasonDenied, "c.example:443 tls 1.1.1.1": ReasonNoRule, "a.x.example:443 tls 10.0.0.1": ReasonPrivate,
		"a.x.example:443 tls 169.254.169.254": ReasonAddress, "a.x.example:443 tls 1.1.1.1 c.example": ReasonClaim} {
		if d := table.Decide(t.Context(), flow(t, in)); d.Allow || d.Reason != want {
			t.Errorf("%s: %+v", in, d)
		}
	}
	if len(asked) != 0 {
		t.Errorf("asked %+v", asked)
	}
	f := flow(t, "a.x.example:443 tls 1.1.1.1")
	if d := table.Decide(t.Context(), f); !d.Allow || len(asked) != 1 || asked[0].Flow != f || asked[0].Rule != d.Rule || len(asked[0].Candidates) != 3 || asked[0].Candidates[0] != d.Rule {
		t.Errorf("%+v, asked %+v", d, asked)
	}
	answer = false
	if d := table.Decide(t.Context(), f); d.Allow || d.Reason != ReasonRego {
		t.Errorf("%+v", d)
	}
	answer, failure = true, errors.New("no")
	if d := table.Decide(t.Context(), f); d.Allow || d.Reason != ReasonRegoFailed || d.Err == nil {
		t.Errorf("%+v", d)
	}
	if _, err := Compile(Options{}, parse(t, texts[0])); sandbox.KindOf(err) != sandbox.KindUnsupported || !strings.Contains(err.Error(), "p.yaml:3") {
		t.Errorf("without a judge: %v", err)
	}
}

// large is a policy as large as any that a person maintains: names, wildcards
// and networks by the thousand, and deny rules.
func large(tb testing.TB, more ...string) *Table {
	var b strings.Builder
	b.WriteString("allow:\n" + strings.Join(more, ""))
	for i := range 3000 {
		fmt.Fprintf(&b, "  - host%d.example%d.com\n", i, i%50)
	}
	for i := range 500 {
		fmt.Fprintf(&b, "  - \"*.w%d.example.com\"\n  - \"**.d%d.example.org\"\n", i, i)
	}
	for i := range 1000 {
		fmt.Fprintf(&b, "  - 93.%d.%d.0/24\n", i/200, i%200)
	}
	b.WriteString("deny:\n")
	for i := range 200 {
		fmt.Fprintf(&b, "  - \"**.bad%d.example.com\"\n  - 94.%d.0.0/16\n", i, i)
	}
	text := strings.ReplaceAll(b.String(), "  - 9", "  - cidr: 9")
	var m netaddr.Machine
	return compile(tb, Options{Own: m.Own}, text)
}

// BenchmarkDecide is the promise of ≤ 500 ns: p50-ns of single decisions, the
// reading of the clock included, for a policy of 5400 rules.
func BenchmarkDecide(b *testing.B) {
	table := large(b)
	for name, in := range map[string]string{
		"name": "host1234.example34.com:443 tls 1.1.1.1", "wildcard": "a.w77.example.com:443 tls 1.1.1.1", "deep": "a.b.c.d.e.d77.example.org:443 tls 1.1.1.1",
		"address": "93.3.77.1:443 tls 93.3.77.1", "default": "nothing.example.net:443 tls 1.1.1.1", "denied": "a.bad7.example.com:443 tls 1.1.1.1",
	} {
		b.Run(name, func(b *testing.B) {
			f := flow(b, in)
			took := make([]time.Duration, 0, 1<<20)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				begin := time.Now()
				table.Decide(ctx, f)
				if d := time.Since(begin); len(took) < cap(took) {
					took = append(took, d)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
			b.ReportMetric(float64(took[len(took)*99/100]), "p99-ns")
		})
	}
}
