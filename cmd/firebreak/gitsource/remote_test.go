package gitsource

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// remote is a repository behind git's own server, and what reaches it.
type remote struct {
	*repo
	server *httptest.Server
	url    string
	net    *Network
	asked  atomic.Int64
	before func(w http.ResponseWriter, r *http.Request) (done bool)
}

func newRemote(t *testing.T, args ...string) *remote {
	t.Helper()
	r := &remote{repo: newRepo(t, args...)}
	h := &cgi.Handler{Path: filepath.Join(r.git("--exec-path"), "git-http-backend"), Root: "/", Stderr: testWriter{t},
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(r.dir), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=/nonexistent"}}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.asked.Add(1)
		if r.before == nil || !r.before(w, req) {
			h.ServeHTTP(w, req)
		}
	}))
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0) // of certificates that are refused
	r.server.StartTLS()
	t.Cleanup(r.server.Close)
	r.net = reaching(r.server)
	r.url = r.server.URL + "/repo/.git"
	return r
}

type testWriter struct{ t *testing.T }

// Write implements io.Writer.
func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("git-http-backend: %s", b)
	return len(b), nil
}

// reaching is a Network for a server on the loopback interface.
func reaching(s *httptest.Server) *Network {
	n := &Network{Private: []string{s.Listener.Addr().String()}}
	if c := s.Certificate(); c != nil {
		n.roots = x509.NewCertPool()
		n.roots.AddCert(c)
	}
	return n
}

func (n *Network) read(t *testing.T, arg string) (*Tree, error) {
	t.Helper()
	spec, err := Parse(arg)
	if err != nil {
		return nil, err
	}
	tree, err := n.Read(context.Background(), spec)
	t.Cleanup(tree.Close)
	return tree, err
}

func (n *Network) want(t *testing.T, arg, commit, file, text string) *Tree {
	t.Helper()
	tree, err := n.read(t, arg)
	if err != nil {
		t.Errorf("%s: %v", arg, err)
		return nil
	}
	if got, ok := files(t, tree)[file]; tree.Commit != commit || !ok || got != text {
		t.Errorf("%s: commit %s, %s %q; want %s, %q", arg, tree.Commit, file, got, commit, text)
	}
	return tree
}

// refuse reads arg, which must fail with kind, a hint, and words, soon.
func (n *Network) refuse(t *testing.T, arg string, kind sandbox.Kind, words string) {
	t.Helper()
	tree, err := n.read(t, arg)
	var e *sandbox.Error
	if sandbox.KindOf(err) != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v, %v; want %s, %q", arg, tree, err, kind, words)
	} else if errors.As(err, &e); e.Hint == "" {
		t.Errorf("%s: %v has no hint", arg, err)
	}
}

// sink is where nobody may connect to.
func sink(t *testing.T, network, address string) (at string, connections func() int64) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String(), n.Load
}

// empty is a directory for temporary files, which must be empty in the end.
func empty(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return dir
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]Spec{
		"https://example.com/r.git": {"https://example.com/r.git", "HEAD", ""}, "HTTPS://Example.COM:443/a/b/#v1:sub": {"https://example.com/a/b", "v1", "sub"},
		"http://h:80/r#main": {"http://h/r", "main", ""}, "http://h:8080/r": {"http://h:8080/r", "HEAD", ""}, "https://[2001:DB8::1]/r": {"https://[2001:db8::1]/r", "HEAD", ""},
		"https://[::1]:444/r": {"https://[::1]:444/r", "HEAD", ""}, "https://h/a%20b/x::y": {"https://h/a%20b/x::y", "HEAD", ""},
	} {
		if got, err := Parse(in); err != nil || got != want || !got.Remote() {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"https://", "https:///r", "https://h", "https://h/", "https://h/r?x=y", "https://h/r?", "https://h/a#b#c", "https://h:0/r", "https://h:99999/r", "https://0x7f.1/r",
		"https://2130706433/r", "https://a_b/r", "https://h%2f/r", "https://h/\nr", "https://[fe80::1%25eth0]/r", "https://user@h/r", "https://user:secret@h/r", "https://h/%zz"} {
		refuse(t, in, sandbox.KindInvalid, "")
	}
	if _, err := Parse("https://user:secret@h/r"); strings.Contains(err.Error(), "secret") {
		t.Errorf("%v repeats a password", err)
	}
}

func TestFetch(t *testing.T) {
	empty(t)
	r := newRemote(t)
	r.write("f", "one")
	one := r.commit("one")
	r.git("tag", "light")
	r.git("tag", "-a", "-m", "x", "annotated")
	r.git("branch", "topic/a")
	r.write("f", "two")
	r.write("sub/dir/g", "deep")
	r.write("run.sh", "echo")
	if err := os.Chmod(filepath.Join(r.dir, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	two := r.commit("two")
	for ref, commit := range map[string]string{"": two, "#HEAD": two, "#main": two, "#light": one, "#annotated": one, "#topic/a": one, "#" + one: one, "#" + two: two,
		"#" + strings.ToUpper(one): one, "#refs/heads/main": two, "#refs/tags/annotated": one, "#" + r.git("rev-parse", "main"): two} {
		r.net.want(t, r.url+ref, commit, "f", map[string]string{one: "one", two: "two"}[commit])
	}
	if tree := r.net.want(t, r.url+"#main:sub", two, "dir/g", "deep"); tree != nil && (len(tree.Files) != 1 || tree.Repo != r.url || tree.From != "") {
		t.Errorf("%+v", tree)
	}
	if tree := r.net.want(t, r.url, two, "run.sh", "echo"); tree != nil {
		if f, _ := tree.Find("run.sh"); f.Mode != 0o755 {
			t.Errorf("%+v", f)
		}
	}
	r.git("tag", "object", one+"^{tree}")
	r.git("tag", "-a", "-m", "x", "object2", one+"^{tree}")
	for _, ref := range []string{"#none", "#mai", "#" + one[:8], "#" + strings.Repeat("0", 40), "#main:none", "#main:f", "#object", "#object2", "#refs/heads", "#origin/main",
		"#" + r.git("rev-parse", "HEAD^{tree}"), "#" + r.git("rev-parse", "annotated")} {
		r.net.refuse(t, r.url+ref, sandbox.KindNotFound, "")
	}
	r.git("tag", "both", one)
	r.git("branch", "both", two)
	r.git("tag", "-a", "-m", "x", "same", two)
	r.git("branch", "same", two)
	r.net.refuse(t, r.url+"#both", sandbox.KindInvalid, "refs/tags/both")
	r.net.want(t, r.url+"#refs/tags/both", one, "f", "one")
	r.net.want(t, r.url+"#same", two, "f", "two")
	r.net.refuse(t, r.server.URL+"/none", sandbox.KindNotFound, "no such repository")

	wide := newRemote(t, "--object-format=sha256")
	wide.write("f", "wide")
	c := wide.commit("x")
	wide.net.want(t, wide.url, c, "f", "wide")
	wide.net.want(t, wide.url+"#"+c, c, "f", "wide")
	wide.net.refuse(t, wide.url+"#"+one, sandbox.KindNotFound, "")
	void := newRemote(t)
	void.net.refuse(t, void.url, sandbox.KindNotFound, "no commit is named")
}

// TestFetchIsShallow: what a commit replaced is not fetched.
func TestFetchIsShallow(t *testing.T) {
	r := newRemote(t)
	r.write("f", noise(3<<20))
	r.commit("large")
	r.write("f", "small")
	c := r.commit("small")
	r.git("tag", "-a", "-m", "x", "v1")
	var most int64
	r.net.Progress = func(n int64) { most = n }
	r.net.want(t, r.url+"#v1", c, "f", "small")
	if most == 0 || most > 100<<10 {
		t.Errorf("%d bytes arrived", most)
	}
}

// TestFetchUsesNothingOfThisMachine: not its git's configuration, no credentials,
// no proxies.
func TestFetchUsesNothingOfThisMachine(t *testing.T) {
	r := newRemote(t)
	r.write("f", "x")
	c := r.commit("x")
	home := t.TempDir()
	proxy, used := sink(t, "tcp", "127.0.0.1:0")
	witness := filepath.Join(home, "executed")
	config := fmt.Sprintf("[url \"https://127.0.0.1:1/\"]\ninsteadOf = %s\n[http]\nproxy = http://%s\nextraHeader = X-Secret: 1\n[credential]\nhelper = !touch %s\n[core]\naskPass = touch\n",
		r.server.URL, proxy, witness)
	netrc := "default login me password secret\n"
	if err := errors.Join(os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(config), 0o600), os.WriteFile(filepath.Join(home, ".netrc"), []byte(netrc), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("GIT_PROXY_COMMAND", "touch "+witness)
	t.Setenv("GIT_ASKPASS", "touch")
	t.Setenv("GIT_DIR", "/nonexistent")
	t.Setenv("GIT_TRACE", witness)
	r.before = func(_ http.ResponseWriter, req *http.Request) bool {
		for name := range req.Header {
			if name == "Referer" || name == "Authorization" || name == "Cookie" || name == "X-Secret" || name == "Proxy-Authorization" {
				t.Errorf("the server is told %s", name)
			}
		}
		return false
	}
	r.net.want(t, r.url, c, "f", "x")
	// By a name, which proxies of the environment would be used for (see TestMain).
	_, port, _ := net.SplitHostPort(r.server.Listener.Addr().String())
	named := &Network{roots: r.net.roots, Private: []string{"example.com"}, lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}
	named.want(t, "https://example.com:"+port+"/repo/.git", c, "f", "x")
	r.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="\x1b[2J"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	was := r.asked.Load()
	r.net.refuse(t, r.url, sandbox.KindDenied, "asks who you are")
	if r.asked.Load() != was+1 {
		t.Error("it was tried again")
	}
	if used() > 0 || exists(witness) {
		t.Error("something of this machine was used")
	}
}

// TestMovedRef: what is read is what was resolved.
func TestMovedRef(t *testing.T) {
	r := newRemote(t)
	r.write("f", "one")
	one := r.commit("one")
	gone := false
	posts := 0
	r.before = func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPost {
			return false
		}
		if posts++; posts%2 == 0 { // between ls-refs and fetch
			r.write("f", fmt.Sprint("moved ", posts))
			r.git("add", "-A")
			r.git("commit", "-q", "--amend", "-m", "two")
			if gone {
				r.git("reflog", "expire", "--expire=now", "--all")
				r.git("gc", "-q", "--prune=now")
			}
		}
		return false
	}
	r.net.want(t, r.url+"#main", one, "f", "one")
	gone = true
	r.write("f", "three")
	r.commit("three")
	r.net.refuse(t, r.url+"#main", sandbox.KindUnavailable, "not our ref")
}

func TestRedirects(t *testing.T) {
	empty(t)
	r := newRemote(t)
	r.write("f", "x")
	c := r.commit("x")
	at, reached := sink(t, "tcp", "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(at)
	// The sink is permitted, too, but nobody asked for it.
	r.net.Private = append(r.net.Private, at, "localhost", "169.254.169.254")
	r.net.lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	location := ""
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasPrefix(req.URL.Path, "/moved") {
			return false
		}
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusFound)
		return true
	}
	const suffix = "/info/refs?service=git-upload-pack"
	for _, to := range []string{"https://" + at + "/r" + suffix, "https://localhost:" + port + "/r" + suffix, "https://169.254.169.254/latest" + suffix,
		"https://rebinding.example:" + port + "/r" + suffix, "https://[::ffff:127.0.0.1]:" + port + "/r" + suffix, "https://[::1]:" + port + "/r" + suffix, "https://0x7f.1:" + port + "/r" + suffix,
		"http://" + at + "/r" + suffix, "https://user:pw@" + at + "/r" + suffix, r.server.URL + "/login?next=x", "http:" + strings.TrimPrefix(r.url, "https:") + suffix,
		"file:///etc/passwd", "ftp://" + at + suffix, "//" + at + "/r" + suffix, r.server.URL + "/moved" + suffix} {
		location = to
		r.net.refuse(t, r.server.URL+"/moved", sandbox.KindDenied, "")
	}
	location = r.url + suffix
	if tree := r.net.want(t, r.server.URL+"/moved#main", c, "f", "x"); tree != nil && (tree.From != r.url || tree.Repo != r.server.URL+"/moved") {
		t.Errorf("%q, from %q", tree.Repo, tree.From)
	}
	// Only the first question may be redirected.
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPost {
			http.Redirect(w, req, "https://"+at+"/r/git-upload-pack", http.StatusTemporaryRedirect)
		}
		return req.Method == http.MethodPost
	}
	r.net.refuse(t, r.url, sandbox.KindDenied, "in the middle")
	if reached() > 0 {
		t.Errorf("%d connections where none may be", reached())
	}
}

// TestPrivateAddresses: no name, no spelling and no second answer leads to this
// machine or a network that is not public, unless somebody says so.
func TestPrivateAddresses(t *testing.T) {
	empty(t)
	r := newRemote(t)
	r.write("f", "x")
	c := r.commit("x")
	_, port, _ := net.SplitHostPort(r.server.Listener.Addr().String())
	var answers []string
	lookups := 0
	n := &Network{roots: r.net.roots, lookup: func(_ context.Context, name string) (list []netip.Addr, err error) {
		lookups++
		for _, a := range strings.Split(answers[min(lookups, len(answers))-1], " ") {
			list = append(list, netip.MustParseAddr(a))
		}
		return list, nil
	}}
	named := "https://example.com:" + port + "/repo/.git"
	for _, a := range []string{"127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "::1", "fc00::1", "::ffff:127.0.0.1", "8.8.8.8 127.0.0.1"} {
		answers, lookups = []string{a}, 0
		n.refuse(t, named, sandbox.KindDenied, "--git-private example.com:"+port)
	}
	for _, a := range []string{"169.254.169.254", "fe80::1", "0.0.0.0", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "100.100.100.200", "::127.0.0.1"} {
		answers, lookups = []string{a}, 0
		n.refuse(t, named, sandbox.KindDenied, "never fetched from")
		n.Private = []string{"example.com"} // which does not help here
		lookups = 0
		n.refuse(t, named, sandbox.KindDenied, "never fetched from")
		n.Private = nil
	}
	for _, host := range []string{"127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"} {
		n.refuse(t, "https://"+host+":"+port+"/repo/.git", sandbox.KindDenied, "--git-private")
	}
	n.Private = []string{"example.com:1", "example.org", "127.0.0.1"}
	answers, lookups = []string{"127.0.0.1"}, 0
	n.refuse(t, named, sandbox.KindDenied, "--git-private")
	if r.asked.Load() > 0 {
		t.Errorf("the server was asked %d times", r.asked.Load())
	}
	// What was answered first holds, whatever a second answer would be.
	n.Private = []string{"example.com:" + port}
	answers, lookups = []string{"127.0.0.1", "10.9.9.9"}, 0
	r.before = func(w http.ResponseWriter, _ *http.Request) bool { w.Header().Set("Connection", "close"); return false }
	n.want(t, named, c, "f", "x")
	if lookups != 1 {
		t.Errorf("%d look-ups", lookups)
	}
	n.lookup = func(context.Context, string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "example.com.", IsNotFound: true}
	}
	n.refuse(t, named, sandbox.KindUnavailable, "example.com cannot be resolved")
}

// TestTrust: a certificate that nobody vouches for ends it before a question.
func TestTrust(t *testing.T) {
	r := newRemote(t)
	r.write("f", "x")
	r.commit("x")
	t.Setenv("GIT_SSL_NO_VERIFY", "1")
	n := &Network{Private: r.net.Private, roots: x509.NewCertPool()}
	n.refuse(t, r.url, sandbox.KindDenied, "certificate")
	n = &Network{roots: r.net.roots, Private: []string{"wrong.test"}, lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}
	_, port, _ := net.SplitHostPort(r.server.Listener.Addr().String())
	n.refuse(t, "https://wrong.test:"+port+"/repo/.git", sandbox.KindDenied, "certificate")
	if r.asked.Load() > 0 {
		t.Error("the server was asked")
	}
	n = &Network{Private: []string{"127.0.0.1"}}
	n.limits = usual
	n.limits.silence = 20 * time.Second
	n.refuse(t, "http"+strings.TrimPrefix(r.url, "https"), sandbox.KindUnavailable, "400") // plain where TLS is spoken
}
