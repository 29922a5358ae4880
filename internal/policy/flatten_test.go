package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// library is named documents.
func library(t *testing.T, texts map[string]string) func(string) (*Document, error) {
	t.Helper()
	return func(name string) (*Document, error) {
		text, ok := texts[name]
		if !ok {
			return nil, sandbox.Errorf("policy", sandbox.KindNotFound, "there is no policy called %q", name)
		}
		return Parse(name, []byte(text))
	}
}

func ruleIDs(t *Table) (ids []string) {
	for _, r := range t.Rules() {
		ids = append(ids, fmt.Sprint(r.ID, r.Deny, r.Ports, r.Protocols, r.Budget, r.Hosts, r.Networks, r.Opaque, r.Methods, r.Paths))
	}
	return ids
}

// TestFlatten: what is flattened says the same without anybody's documents, and
// does so after it was written down.
func TestFlatten(t *testing.T) {
	named := library(t, map[string]string{
		"a": "name: a\ninclude: [b, pypi]\nallow: [a.example.com, {host: '*.cdn.example.com', budget: {names: 9, upload: 1MiB}}]",
		"b": "mode: observe\ninclude: [a, c, npm]\nallow: [{id: own, host: b.example.com, ports: [80, '8000-8010'], protocol: [http, tcp]}]\ndeny: [{cidr: 10.0.0.0/8, ports: 22}]",
		"c": "allow: [c.example.com, {host: c.example.com, methods: [PUT, GET], paths: [/v1/]}, {host: d.example.com, inspect: none}]\ndeny: [{host: c.example.com, paths: [/v1/x, /v1/a]}]\nrego: |\n  package firebreak\n  allow := true\n",
	})
	judge := func([]Module) (Judge, error) { return nil, nil }
	for name, c := range map[string]struct {
		docs    []string
		observe bool
		bad     sandbox.Kind
	}{
		"nothing":         {docs: []string{"allow: []"}},
		"includes":        {docs: []string{"include: [github, a]\nallow: [x.example.com]"}},
		"twice":           {docs: []string{"include: [a]", "include: [a, b]\ndeny: [x.example.com]"}},
		"observes":        {docs: []string{"mode: observe\ninclude: [a]", "mode: observe\nallow: []"}, observe: true},
		"one enforces":    {docs: []string{"mode: observe\ninclude: [a]", "allow: []"}},
		"nobody's":        {docs: []string{"include: [nobody]"}, bad: sandbox.KindNotFound},
		"same rule twice": {docs: []string{"allow: [x.example.com]", "allow: [x.example.com]"}},
	} {
		var docs, again []*Document
		for i, text := range c.docs {
			docs = append(docs, mustParse(t, fmt.Sprint(name, i), text))
		}
		want, err := Compile(Options{Named: named, Judge: judge}, docs...)
		flat, ferr := Flatten(named, docs...)
		if c.bad != "" {
			if sandbox.KindOf(err) != c.bad || sandbox.KindOf(ferr) != c.bad {
				t.Errorf("%s: %v, %v", name, err, ferr)
			}
			continue
		}
		if err != nil || ferr != nil {
			t.Errorf("%s: %v, %v", name, err, ferr)
			continue
		}
		for i, d := range flat {
			text := d.YAML()
			if strings.Contains(string(text), "include") {
				t.Errorf("%s: %s", name, text)
			}
			again = append(again, mustParse(t, fmt.Sprint("flat", i), string(text)))
		}
		got, err := Compile(Options{Judge: judge}, again...)
		if err != nil || !slices.Equal(ruleIDs(got), ruleIDs(want)) || len(got.Modules()) != len(want.Modules()) || got.Observes() != want.Observes() || got.Observes() != c.observe {
			t.Errorf("%s: %v\n%q\n%q", name, err, ruleIDs(got), ruleIDs(want))
		}
	}
}

func mustParse(t *testing.T, file, text string) *Document {
	t.Helper()
	d, err := Parse(file, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFlattenIsBounded(t *testing.T) {
	endless := func(name string) (*Document, error) {
		return Parse(name, []byte("include: ["+name+"x, "+name+"y]"))
	}
	if _, err := Flatten(endless, mustParse(t, "f", "include: [a]")); sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Error(err)
	}
}

func TestParseAllow(t *testing.T) {
	for s, want := range map[string]string{
		"api.example.com":                  "allow api.example.com:443",
		"API.Example.com.":                 "allow api.example.com:443",
		"api.example.com:8443":             "allow api.example.com:8443",
		"api.example.com:8000-8010":        "allow api.example.com:8000-8010",
		"*.cdn.example.com":                "allow *.cdn.example.com:443",
		"**.deep.example.com:80":           "allow **.deep.example.com:80",
		"93.184.216.34":                    "allow 93.184.216.34/32:443",
		"10.1.0.0/16:5432":                 "allow 10.1.0.0/16:5432",
		"2606:4700::1111":                  "allow 2606:4700::1111/128:443",
		"[2606:4700::1111]:53":             "allow 2606:4700::1111/128:53",
		"[2606:4700::1111]":                "allow 2606:4700::1111/128:443",
		"xn--bcher-kva.example":            "allow xn--bcher-kva.example:443",
		"[2606:4700:4700::1111]:1-65535":   "allow 2606:4700:4700::1111/128:1-65535",
		"":                                 "",
		":443":                             "",
		"a.example.com:":                   "",
		"a.example.com:0":                  "",
		"a.example.com:65536":              "",
		"a.example.com:https":              "",
		"https://a.example.com":            "",
		"a.example.com/path":               "",
		"*.com":                            "",
		"*":                                "",
		"a.*.example.com":                  "",
		"169.254.169.254":                  "",
		"[a.example.com]:443":              "",
		"[2606:4700::1111]:":               "",
		"[2606:4700::1111":                 "",
		"[2606:4700::1111]443":             "",
		"10.1.2.3/16":                      "",
		"a b.example.com":                  "",
		"user@a.example.com":               "",
		strings.Repeat("a", 64) + ".c.com": "",
	} {
		r, err := ParseAllow(s)
		switch {
		case want == "" && sandbox.KindOf(err) != sandbox.KindInvalid:
			t.Errorf("%q: %v, %v", s, r, err)
		case want != "" && (err != nil || r.derivedID("allow") != want):
			t.Errorf("%q: %q, %v, want %q", s, r.derivedID("allow"), err, want)
		}
		if want == "" {
			continue
		}
		// It is what a document that says the same is.
		table, err := Compile(Options{}, mustDocument(t, s))
		if err != nil || len(table.Rules()) != 1 || table.Rules()[0].ID != want {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func mustDocument(t *testing.T, allow ...string) *Document {
	t.Helper()
	d, err := Allowing(allow)
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, "allow", string(d.YAML()))
}

// FuzzAllow: whatever is accepted is a rule that can be written down and read
// back, and that a hint about it would name again.
func FuzzAllow(f *testing.F) {
	for _, s := range []string{"api.example.com:8443", "*.a.example.com", "10.0.0.0/8:1-9", "[::ffff:1.2.3.4]:80", "[2606::1]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseAllow(s)
		if err != nil {
			return
		}
		if len(r.Hosts)+len(r.Networks) != 1 || len(r.Ports) != 1 {
			t.Fatalf("%q: %+v", s, r)
		}
		d := &Document{Mode: ModeEnforce, Allow: []Rule{r}}
		back, err := Parse("f", d.YAML())
		if err != nil || len(back.Allow) != 1 || back.Allow[0].derivedID("allow") != r.derivedID("allow") || back.Allow[0].Budget != r.Budget {
			t.Fatalf("%q: %s: %v", s, d.YAML(), err)
		}
	})
}
