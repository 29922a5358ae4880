package inspect

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
)

// zero and one are ids; list are commands as git sends them.
var zero, one = strings.Repeat("0", 40), strings.Repeat("1", 40)

func list(lines ...string) string {
	var out []byte
	for _, l := range lines {
		out = packet(out, l)
	}
	return string(out) + flush
}

const can = "\x00 report-status-v2 side-band-64k object-format=sha1 agent=git/2.39.5"

func TestReadPush(t *testing.T) {
	create := zero + " " + one + " refs/heads/agent/x"
	for name, c := range map[string]struct {
		body string
		refs string
	}{
		"one":          {list(create+can) + "PACKdata", "refs/heads/agent/x"},
		"line's end":   {list(create+can+"\n") + "PACK", "refs/heads/agent/x"},
		"no abilities": {list(create+"\n") + "PACK", "refs/heads/agent/x"},
		"two":          {list(create+can, one+" "+zero+" refs/heads/main") + "PACK", "refs/heads/agent/x refs/heads/main"},
		"deletion":     {list(one + " " + zero + " refs/heads/main" + can), "refs/heads/main"},
		"sha256":       {list(strings.Repeat("0", 64)+" "+strings.Repeat("a", 64)+" refs/heads/x"+can) + "PACK", "refs/heads/x"},
		"shallow":      {list("shallow "+one, "shallow "+one+"\n", create+can) + "PACK", "refs/heads/agent/x"},
		"may I":        {flush, ""},
		"capital length": {strings.Replace(list(zero+" "+one+" refs/heads/"+strings.Repeat("x", 0xb0-4-82-11)), "00b0", "00B0", 1) + "PACK",
			"refs/heads/" + strings.Repeat("x", 0xb0-4-82-11)},
	} {
		p, err := readPush(strings.NewReader(c.body))
		if err != nil || strings.Join(p.refs, " ") != c.refs || !strings.HasPrefix(c.body, string(p.head)) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	for name, body := range map[string]string{
		"nothing":               "",
		"no flush":              strings.TrimSuffix(list(create+can), flush),
		"cut":                   list(create + can)[:60],
		"cut length":            "00",
		"no hex":                "00x5a",
		"sign":                  "+0050",
		"a delimiter":           strings.TrimSuffix(list(create+can), flush) + "0001" + flush + "PACK",
		"an end of the answer":  strings.TrimSuffix(list(create+can), flush) + "0002" + "PACK",
		"a length of 3":         "0003" + list(create+can),
		"an empty packet":       "0004" + list(create+can),
		"too long":              "fff5" + strings.Repeat("x", 65521),
		"no pack":               list(create+can) + "JUNK",
		"more commands":         list(create+can) + list(zero+" "+one+" refs/heads/main") + "PACK",
		"half a pack":           list(create+can) + "PA",
		"a pack of nothing":     flush + "PACK",
		"short ids":             list(zero[1:]+" "+one+" refs/heads/x"+can) + "PACK",
		"ids of two kinds":      list(zero+" "+strings.Repeat("1", 64)+" refs/heads/x"+can) + "PACK",
		"ids of two kinds, two": list(create+can, strings.Repeat("0", 64)+" "+strings.Repeat("1", 64)+" refs/heads/x") + "PACK",
		"capital ids":           list(zero+" "+strings.Repeat("A", 40)+" refs/heads/x"+can) + "PACK",
		"no ref":                list(zero+" "+one+can) + "PACK",
		"an empty ref":          list(zero+" "+one+" "+can) + "PACK",
		"two spaces":            list(zero+" "+one+"  refs/heads/x"+can) + "PACK",
		"a tab":                 list(zero+"\t"+one+" refs/heads/x"+can) + "PACK",
		"a space in a ref":      list(create+" refs/heads/main"+can) + "PACK",
		"a line in a ref":       list(create+"\n"+can) + "PACK",
		"a line after a ref":    list(create+can, zero+" "+one+" refs/heads/y\n\n") + "PACK",
		"abilities twice":       list(create+can, zero+" "+one+" refs/heads/main"+can) + "PACK",
		"a late shallow":        list(create+can, "shallow "+one) + "PACK",
		"a shallow that can":    list("shallow "+one+can, create) + "PACK",
		"a shallow of nothing":  list("shallow x", create+can) + "PACK",
		"a signed one":          list("push-cert"+can, "certificate version 0.1\n", "push-cert-end\n") + "PACK",
		"options":               list(create+"\x00report-status push-options") + "PACK",
		"an unknown ability":    list(create+"\x00report-status frobnicate") + "PACK",
		"NUL in abilities":      list(create+"\x00report-status\x00agent=x") + "PACK",
		"a tab in abilities":    list(create+"\x00agent=x\tpush-options") + "PACK",
		"an error":              list("ERR no"),
		"many":                  list(append([]string{create + can}, many(maxCommands)...)...) + "PACK",
		"long":                  list(append([]string{create + can}, many(1999, strings.Repeat("x", 100))...)...) + "PACK",
	} {
		var no *Refusal
		if p, err := readPush(strings.NewReader(body)); !errors.As(err, &no) || no.Status/100 != 4 || no.Reason != ReasonRequest || no.Text == "" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := readPush(io.MultiReader(strings.NewReader("00"), &failing{errLeak})); !errors.Is(err, errLeak) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func many(n int, more ...string) (lines []string) {
	for i := range n {
		lines = append(lines, fmt.Sprintf("%s %s refs/heads/agent/%d%s", zero, one, i, strings.Join(more, "")))
	}
	return lines
}

// lenient reads commands as git's receive-pack does, which takes more.
func lenient(body []byte) (refs []string, ok bool) {
	for {
		var n int
		if len(body) < 4 {
			return nil, false
		}
		if _, err := fmt.Sscanf(string(body[:4]), "%04x", &n); err != nil || n > len(body) || n == 3 {
			return nil, false
		}
		if n < 3 {
			return refs, true
		}
		line := string(bytes.TrimSuffix(body[4:n], []byte("\n")))
		body = body[n:]
		if len(line) > 8 && strings.HasPrefix(line, "shallow ") {
			continue
		}
		line, _, _ = strings.Cut(line, "\x00")
		for range 2 {
			_, line, _ = strings.Cut(line, " ")
		}
		refs = append(refs, line)
	}
}

// FuzzPush: of a push that is taken git sees the same commands, and none of its bytes
// is lost.
func FuzzPush(f *testing.F) {
	f.Add([]byte(list(zero+" "+one+" refs/heads/agent/x"+can) + "PACK"))
	f.Add([]byte(list("shallow "+one, one+" "+zero+" refs/heads/x"+can, zero+" "+one+" refs/heads/y\n")))
	f.Add([]byte(list("push-cert" + can)))
	f.Add([]byte(flush))
	g := &Git{Repo: "o/r", Push: []string{"refs/heads/agent/*"}}
	f.Fuzz(func(t *testing.T, body []byte) {
		from := bytes.NewReader(body)
		p, err := readPush(from)
		var no *Refusal
		if err != nil {
			if !errors.As(err, &no) {
				t.Fatal(err)
			}
			return
		}
		rest, _ := io.ReadAll(from)
		if refs, ok := lenient(body); !ok || strings.Join(refs, " ") != strings.Join(p.refs, " ") || !bytes.Equal(append(bytes.Clone(p.head), rest...), body) {
			t.Errorf("%q: %q, git sees %q", body, p.refs, refs)
		}
		if g.judge(p) == nil {
			for _, ref := range p.refs {
				if !strings.HasPrefix(ref, "refs/heads/agent/") || strings.Contains(ref, "..") {
					t.Errorf("%q may be pushed to", ref)
				}
			}
		}
	})
}

// forGit makes the gate one for git.
func forGit(push ...string) func(*Target, *Options) {
	return func(x *Target, _ *Options) {
		x.Path, x.As, x.Field, x.Git = "/owner/repo", "basic", "x-access-token", &Git{Repo: "owner/repo", Push: push}
	}
}

// TestGitRequests: four requests are git's, and nothing else gets to the host.
func TestGitRequests(t *testing.T) {
	var got http.Header
	g := newGate(t, forGit("refs/heads/agent/*"), func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	const fetch, push = "application/x-git-upload-pack-request", "application/x-git-receive-pack-request"
	for _, c := range []struct{ method, target, kind, body, said string }{
		{"GET", "/owner/repo/info/refs?service=git-upload-pack", "", "", ""},
		{"GET", "/owner/repo.git/info/refs?service=git-receive-pack", "", "", ""},
		{"POST", "/owner/repo.git/git-upload-pack", fetch, "0000", ""},
		{"POST", "/owner/repo/git-receive-pack", push, "0000", ""},
		{"POST", "/owner/repo/git-receive-pack", push, list(zero+" "+one+" refs/heads/agent/x"+can) + "PACK", ""},
		{"POST", "/owner/repo/git-receive-pack", push, list(zero+" "+one+" refs/heads/main"+can) + "PACK", "push"},
		{"POST", "/owner/repo/git-receive-pack", push, list(zero+" "+one+" refs/heads/main") + "PACK", "push"},
		{"POST", "/owner/repo/git-receive-pack", push, list(zero+" "+one+" refs/heads/agent/x"+can, one+" "+zero+" refs/heads/main") + "PACK", "push"},
		{"POST", "/owner/repo/git-receive-pack", push, "junk", "request"},
		{"POST", "/owner/repo/git-receive-pack", push, "", "request"},
		{"POST", "/owner/repo/git-receive-pack", fetch, "0000", "request"},
		{"POST", "/owner/repo/git-upload-pack", "text/plain", "0000", "request"},
		{"POST", "/owner/repo/git-upload-pack", "", "0000", "request"},
		{"GET", "/owner/repo/info/refs", "", "", "path"},
		{"GET", "/owner/repo/info/refs?service=git-upload-archive", "", "", "path"},
		{"GET", "/owner/repo/info/refs?service=git-upload-pack&x=1", "", "", "path"},
		{"GET", "/owner/repo/info/refs?x=1&service=git-upload-pack", "", "", "path"},
		{"GET", "/owner/repo/info/refs?service=git%2dupload-pack", "", "", "path"},
		{"GET", "/owner/repo/info/refs?git-upload-pack", "", "", "path"},
		{"POST", "/owner/repo/git-upload-pack?x=1", fetch, "0000", "path"},
		{"POST", "/owner/repo/git-receive-pack?service=git-upload-pack", push, "0000", "path"},
		{"POST", "/owner/repo/info/refs?service=git-upload-pack", "", "x", "method"},
		{"HEAD", "/owner/repo/info/refs?service=git-upload-pack", "", "", "method"},
		{"GET", "/owner/repo/git-upload-pack", "", "", "method"},
		{"PUT", "/owner/repo/git-receive-pack", push, "0000", "method"},
		{"GET", "/owner/repo/info/refs?service=git-upload-pack", "", "x", "request"},
		{"GET", "/owner/repo", "", "", "path"},
		{"GET", "/owner/repo/HEAD", "", "", "path"},
		{"GET", "/owner/repo/objects/info/packs", "", "", "path"},
		{"POST", "/owner/repo.git/info/lfs/objects/batch", "", "{}", "path"},
		{"GET", "/owner/repo/archive/main.tar.gz", "", "", "path"},
		{"POST", "/owner/repo/git-upload-archive", "", "x", "path"},
		{"GET", "/owner/other/info/refs?service=git-upload-pack", "", "", "path"},
		{"GET", "/owner/repos/info/refs?service=git-upload-pack", "", "", "path"},
		{"GET", "/owner/repo.git.git/info/refs?service=git-upload-pack", "", "", "path"},
		{"GET", "/owner/repo.wiki.git/info/refs?service=git-upload-pack", "", "", "path"},
		{"GET", "/Owner/repo/info/refs?service=git-upload-pack", "", "", "path"},
		{"GET", "/owner/rep%6f/info/refs?service=git-upload-pack", "", "", "path"},
		{"GET", "/owner/repo/../other/info/refs?service=git-upload-pack", "", "", "request"},
		{"GET", "/api/v3/user", "", "", "path"},
	} {
		was, n := g.requests.Load(), len(g.said())
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: api.binding.internal\r\nConnection: close\r\n", c.method, c.target)
		if c.kind != "" {
			text += "Content-Type: " + c.kind + "\r\n"
		}
		if c.body != "" || c.method == "POST" {
			text += fmt.Sprintf("Content-Length: %d\r\n", len(c.body))
		}
		answer := g.raw(text + "\r\n" + c.body)
		sent, said := g.requests.Load()-was, g.said()[n:]
		if c.said == "" && (sent != 1 || len(said) > 0 || !strings.HasPrefix(answer, "HTTP/1.1 200 ")) {
			t.Errorf("%s %s: %d, %q, %.200q", c.method, c.target, sent, said, answer)
		}
		if c.said != "" && (sent != 0 || len(said) != 1 || said[0] != c.method+" "+c.said || strings.HasPrefix(answer, "HTTP/1.1 2") && !strings.Contains(answer, "ng refs/heads/main not by this binding")) {
			t.Errorf("%s %s: %d, %q, %.200q", c.method, c.target, sent, said, answer)
		}
	}
	const info = "/owner/repo/info/refs?service=git-upload-pack"
	for value, want := range map[string]int{"version=2": 200, "version=1": 200, "version=3": 400, "version=2:x": 400, "": 400} {
		resp, body := g.do("GET", info, nil, "Git-Protocol", value, "X-Anything", "1", "X-Http-Method-Override", "PUT", "Range", "bytes=1-", "Authorization", "Basic mine")
		if resp.StatusCode != want || want == 200 && (got.Get("Git-Protocol") != value || len(got) != 4) {
			t.Errorf("%s: %s %s %v", value, resp.Status, body, got)
		}
	}
	none := newGate(t, forGit(), func(http.ResponseWriter, *http.Request) {})
	for _, c := range []string{"GET /owner/repo/info/refs?service=git-receive-pack", "POST /owner/repo/git-receive-pack"} {
		method, target, _ := strings.Cut(c, " ")
		if resp, body := none.do(method, target, strings.NewReader(""), "Content-Type", push); resp.StatusCode != 403 || !strings.Contains(body, "nothing be pushed") {
			t.Errorf("%s: %s %s", c, resp.Status, body)
		}
	}
	if none.requests.Load() != 0 {
		t.Error("a push came to the host")
	}
}

// TestGitTargets: what cannot be a binding for git is none.
func TestGitTargets(t *testing.T) {
	for name, change := range map[string]func(*Target){
		"path":    func(x *Target) { x.Path = "/" },
		"repo":    func(x *Target) { x.Path, x.Git.Repo = "/a.git", "a.git" },
		"methods": func(x *Target) { x.Methods = []string{"GET"} },
		"query":   func(x *Target) { x.As, x.Field = "query", "k" },
		"pattern": func(x *Target) { x.Git.Push = []string{"refs/*"} },
		"many":    func(x *Target) { x.Git.Push = make([]string, 33) },
	} {
		x := &Target{Name: "api", Host: hostOf(t, "git.example"), Port: 443, Path: "/a", As: "bearer", Secret: []byte(secret), Git: &Git{Repo: "a"}}
		if err := x.check(); err != nil {
			t.Fatal(err)
		}
		change(x)
		if x.check() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func hostOf(t testing.TB, name string) netaddr.Host {
	h, err := netaddr.ParseHost(name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// gitHost is git's own server of one repository behind a gate that lets the agent's
// refs be pushed to, and a place where git runs.
type gitHost struct {
	*gate
	dir      string
	versions sync.Map // of the protocol that it was asked in
}

func newGitHost(t *testing.T) *gitHost {
	h := &gitHost{gate: &gate{TB: t}, dir: t.TempDir()}
	for _, d := range []string{"srv/owner", "first"} {
		if err := os.MkdirAll(filepath.Join(h.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.must("first", "init", "-q")
	h.must("first", "commit", "-q", "--allow-empty", "-m", "one")
	h.must("first", "clone", "-q", "--bare", ".", "../srv/owner/repo.git")
	backend := &cgi.Handler{Path: filepath.Join(h.must(".", "--exec-path"), "git-http-backend"), Root: "/", Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Join(h.dir, "srv"), "GIT_HTTP_EXPORT_ALL=1", "HOME=" + h.dir, "GIT_CONFIG_NOSYSTEM=1", "REMOTE_USER=a"}}
	h.gate = newGate(t, forGit("refs/heads/agent/*"), func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "x-access-token" || pass != secret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.versions.Store(r.Header.Get("Git-Protocol"), true)
		backend.ServeHTTP(w, r)
	})
	return h
}

// git runs git as somebody without a configuration.
func (h *gitHost) git(where string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Dir = filepath.Join(h.dir, where)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (h *gitHost) must(where string, args ...string) string {
	h.Helper()
	out, err := h.git(where, args...)
	if err != nil {
		h.Fatalf("git %q: %v %s", args, err, out)
	}
	return out
}

// sandbox is git through the gate, which its proxy brings it to.
func (h *gitHost) sandbox(where string, args ...string) (string, error) {
	return h.git(where, append([]string{"-c", "http.proxy=http://" + h.addr, "-c", "protocol.version=2"}, args...)...)
}

func (h *gitHost) works(where string, args ...string) {
	h.Helper()
	if out, err := h.sandbox(where, args...); err != nil {
		h.Fatalf("git %q: %v %s", args, err, out)
	}
}

// refused is what fails, says why and changes nothing.
func (h *gitHost) refused(says string, args ...string) {
	h.Helper()
	before, was := h.refs(), h.requests.Load()
	out, err := h.sandbox("work", args...)
	if err == nil || !strings.Contains(out, says) || strings.Contains(out, secret) {
		h.Errorf("git %q: %v %s", args, err, out)
	}
	if h.requests.Load() > was+2 || h.refs() != before { // its refs, and whether it may
		h.Errorf("git %q changes the repository, or gets further than its refs: %s", args, h.refs())
	}
}

func (h *gitHost) refs() string { return h.must("srv/owner/repo.git", "for-each-ref") }

// TestGit: git itself, which knows nothing of bindings, clones and pushes through one
// to git's own server, and is told what may not be pushed.
func TestGit(t *testing.T) {
	h := newGitHost(t)
	before := h.refs()
	const base = "http://api.binding.internal/owner/"
	h.works(".", "clone", "-q", base+"repo", "work")
	h.works(".", "clone", "-q", base+"repo.git", "dotted")
	h.works(".", "-c", "protocol.version=0", "clone", "-q", base+"repo", "old")
	for _, version := range []string{"version=2", ""} {
		if _, asked := h.versions.Load(version); !asked {
			t.Errorf("the host was not asked in the version %q", version)
		}
	}
	big := make([]byte, 3<<20) // more than git keeps: it comes in chunks
	_, _ = rand.Read(big)
	if err := os.WriteFile(filepath.Join(h.dir, "work", "big"), big, 0o644); err != nil {
		t.Fatal(err)
	}
	h.must("work", "add", "-A")
	h.must("work", "commit", "-q", "-m", "two")
	h.refused("main -> main (not by this binding)", "push", "origin", "main")
	h.refused(`does not let "refs/heads/main" be pushed to, only refs/heads/agent/*`, "-c", "http.postBuffer=8000000", "push", "origin", "main")
	h.refused("(not with the others)", "push", "origin", "HEAD:refs/heads/agent/x", "HEAD:refs/heads/main")
	h.refused("not by this binding", "push", "origin", ":refs/heads/main")
	h.refused("not by this binding", "push", "--force", "origin", "HEAD:refs/tags/v1")
	h.refused("not by this binding", "push", "origin", "HEAD:refs/heads/agent/größe")
	h.refused("the binding is for the repository owner/repo", "ls-remote", base+"other")
	h.refused("the binding is for", "fetch", "http://api.binding.internal/other/repo")
	if n := len(h.said()); n < 8 {
		t.Errorf("only %q was told", h.said())
	}
	h.works("work", "push", "-q", "origin", "HEAD:refs/heads/agent/x")
	h.works("work", "-c", "http.postBuffer=8000000", "push", "-q", "origin", "HEAD:refs/heads/agent/y/z")
	head := h.must("work", "rev-parse", "HEAD")
	if got := h.refs(); !strings.Contains(got, head+" commit\trefs/heads/agent/x") || !strings.Contains(got, head+" commit\trefs/heads/agent/y/z") || !strings.Contains(got, before) {
		t.Errorf("the repository has %s", got)
	}
	h.works("work", "push", "-q", "origin", ":refs/heads/agent/x")
	h.works("old", "fetch", "-q")
	h.works(".", "clone", "-q", "--depth", "1", "--branch", "agent/y/z", base+"repo", "shallow")
	h.must("shallow", "commit", "-q", "--allow-empty", "-m", "three")
	h.works("shallow", "push", "-q", "origin", "HEAD:refs/heads/agent/s")
	for _, d := range []string{"work", "dotted", "old", "shallow"} {
		if out, err := exec.Command("grep", "-rlF", secret, filepath.Join(h.dir, d)).CombinedOutput(); err == nil || len(out) > 0 {
			t.Errorf("the secret is in %s", out)
		}
	}
}
