package broker

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

var plainBinding = Binding{Name: "api", Secret: "token", Host: "api.example.com"}

func TestNormal(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Binding)
		want   Binding // of what differs from the plain one in normal form
	}{
		"defaults": {func(b *Binding) {}, Binding{}},
		"plain":    {func(b *Binding) { b.Plain = true }, Binding{Plain: true, Port: 80}},
		"port":     {func(b *Binding) { b.Port = 8443 }, Binding{Port: 8443}},
		"host":     {func(b *Binding) { b.Host = "API.Example.COM." }, Binding{}},
		"idna":     {func(b *Binding) { b.Host = "bücher.example" }, Binding{Host: "xn--bcher-kva.example"}},
		"path":     {func(b *Binding) { b.Path = "/v1/" }, Binding{Path: "/v1"}},
		"methods":  {func(b *Binding) { b.Methods = []string{"post", "GET", "POST"} }, Binding{Methods: []string{"GET", "POST"}}},
		"basic":    {func(b *Binding) { b.Inject = Inject{"basic", "me"} }, Binding{Inject: Inject{"basic", "me"}}},
		"no user":  {func(b *Binding) { b.Inject = Inject{"basic", ""} }, Binding{Inject: Inject{"basic", ""}}},
		"header":   {func(b *Binding) { b.Inject = Inject{"header", "x-api-key"} }, Binding{Inject: Inject{"header", "X-Api-Key"}}},
		"cookie":   {func(b *Binding) { b.Inject = Inject{"header", "cookie"} }, Binding{Inject: Inject{"header", "Cookie"}}},
		"query":    {func(b *Binding) { b.Inject = Inject{"query", "api_key"} }, Binding{Inject: Inject{"query", "api_key"}}},
		"tier":     {func(b *Binding) { b.Tier = sandbox.IsolationHypervisor }, Binding{Tier: sandbox.IsolationHypervisor}},
		"git":      {func(b *Binding) { b.Git = &Git{Repo: "/o/r.git"} }, Binding{Git: &Git{Repo: "o/r"}, Path: "/o/r", Inject: Inject{"basic", "x-access-token"}}},
		"git as": {func(b *Binding) { b.Git, b.Path, b.Inject = &Git{Repo: "o/r"}, "/o/r", Inject{"bearer", ""} },
			Binding{Git: &Git{Repo: "o/r"}, Path: "/o/r"}},
		"git push": {func(b *Binding) {
			b.Git, b.Inject = &Git{Repo: "r", Push: []string{"refs/tags/v1", "refs/heads/a/*", "refs/tags/v1"}}, Inject{"basic", "oauth2"}
		}, Binding{Git: &Git{Repo: "r", Push: []string{"refs/heads/a/*", "refs/tags/v1"}}, Path: "/r", Inject: Inject{"basic", "oauth2"}}},
	} {
		b := plainBinding
		c.change(&b)
		got, err := b.Normal()
		want := Binding{Name: "api", Secret: "token", Host: "api.example.com", Port: 443, Path: "/", Inject: Inject{As: "bearer"}}
		for i := range reflect.TypeFor[Binding]().NumField() {
			if f := reflect.ValueOf(c.want).Field(i); !f.IsZero() {
				reflect.ValueOf(&want).Elem().Field(i).Set(f)
			}
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, want)
		}
		if err := got.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if again, err := got.Normal(); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s: again %+v, %v", name, again, err)
		}
	}
	if err := plainBinding.Check(); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("one without a port is normal: %v", err)
	}
}

// TestBadBindings: each is refused with what to write instead.
func TestBadBindings(t *testing.T) {
	field := func(as, name string) func(*Binding) { return func(b *Binding) { b.Inject = Inject{as, name} } }
	cases := map[string]func(*Binding){
		"no name":        func(b *Binding) { b.Name = "" },
		"capital name":   func(b *Binding) { b.Name = "Api" },
		"dotted name":    func(b *Binding) { b.Name = "a.b" },
		"hyphen name":    func(b *Binding) { b.Name = "-a" },
		"long name":      func(b *Binding) { b.Name = strings.Repeat("a", 64) },
		"no secret":      func(b *Binding) { b.Secret = "" },
		"secret's path":  func(b *Binding) { b.Secret = "../x" },
		"no method":      func(b *Binding) { b.Methods = []string{""} },
		"connect":        func(b *Binding) { b.Methods = []string{"connect"} },
		"trace":          func(b *Binding) { b.Methods = []string{"TRACE"} },
		"method's line":  func(b *Binding) { b.Methods = []string{"GET /\r\n"} },
		"no way":         field("cookie", "x"),
		"bearer's field": field("bearer", "x"),
		"user's colon":   field("basic", "a:b"),
		"user's line":    field("basic", "a\r\nb"),
		"no header":      field("header", ""),
		"header's colon": field("header", "X:"),
		"header's line":  field("header", "X\r\nHost"),
		"no parameter":   field("query", ""),
		"parameter's &":  field("query", "a&b"),
		"tier":           func(b *Binding) { b.Tier = 9 },
		"negative tier":  func(b *Binding) { b.Tier = -1 },
	}
	git := func(g Git, change func(*Binding)) func(*Binding) {
		return func(b *Binding) { b.Git = &g; change(b) }
	}
	same := func(*Binding) {}
	for _, repo := range []string{"", "/", "..", "a/../b", "a//b", "a b", "a?b", "a%62", ".git", "a/.git", "https://a/b"} {
		cases["git "+repo] = git(Git{Repo: repo}, same)
	}
	for _, p := range []string{"", "main", "*", "refs/*", "refs/heads/a*", "refs/heads/../x", "refs/heads/", "+refs/heads/x", "refs/heads/x:refs/heads/y", "refs/heads/ü"} {
		cases["git-push "+p] = git(Git{Repo: "a", Push: []string{p}}, same)
	}
	many := Git{Repo: "a"}
	for i := range 33 {
		many.Push = append(many.Push, "refs/heads/"+strings.Repeat("x", i+1))
	}
	cases["git-push, many"] = git(many, same)
	cases["git's path"] = git(Git{Repo: "a"}, func(b *Binding) { b.Path = "/b" })
	cases["git's method"] = git(Git{Repo: "a"}, func(b *Binding) { b.Methods = []string{"GET"} })
	cases["git's query"] = git(Git{Repo: "a"}, func(b *Binding) { b.Inject = Inject{"query", "k"} })
	for _, h := range []string{"", "*.example.com", "*", "10.0.0.1", "93.184.216.34", "::1", "[2606:2800::1]", "2130706433", "0x7f.1", "a.example.com:443", "https://a.example.com",
		"a_b.example.com", "user@a.example.com", "a.example.com/x", "a b", "openai.binding.internal", "binding.internal", "A.Binding.Internal."} {
		cases["host "+h] = func(b *Binding) { b.Host = h }
	}
	for _, p := range []string{"v1", "/v1//x", "//", "/..", "/v1/../x", "/v1/.", "/a%2e", "/a?b", "/a#b", "/a;b", `/a\b`, "/a b", "/a\nb", "/ä", "/" + strings.Repeat("a", 1025)} {
		cases["path "+p] = func(b *Binding) { b.Path = p }
	}
	for _, h := range []string{"Host", "content-length", "Transfer-Encoding", "connection", "TE", "Upgrade", "Trailer", "Proxy-Authorization", "Expect", "Keep-Alive"} {
		cases["header "+h] = field("header", h)
	}
	for name, change := range cases {
		b := plainBinding
		change(&b)
		_, err := b.Normal()
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != sandbox.KindInvalid || e.Hint == "" && !strings.Contains(name, "tier") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBindingJSON: the stored form is fixed, with the tier by its name.
func TestBindingJSON(t *testing.T) {
	b := plainBinding
	b.Tier, b.Methods = sandbox.IsolationUserKernel, []string{"GET"}
	b, err := b.Normal()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(b)
	const want = `{"name":"api","secret":"token","host":"api.example.com","port":443,"methods":["GET"],"path":"/","inject":{"as":"bearer"},"tier":"user-kernel"}`
	if err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
	var back Binding
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, b) {
		t.Errorf("%+v, %v", back, err)
	}
	b.Git = &Git{Repo: "o/r", Push: []string{"refs/heads/x"}}
	if text, err = json.Marshal(b); err != nil || !strings.Contains(string(text), `"git":{"repo":"o/r","push":["refs/heads/x"]}`) {
		t.Errorf("%s, %v", text, err)
	}
	if b.Check() == nil { // its path is another's
		t.Error("a binding for git that is none is normal")
	}
	b.Git, b.Tier = nil, sandbox.IsolationNone
	if text, err = json.Marshal(&b); err != nil || strings.Contains(string(text), "tier") {
		t.Errorf("%s, %v", text, err)
	}
	if err := json.Unmarshal(text, &back); err != nil || back.Tier != sandbox.IsolationNone || back.Git != nil {
		t.Errorf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"tier":"L9"}`), &back); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Error(err)
	}
}

// FuzzBinding: what is normal stays so, as JSON too, and its parts are what they
// should be.
func FuzzBinding(f *testing.F) {
	for _, s := range []string{`{"name":"api","secret":"s","host":"a.example.com"}`, `{"name":"api","secret":"s","host":"A.example.com.","path":"/v1/","methods":["get"],"tier":"hypervisor"}`,
		`{"name":"a","secret":"s","host":"a.b","inject":{"as":"header","name":"x-y"}}`, `{"name":"a","secret":"s","host":"1.2.3.4"}`,
		`{"name":"a","secret":"s","host":"a.b","git":{"repo":"/o/r.git","push":["refs/heads/b/*","refs/heads/a"]}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var b Binding
		if json.Unmarshal(text, &b) != nil {
			return
		}
		n, err := b.Normal()
		if err != nil {
			if sandbox.KindOf(err) != sandbox.KindInvalid {
				t.Fatal(err)
			}
			return
		}
		if err := n.Check(); err != nil {
			t.Fatalf("%+v: %v", n, err)
		}
		if strings.ContainsAny(n.Path+n.Host+n.Inject.Name, "\r\n\x00%?#\\ ") && n.Inject.As != AsHeader || strings.Contains(n.Path, "..") && strings.Contains(n.Path, "/../") || n.Port == 0 {
			t.Fatalf("%+v", n)
		}
		again, err := json.Marshal(n)
		var back Binding
		if err == nil {
			err = json.Unmarshal(again, &back)
		}
		if err != nil || !reflect.DeepEqual(back, n) {
			t.Fatalf("%+v became %+v, %v", n, back, err)
		}
	})
}
