package server

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestSignedURL: it opens what was signed and nothing else, until its time is over
// or its sandbox has ended, and its use is on record.
func TestSignedURL(t *testing.T) {
	r := newReal(t)
	r.prepare()
	other := member(t, r.did("POST", "/v1/sandboxes", `{}`), "id")
	r.call(r.owner, "PUT", "/v1/sandboxes/"+other+"/files?path=there", "the other's")
	r.did("PUT", r.path("/files?path=secret"), "secret")
	sign := func(key, body string, want int) string {
		t.Helper()
		code, answer := r.call(key, "POST", r.path("/files/sign"), body)
		if code != want {
			t.Fatalf("%s: %d %s", body, code, answer)
		}
		if want != http.StatusOK {
			return ""
		}
		return member(t, answer, "url")
	}
	read := sign(r.owner, `{"path":"there","operation":"read"}`, 200)
	write := sign(r.owner, `{"path":"new file","operation":"write","expires_in":60}`, 200)
	sign(r.viewer, `{"path":"there","operation":"write"}`, 403)
	sign(r.owner, `{"path":"there","operation":"list"}`, 400)
	sign(r.owner, `{"path":"there","operation":"read","expires_in":604801}`, 400)
	sign(r.owner, `{"path":"there","operation":"read","user":"root"}`, 403)
	sign(r.owner, `{"path":"","operation":"read"}`, 400)

	r.fresh()
	if code, got := r.call("", "GET", read, ""); code != 200 || got != "content" {
		t.Fatalf("read: %d %q", code, got)
	}
	if code, _ := r.call("", "HEAD", read, ""); code != 200 {
		t.Errorf("HEAD: %d", code)
	}
	if code, got := r.call("", "PUT", write, "by URL"); code != 200 {
		t.Fatalf("write: %d %q", code, got)
	}
	if got := r.did("GET", r.path("/files?path=new+file"), ""); got != "by URL" {
		t.Errorf("%q", got)
	}
	by := 0
	for _, rec := range r.fresh() {
		if strings.HasPrefix(rec.Principal, "signed:") && rec.Outcome == sandbox.OutcomeAllowed && (rec.Action == "file.read" || rec.Action == "file.write" || rec.Action == "file.stat") {
			by++
		}
	}
	if by != 3 {
		t.Errorf("%d records of its use", by)
	}

	// Whatever is changed, or added, makes it another URL.
	refused := func(what, method, target string) {
		t.Helper()
		r.srv.strangers.forget()
		for _, key := range []string{"", r.owner} { // no other credential helps
			code, got := r.call(key, method, target, "")
			if code != http.StatusUnauthorized || !strings.Contains(got, "not valid here and now") {
				t.Errorf("%s: %d %s", what, code, got)
			}
		}
	}
	at, query, _ := strings.Cut(read, "?")
	with := func(f func(url.Values)) string {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		f(q)
		return at + "?" + q.Encode()
	}
	for name := range map[string]bool{"path": true, "user": true, "operation": true, "expires": true, "by": true, "signature": true} {
		for _, v := range []string{"", "secret", "write", "user", "99999999999"} {
			if name == "user" && v == "" { // as it is
				continue
			}
			refused(name+"="+v, "GET", with(func(q url.Values) { q.Set(name, v) }))
		}
		refused(name+" twice", "GET", with(func(q url.Values) { q.Add(name, q.Get(name)); q.Add(name, "secret") }))
	}
	for _, extra := range []string{"offset=1", "length=1", "mode=777", "data=eA%3D%3D", "id=x", "x=y"} {
		refused(extra, "GET", read+"&"+extra)
		refused(extra, "PUT", write+"&"+extra)
	}
	refused("moved boundaries", "GET", with(func(q url.Values) { q.Set("path", "ther"); q.Set("user", "e") }))
	refused("PUT of a read", "PUT", read)
	refused("GET of a write", "GET", write)
	refused("POST", "POST", write)
	refused("another sandbox", "GET", "/v1/sandboxes/"+other+"/files?"+query)
	refused("by name", "GET", "/v1/sandboxes/prepared/files?"+query)
	refused("no such sandbox", "GET", "/v1/sandboxes/sbaaaaaaaaaaaaaaaaaaaa/files?"+query)
	r.srv.strangers.forget()
	for _, p := range []string{"/files/stat", "/files/list", "/files/watch"} {
		if code, _ := r.call("", "GET", r.path(p)+"?"+query, ""); code != http.StatusUnauthorized {
			t.Errorf("%s: %d", p, code)
		}
	}
	if code, _ := r.call("", "DELETE", read, ""); code != http.StatusUnauthorized {
		t.Errorf("DELETE: %d", code)
	}
	// The key it is made with is none of the tokens that are handed out.
	tokens, err := auth.OpenTokens(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if id := sandbox.ID(r.id); tokens.Token(auth.UseFile, sandbox.DefaultTenant, id) == tokens.Token(auth.UseInside, sandbox.DefaultTenant, id) {
		t.Error("one key for two uses")
	}

	short := sign(r.owner, `{"path":"there","operation":"read","expires_in":1}`, 200)
	r.srv.strangers.forget()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if code, _ := r.call("", "GET", short, ""); code == http.StatusUnauthorized {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it never expires")
		}
	}
	r.did("DELETE", r.path(""), "")
	refused("its sandbox has ended", "GET", read)
}
