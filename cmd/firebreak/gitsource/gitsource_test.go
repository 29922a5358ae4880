package gitsource

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// repo is a repository of a test's.
type repo struct {
	t   *testing.T
	dir string
}

func newRepo(t *testing.T, args ...string) *repo {
	r := &repo{t, filepath.Join(t.TempDir(), "repo")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git(append([]string{"init", "-q", "-b", "main"}, args...)...)
	return r
}

func (r *repo) git(args ...string) string { r.t.Helper(); return r.gitIn("", args...) }

func (r *repo) gitIn(stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stdin = r.dir, strings.NewReader(stdin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b"}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("git %q: %v\n%s", args, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

func (r *repo) write(name, text string) {
	r.t.Helper()
	name = filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) commit(message string) string {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", message)
	return r.git("rev-parse", "HEAD")
}

// tree makes a commit of a tree of exactly these entries: mode, name and id.
func (r *repo) tree(entries ...string) (tree, commit string) {
	r.t.Helper()
	var raw []byte
	for i := 0; i < len(entries); i += 3 {
		id, err := hex.DecodeString(entries[i+2])
		if err != nil {
			r.t.Fatal(err)
		}
		raw = append(append(raw, entries[i]+" "+entries[i+1]+"\x00"...), id...)
	}
	tree = r.gitIn(string(raw), "hash-object", "-t", "tree", "-w", "--literally", "--stdin")
	commit = r.gitIn("tree "+tree+"\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n\nx\n", "hash-object", "-t", "commit", "-w", "--literally", "--stdin")
	return tree, commit
}

func (r *repo) blob(text string) string {
	r.t.Helper()
	return r.gitIn(text, "hash-object", "-w", "--stdin")
}

func read(t *testing.T, arg string) (*Tree, error) {
	t.Helper()
	spec, err := Parse(arg)
	if err != nil {
		return nil, err
	}
	tree, err := Read(context.Background(), spec)
	t.Cleanup(tree.Close)
	return tree, err
}

// files is a tree's content, by path.
func files(t *testing.T, tree *Tree) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, f := range tree.Files {
		b, err := io.ReadAll(tree.Open(f))
		if err != nil || int64(len(b)) != f.Size {
			t.Errorf("%s: %d bytes of %d, %v", f.Path, len(b), f.Size, err)
		}
		m[f.Path] = string(b)
	}
	return m
}

// want reads arg and compares the commit, and one file.
func want(t *testing.T, arg, commit, file, text string) *Tree {
	t.Helper()
	tree, err := read(t, arg)
	if err != nil {
		t.Errorf("%s: %v", arg, err)
		return nil
	}
	if got, ok := files(t, tree)[file]; tree.Commit != commit || !ok || got != text {
		t.Errorf("%s: commit %s, %s %q; want %s, %q", arg, tree.Commit, file, got, commit, text)
	}
	return tree
}

// refuse reads arg, which must fail with kind, a hint, and words.
func refuse(t *testing.T, arg string, kind sandbox.Kind, words string) {
	t.Helper()
	tree, err := read(t, arg)
	var se *sandbox.Error
	if sandbox.KindOf(err) != kind || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v, %v; want %s, %q", arg, tree, err, kind, words)
	} else if se = err.(*sandbox.Error); se.Hint == "" {
		t.Errorf("%s: %v has no hint", arg, err)
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]Spec{
		"r": {"r", "HEAD", ""}, "./a:b": {"./a:b", "HEAD", ""}, "/a/b#v1": {"/a/b", "v1", ""}, "r#": {"r", "HEAD", ""},
		"r#v1:sub/dir/": {"r", "v1", "sub/dir"}, "r#:sub": {"r", "HEAD", "sub"}, "r#x:.": {"r", "x", ""}, "a#b#c": {"a#b", "c", ""},
		"file:///a%20b#main": {"/a b", "main", ""}, "FILE://localhost/a": {"/a", "HEAD", ""}, "r#x:a:b": {"r", "x", "a:b"},
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("Parse(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "#main", "r#-x", "r#--upload-pack=x", "r#a..b", "r#a b", "r#a~1", "r#main^", "r#main@{1}", "r#@", "r#a\nb", "r#.a", "r#a.lock",
		"r#a//b", "r#/a", "r#a/", "r#x:/etc", "r#x:../y", "r#x:a/../b", "r#x:..", "r#x:a//b", "r\x00", "file:///a?b", "file://"} {
		refuse(t, in, sandbox.KindInvalid, "")
	}
}

func TestOtherTransportsAreRefused(t *testing.T) {
	for _, in := range []string{"ssh://h/r", "git://h/r", "git+ssh://h/r", "git@example.com:o/r.git", "host:path#main:x",
		"ext::https://h/r", "ext::sh -c touch% x", "x::y", "./a::b", "fd::17", "file://other/r", "ftp://h/r", "C:r", ":r"} {
		refuse(t, in, sandbox.KindUnsupported, "only https:// and http:// are fetched")
	}
}

func TestRefs(t *testing.T) {
	r := newRepo(t)
	r.write("f", "one")
	one := r.commit("one")
	r.git("tag", "light")
	r.git("tag", "-a", "-m", "x", "annotated")
	r.git("branch", "topic/a")
	r.write("f", "two")
	r.write("sub/dir/g", "deep")
	two := r.commit("two")
	r.git("update-ref", "refs/remotes/origin/dev", one)
	for ref, commit := range map[string]string{"": two, "#HEAD": two, "#main": two, "#light": one, "#annotated": one, "#topic/a": one, "#" + one: one,
		"#" + one[:12]: one, "#origin/dev": one, "#refs/heads/main": two, "#refs/tags/annotated": one, "#" + strings.ToUpper(one): one} {
		text := map[string]string{one: "one", two: "two"}[commit]
		want(t, r.dir+ref, commit, "f", text)
	}
	if tree := want(t, r.dir+"#main:sub", two, "dir/g", "deep"); tree != nil && len(tree.Files) != 1 {
		t.Errorf("%+v", tree.Files)
	}
	want(t, "file://"+r.dir+"#:sub/dir", two, "g", "deep")
	for _, ref := range []string{"#none", "#" + strings.Repeat("0", 40), "#main:none", "#main:f", "#main:sub/dir/g", "#" + r.git("rev-parse", "HEAD^{tree}")} {
		refuse(t, r.dir+ref, sandbox.KindNotFound, "")
	}

	// A name for two commits is for none; one for the same commit twice is fine.
	r.git("tag", "both", one)
	r.git("branch", "both", two)
	r.git("tag", "same", two)
	r.git("branch", "same", two)
	r.git("branch", one[:7], two)
	refuse(t, r.dir+"#both", sandbox.KindInvalid, "refs/tags/both")
	refuse(t, r.dir+"#"+one[:7], sandbox.KindInvalid, "ambiguous")
	want(t, r.dir+"#same", two, "f", "two")
	want(t, r.dir+"#refs/heads/both", two, "f", "two")
	want(t, r.dir+"#refs/tags/both", one, "f", "one")
	// Neither a ref nor a replacement makes another commit of an id in full.
	r.git("update-ref", "refs/heads/"+one, two)
	r.git("replace", one, two)
	want(t, r.dir+"#"+one, one, "f", "one")
}

func TestOnlyWhatIsCommitted(t *testing.T) {
	r := newRepo(t)
	r.write("f", "committed")
	r.write(".gitattributes", "* text eol=crlf export-ignore export-subst ident filter=evil\n")
	r.write("run.sh", "echo\n")
	if err := os.Chmod(filepath.Join(r.dir, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := r.commit("x")
	r.write("f", "changed")
	r.git("add", "f")
	r.write("f", "changed again")
	r.write("untracked", "x")
	tree := want(t, r.dir, c, "f", "committed")
	if tree == nil || len(tree.Files) != 3 {
		t.Fatalf("%+v", tree)
	}
	if f, ok := tree.Find("run.sh"); !ok || f.Mode != 0o755 {
		t.Errorf("%+v", f)
	}
	if f, ok := tree.Find("f"); !ok || f.Mode != 0o644 {
		t.Errorf("%+v", f)
	}
}

func TestFormsOfRepositories(t *testing.T) {
	r := newRepo(t)
	r.write("f", "one")
	r.commit("one")
	r.write("f", "two")
	two := r.commit("two")
	at := func(name string) string { return filepath.Join(filepath.Dir(r.dir), name) }
	r.git("clone", "-q", "--bare", r.dir, at("bare.git"))
	r.git("clone", "-q", "--depth", "1", "file://"+r.dir, at("shallow"))
	r.git("worktree", "add", "-q", "-b", "other", at("worktree"))
	r.git("worktree", "add", "-q", "-b", "#", at("with#"))
	r.git("pack-refs", "--all")
	r.git("gc", "-q")
	for _, name := range []string{"repo", "bare.git", "shallow", "worktree", "with##", "repo/.git"} {
		want(t, at(name), two, "f", "two")
	}
	want(t, at("worktree")+"#other", two, "f", "two")
	refuse(t, at("shallow")+"#"+r.git("rev-parse", "HEAD~1"), sandbox.KindNotFound, "")

	s := newRepo(t, "--object-format=sha256")
	s.write("f", "wide")
	want(t, s.dir, s.commit("x"), "f", "wide")

	empty := newRepo(t)
	refuse(t, empty.dir, sandbox.KindNotFound, "")
	r.write("sub/x", "")
	for _, name := range []string{"none", "repo/sub", "repo/f", "."} {
		refuse(t, at(name), sandbox.KindInvalid, "")
	}
}

// TestBorrowedObjects: a directory from a stranger does not name another
// repository of this machine.
func TestBorrowedObjects(t *testing.T) {
	secret := newRepo(t)
	secret.write("f", "secret")
	secret.commit("x")
	git := filepath.Join(secret.dir, ".git")
	trap := func(kind sandbox.Kind, words string, make func(r *repo)) {
		t.Helper()
		r := newRepo(t)
		make(r)
		refuse(t, r.dir, kind, words)
	}
	clear := func(r *repo) {
		if err := os.RemoveAll(filepath.Join(r.dir, ".git")); err != nil {
			t.Fatal(err)
		}
	}
	link := func(r *repo, name, to string) {
		if err := os.RemoveAll(filepath.Join(r.dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(r.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	trap(sandbox.KindInvalid, "point back", func(r *repo) { clear(r); r.write(".git", "gitdir: "+git+"\n") })
	trap(sandbox.KindInvalid, "point back", func(r *repo) {
		clear(r)
		r.write(".git", "gitdir: a/worktrees/x\n")
		r.write("a/worktrees/x/gitdir", filepath.Join(r.dir, ".git")+"\n")
		r.write("a/worktrees/x/commondir", git+"\n")
	})
	pipe := func(r *repo, name string) {
		t.Helper()
		r.write(filepath.Join(filepath.Dir(name), "x"), "")
		if out, err := exec.Command("mkfifo", filepath.Join(r.dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	trap(sandbox.KindInvalid, "point back", func(r *repo) {
		clear(r)
		r.write(".git", "gitdir: a/worktrees/x\n")
		pipe(r, "a/worktrees/x/gitdir")
	})
	trap(sandbox.KindUnsupported, "borrows", func(r *repo) { pipe(r, ".git/objects/info/alternates") })
	trap(sandbox.KindInvalid, "neither a file", func(r *repo) { pipe(r, ".git/objects/pack/pack-x.idx") })
	trap(sandbox.KindInvalid, "is a link", func(r *repo) { clear(r); link(r, ".git", git) })
	trap(sandbox.KindInvalid, "another repository", func(r *repo) { r.write(".git/commondir", git+"\n") })
	trap(sandbox.KindInvalid, "neither a file", func(r *repo) { link(r, ".git/objects", filepath.Join(git, "objects")) })
	trap(sandbox.KindInvalid, "neither a file", func(r *repo) { link(r, ".git/objects/pack", filepath.Join(git, "objects", "pack")) })
	trap(sandbox.KindUnsupported, "borrows", func(r *repo) { r.write(".git/objects/info/alternates", filepath.Join(git, "objects")+"\n") })
}

// TestNothingIsExecuted gives a repository everything that git could start.
func TestNothingIsExecuted(t *testing.T) {
	r := newRepo(t)
	r.write("f", "text")
	r.write(".gitattributes", "* filter=evil diff=evil merge=evil\n")
	c := r.commit("x")
	witness := filepath.Join(t.TempDir(), "executed")
	script := filepath.Join(t.TempDir(), "evil")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ntouch "+witness+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"core.fsmonitor", "core.pager", "pager.cat-file", "pager.rev-parse", "core.sshCommand", "core.editor", "core.askPass", "core.gitProxy",
		"core.alternateRefsCommand", "filter.evil.smudge", "filter.evil.clean", "filter.evil.process", "diff.evil.textconv", "diff.external", "credential.helper",
		"uploadpack.packObjectsHook", "alias.cat-file", "remote.origin.uploadpack", "gpg.program"} {
		r.git("config", key, script)
	}
	r.git("config", "protocol.allow", "always")
	r.git("config", "protocol.ext.allow", "always")
	r.git("config", "protocol.file.allow", "always")
	for _, hook := range []string{"post-checkout", "reference-transaction", "fsmonitor-watchman", "post-index-change"} {
		r.write(".git/hooks/"+hook, "#!/bin/sh\ntouch "+witness+"\n")
		if err := os.Chmod(filepath.Join(r.dir, ".git", "hooks", hook), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GIT_DIR", "/nonexistent")
	t.Setenv("GIT_EXTERNAL_DIFF", script)
	want(t, r.dir, c, "f", "text")
	want(t, r.dir+"#"+c[:8], c, "f", "text")

	// A partial clone has git fetch what is missing, by whatever its remote says.
	r.git("config", "extensions.partialClone", "origin")
	r.git("config", "core.repositoryFormatVersion", "1")
	r.git("config", "remote.origin.promisor", "true")
	blob := r.git("rev-parse", "HEAD:f")
	if err := os.Remove(filepath.Join(r.dir, ".git", "objects", blob[:2], blob[2:])); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"ext::" + script, "file:///nonexistent", "ssh://h/x", "/nonexistent"} {
		r.git("config", "remote.origin.url", url)
		refuse(t, r.dir, sandbox.KindInvalid, "missing")
	}
	if exists(witness) {
		t.Error("something of the repository was executed")
	}
}

func TestHostileTrees(t *testing.T) {
	r := newRepo(t)
	blob := r.blob("x")
	leaf, _ := r.tree("100644", "x", blob)
	for _, name := range []string{".git", ".GIT", ".Git", "git~1", "GIT~1", ".git.", ".git ", ".git. .", ".git::$INDEX_ALLOCATION", ".git:x", ".g\u200cit", "\ufeff.git",
		`.git\hooks`, `a\.git`, "..", ".", "", "a/b", "../x", "/etc", "\xff"} {
		_, c := r.tree("100644", name, blob)
		refuse(t, r.dir+"#"+c, sandbox.KindInvalid, "")
		_, c = r.tree("40000", name, leaf)
		refuse(t, r.dir+"#"+c, sandbox.KindInvalid, "")
	}
	for _, name := range []string{".gitignore", ".github", "git", "x.git", "git~10", "...", "a b", "-x", `a\b`, "a:b", "\x1b[2J", "ä"} {
		_, c := r.tree("100644", name, blob)
		want(t, r.dir+"#"+c, c, name, "x")
	}
	refuseTree := func(kind sandbox.Kind, words string, entries ...string) {
		t.Helper()
		_, c := r.tree(entries...)
		refuse(t, r.dir+"#"+c, kind, words)
	}
	refuseTree(sandbox.KindInvalid, "twice", "100644", "a", blob, "40000", "a", leaf)
	refuseTree(sandbox.KindInvalid, "mode", "100000", "a", blob)
	refuseTree(sandbox.KindInvalid, "mode", "060644", "a", blob)
	refuseTree(sandbox.KindInvalid, "not a blob", "100644", "a", leaf)
	refuseTree(sandbox.KindInvalid, "not a tree", "40000", "a", blob)
	refuseTree(sandbox.KindInvalid, "missing", "100644", "a", strings.Repeat("ab", 20))
	refuseTree(sandbox.KindUnsupported, `["link"]`, "100644", "a", blob, "120000", "link", r.blob("/etc/passwd"))
	refuseTree(sandbox.KindUnsupported, `["up"]`, "100644", "a", blob, "120000", "up", r.blob("../a"))
	refuseTree(sandbox.KindUnsupported, `["round"]`, "120000", "a", r.blob("b"), "120000", "round", r.blob("a/../b"))
	refuseTree(sandbox.KindUnsupported, `["long"]`, "120000", "long", r.blob(strings.Repeat("x", 5000)))
	refuseTree(sandbox.KindUnsupported, `["none"]`, "120000", "none", r.blob("a\x00b"))

	_, c := r.tree("100644", "a", blob, "160000", "module", strings.Repeat("cd", 20))
	if tree := want(t, r.dir+"#"+c, c, "a", "x"); tree == nil || len(tree.Submodules) != 1 || tree.Submodules[0] != "module" {
		t.Errorf("%+v", tree)
	}
	pointer := lfsPointer + "oid sha256:" + strings.Repeat("0", 64) + "\nsize 3\n"
	_, c = r.tree("100644", "big", r.blob(pointer), "100644", "small", blob)
	if tree := want(t, r.dir+"#"+c, c, "big", pointer); tree == nil || len(tree.Pointers) != 1 || tree.Pointers[0] != "big" {
		t.Errorf("%+v", tree)
	}

	// Ten in ten in ten …: eight objects, 10^8 files.
	bomb := leaf
	for range 8 {
		var entries []string
		for i := range 10 {
			entries = append(entries, "40000", string(rune('a'+i)), bomb)
		}
		bomb, c = r.tree(entries...)
	}
	refuse(t, r.dir+"#"+c, sandbox.KindTooLarge, "more than 20000 files")
	deep := leaf
	for range 20 {
		deep, c = r.tree("40000", strings.Repeat("d", 250), deep)
	}
	refuse(t, r.dir+"#"+c, sandbox.KindTooLarge, "path")
}

// TestTooManyBytes has one large file, which compresses, many times.
func TestTooManyBytes(t *testing.T) {
	r := newRepo(t)
	blob := r.blob(strings.Repeat("\x00", 100<<20))
	var entries []string
	for i := range 6 {
		entries = append(entries, "100644", string(rune('a'+i)), blob)
	}
	_, c := r.tree(entries...)
	refuse(t, r.dir+"#"+c, sandbox.KindTooLarge, "512 MiB")
}

// TestDamage: an object that is not what its name says is not brought.
func TestDamage(t *testing.T) {
	for _, kind := range []string{"blob", "tree", "commit"} {
		r := newRepo(t)
		r.write("f", "right")
		right := r.commit("right")
		r.git("branch", "right")
		r.write("f", "wrong")
		r.commit("wrong")
		name := map[string]string{"blob": ":f", "tree": "^{tree}", "commit": "^{commit}"}[kind]
		file := func(id string) string { return filepath.Join(r.dir, ".git", "objects", id[:2], id[2:]) }
		to := file(r.git("rev-parse", "right"+name))
		b, err := os.ReadFile(file(r.git("rev-parse", "main"+name)))
		if err == nil {
			err = os.Remove(to)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o444)
		}
		if err != nil {
			t.Fatal(err)
		}
		refuse(t, r.dir+"#"+right, sandbox.KindInvalid, "damaged")
	}
}

func TestNothingIsLeft(t *testing.T) {
	r := newRepo(t)
	r.write("f", "x")
	r.commit("x")
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	want(t, r.dir, r.git("rev-parse", "HEAD"), "f", "x")
	refuse(t, r.dir+"#none", sandbox.KindNotFound, "")
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Read(ctx, Spec{Repo: r.dir, Ref: "HEAD"}); sandbox.KindOf(err) != sandbox.KindCanceled {
		t.Errorf("%v; want canceled", err)
	}
}
