package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestGit brings commits of a repository to runs and sandboxes: what was committed
// and nothing else, named by the commit.
func TestGit(t *testing.T) {
	w := newWorld(t)
	repo := filepath.Join(w.dir, "repo")
	t.Cleanup(func() { // ours; what is left behind it is not
		if err := os.RemoveAll(repo); err != nil {
			t.Error(err)
		}
	})
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(repo, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(repo, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
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
	write("app/main.py", "import sys, helper; print(helper.word, sys.argv[1:], open('lib/data').read())")
	write("app/helper.py", "word = 'first'")
	write("app/lib/data", "deep")
	write("app/lib/show.sh", "cat lib/data; ls")
	git("init", "-q", "-b", "main")
	git("add", "-A")
	git("commit", "-q", "-m", "one")
	git("tag", "v1")
	commit := git("rev-parse", "HEAD")
	write("app/helper.py", "word = 'second'")
	git("commit", "-q", "-a", "-m", "two")
	write("app/helper.py", "word = 'not committed'")

	type source struct{ Repo, Ref, Commit, Subpath string }
	var out struct {
		Stdout string
		Source *source
	}
	r := w.run("", "run", "--json", "--git", repo+"#v1:app", "main.py", "--flag")
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Source == nil || *out.Source != (source{repo, "v1", commit, "app"}) ||
		out.Stdout != "first ['--flag'] deep\n" {
		t.Errorf("%v, %+v: %+v", err, out, r)
	}
	if r := w.run("", "run", "--git", "repo#:app", "main.py"); r.stdout != "second [] deep\n" || r.code != 0 || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "run", "--git", "file://"+repo+"#v1:app", "lib/show.sh"); r.stdout != "deephelper.py\nlib\nmain.py\n" {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "run", "--git", repo, "--", "sh", "-c", "pwd; find app -type f -perm -100 | wc -l"); r.stdout != "/home/user\n4\n" {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "run", "--git", repo, "main.py"); r.code == 0 || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("%+v", r)
	}
	for _, remote := range []string{"ssh://h/r", "git://h/r", "git@h:r.git#main", "ext::sh -c id"} {
		if r := w.run("", "run", "--json", "--git", remote, "main.py"); r.code == 0 || !strings.Contains(r.stdout, `"kind":"unsupported"`) || !strings.Contains(r.stdout, "only https://") {
			t.Errorf("%s: %+v", remote, r)
		}
	}

	s := w.serve()
	defer s.stop()
	var sb struct {
		ID       string
		Metadata map[string]string
		Source   *source
	}
	r = w.run("", "create", "--json", "--git", repo+"#v1:app", "--metadata", "team=a")
	if err := json.Unmarshal([]byte(r.stdout), &sb); err != nil || sb.Metadata["git.commit"] != commit || sb.Source == nil || *sb.Source != (source{repo, "v1", commit, "app"}) || sb.Metadata["git.subpath"] != "app" || sb.Metadata["team"] != "a" {
		t.Fatalf("%v, %+v: %+v", err, sb, r)
	}
	if r := w.run("", "exec", sb.ID, "--", "python3", "main.py"); r.stdout != "first [] deep\n" {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "run", "--git", repo+"#v1:app", "main.py"); r.stdout != "first [] deep\n" {
		t.Errorf("against a server: %+v", r)
	}
	if r := w.run("", "create", "--git", "host:repo"); r.code == 0 || r.stdout != "" {
		t.Errorf("%+v", r)
	}

	// Links that stay in the tree are links there; the others are refused.
	write("app/data", "by a link")
	for name, target := range map[string]string{"app/lib/link": "../data", "app/entry.py": "main.py", "app/sub": "lib"} {
		if err := os.Symlink(target, filepath.Join(repo, name)); err != nil {
			t.Fatal(err)
		}
	}
	git("add", "-A")
	git("commit", "-q", "-m", "links")
	for _, json := range []string{"--json", "--json=false"} {
		if r := w.run("", "run", json, "--git", repo+"#:app", "--", "sh", "-c", "readlink lib/link sub entry.py; cat sub/link"); !strings.Contains(strings.ReplaceAll(r.stdout, `\n`, "\n"), "../data\nlib\nmain.py\nby a link") || r.code != 0 {
			t.Errorf("%+v", r)
		}
	}
	if r := w.run("", "run", "--git", repo+"#:app", "entry.py", "x"); r.stdout != "not committed ['x'] deep\n" {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "create", "--git", repo+"#:app/lib"); r.code == 0 || !strings.Contains(r.stderr, `["link"]`) {
		t.Errorf("a link out of the directory named: %+v", r)
	}

	// What cannot be brought leaves no sandbox.
	if r := w.run("", "create", "--name", "full", "--disk", "8MiB", "--git", repo); r.code != 0 {
		t.Errorf("%+v", r)
	}
	big := strings.Repeat("0123456789abcdef", 2<<20)
	write("big", big)
	git("add", "-A")
	git("commit", "-q", "-m", "big")
	if r := w.run("", "create", "--name", "fuller", "--disk", "8MiB", "--git", repo); r.code == 0 || r.stdout != "" {
		t.Errorf("%+v", r)
	}
	if r := w.run("", "ls", "--json"); !strings.Contains(r.stdout, `"full"`) || strings.Contains(r.stdout, `"fuller"`) {
		t.Errorf("%s", r.stdout)
	}
}
