package e2e

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestGitRemote runs commits of a repository behind git's own HTTP server.
func TestGitRemote(t *testing.T) {
	w := newWorld(t)
	repo := filepath.Join(w.dir, "repo")
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		cmd.Dir, cmd.Env = repo, w.env
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %q: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	t.Cleanup(func() { // ours; what is left behind it is not
		if err := os.RemoveAll(repo); err != nil {
			t.Error(err)
		}
	})
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(repo, name)), 0o755), os.WriteFile(filepath.Join(repo, name), []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	write("app/main.py", "print(open('data').read())")
	write("app/data", "first")
	git("init", "-q", "-b", "main")
	git("add", "-A")
	git("commit", "-q", "-m", "one")
	git("tag", "v1")
	commit := git("rev-parse", "HEAD")
	write("app/data", "second")
	git("commit", "-q", "-a", "-m", "two")

	var asked atomic.Bool
	backend := &cgi.Handler{Path: filepath.Join(git("--exec-path"), "git-http-backend"), Root: "/", Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + w.dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=/nonexistent"}}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { asked.Store(true); backend.ServeHTTP(rw, req) }))
	defer srv.Close()
	ca := filepath.Join(w.dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(ca) })
	w.env = append(w.env, "SSL_CERT_FILE="+ca)
	url, host := srv.URL+"/repo/.git", srv.Listener.Addr().String()

	if r := w.run("", "run", "--json", "--git", url+"#v1:app", "main.py"); r.code != 125 || !strings.Contains(r.stdout, `"kind":"denied"`) ||
		!strings.Contains(r.stdout, "--git-private "+host) || asked.Load() {
		t.Errorf("this machine was fetched from without a word of permission: %+v", r)
	}
	type source struct{ Repo, Ref, Commit, Subpath string }
	var out struct {
		Stdout string
		Source *source
	}
	r := w.run("", "run", "--json", "--git-private", host, "--git", url+"#v1:app", "main.py")
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Source == nil || *out.Source != (source{url, "v1", commit, "app"}) || out.Stdout != "first\n" || r.stderr != "" {
		t.Errorf("%v, %+v: %+v", err, out, r)
	}
	w.env = append(w.env, "FIREBREAK_GIT_PRIVATE="+host)
	if r := w.run("", "run", "--git", url+"#:app", "main.py"); r.stdout != "second\n" || r.code != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	s := w.serve()
	defer s.stop()
	var sb struct {
		ID       string
		Metadata map[string]string
	}
	r = w.run("", "create", "--json", "--git", url+"#"+commit+":app")
	if err := json.Unmarshal([]byte(r.stdout), &sb); err != nil || sb.Metadata["git.commit"] != commit || sb.Metadata["git.repo"] != url {
		t.Fatalf("%v, %+v: %+v", err, sb, r)
	}
	if r := w.run("", "exec", sb.ID, "--", "python3", "main.py"); r.stdout != "first\n" {
		t.Errorf("%+v", r)
	}
}

// TestGitRemoteInterrupted: Ctrl-C while a server dawdles leaves no file and no
// process; kill -9 leaves files that the next fetch removes. What the server says
// about its work is not shown.
func TestGitRemoteInterrupted(t *testing.T) {
	w := newWorld(t)
	pkt := func(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }
	var locked atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if locked.Load() {
			rw.Header().Set("WWW-Authenticate", "Basic realm=x")
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(req.Body)
		kind, text := "result", pkt("packfile\n")+pkt("\x01PACK\x00\x00\x00\x02\x00\x00\x00\x01")
		switch {
		case req.Method == http.MethodGet:
			kind, text = "advertisement", pkt("version 2\n")+pkt("ls-refs\n")+pkt("fetch=shallow\n")+"0000"
		case strings.Contains(string(body), "command=ls-refs"):
			text = pkt(strings.Repeat("ab", 20)+" HEAD\n") + "0000"
		}
		rw.Header().Set("Content-Type", "application/x-git-upload-pack-"+kind)
		_, err := io.WriteString(rw, text)
		for err == nil && req.Method != http.MethodGet && !strings.HasSuffix(text, "0000") {
			_ = http.NewResponseController(rw).Flush()
			time.Sleep(20 * time.Millisecond)
			_, err = io.WriteString(rw, pkt("\x02\x1b[2J"))
		}
	}))
	defer srv.Close()
	w.env = append(w.env, "FIREBREAK_GIT_PRIVATE="+srv.Listener.Addr().String())
	fetched := func() []string {
		dirs, _ := filepath.Glob(filepath.Join(w.dir, "firebreak-fetch-*"))
		return dirs
	}
	until := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	interrupt := func(sig syscall.Signal) *os.ProcessState {
		t.Helper()
		cmd := w.command("run", "--git", srv.URL+"/r", "x.py")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until("git takes the pack apart", func() bool { return len(inside(w.dir)) > 0 })
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		until("git ends", func() bool { return len(inside(w.dir)) == 0 })
		return cmd.ProcessState
	}
	if st := interrupt(syscall.SIGINT); st.ExitCode() != 130 || len(fetched()) > 0 {
		t.Errorf("%v; left: %v", st, fetched())
	}
	interrupt(syscall.SIGKILL)
	left := fetched()
	if len(left) != 1 {
		t.Fatalf("%v", left)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(left[0], old, old); err != nil {
		t.Fatal(err)
	}
	if interrupt(syscall.SIGTERM); len(fetched()) > 0 {
		t.Errorf("left: %v", fetched())
	}

	// On a terminal progress is seen, Ctrl-C is the same, and a server that wants a
	// password does not get anybody asked.
	p := w.sit(t, 0, "run", "--git", srv.URL+"/r", "x.py")
	p.expect("fetch  ")
	p.types("\x03")
	if code := p.code(); code != 130 || len(fetched()) > 0 || strings.Contains(string(p.screen()), "\x1b[2J") {
		t.Errorf("%d; left: %v", code, fetched())
	}
	locked.Store(true)
	p = w.sit(t, 0, "run", "--git", srv.URL+"/r", "x.py")
	p.expect("asks who you are")
	if code := p.code(); code != 125 || strings.Contains(string(p.screen()), "sername") {
		t.Errorf("%d", code)
	}
}

// inside are the processes that work in a directory that was fetched into.
func inside(dir string) (pids []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, filepath.Join(dir, "firebreak-fetch-")) {
			pids = append(pids, filepath.Base(filepath.Dir(l)))
		}
	}
	return pids
}
