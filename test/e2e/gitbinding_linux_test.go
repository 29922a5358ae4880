package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// gitJob is what somebody's program does with a private repository. The token it
// looks for is made of two halves, and one file has it so that the search sees one.
const gitJob = `export GIT_TERMINAL_PROMPT=0 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git clone -q $GH_BASE_URL/owner/repo && cd repo && cat README
git -c protocol.version=0 ls-remote -q $GH_BASE_URL/owner/repo.git refs/heads/main | sed 's/^/old /'
head -c 3000000 /dev/urandom >big; git add -A; git commit -qm second
git push -q origin HEAD:refs/heads/agent/x && echo pushed
git push origin HEAD:refs/heads/main 2>&1 && echo WRONG
git push origin HEAD:refs/heads/agent/y :refs/heads/main 2>&1 && echo WRONG
git push origin HEAD:refs/tags/v1 2>&1 && echo WRONG
git ls-remote $GH_BASE_URL/owner/other 2>&1 && echo WRONG
git fetch -q && git log --oneline origin/agent/x | wc -l
git config --list --show-origin; env
t="$1$2"; echo "$t" >../control
b=$(printf 'x-access-token:%s' "$t" | base64 -w 0)
echo found $(grep -rlF -e "$t" -e "$b" /home /tmp /etc /proc/[0-9]*/environ 2>/dev/null | wc -l)`

// TestBindingGit: git, as it is, clones a private repository and pushes to the refs
// that the binding is for; nothing else of the server's can be had or changed, git says
// why, and the token is not in the sandbox.
func TestBindingGit(t *testing.T) {
	n := internet.New(t)
	w := newWorld(t).on(t, n)
	w.env = append(w.env, "SSL_CERT_FILE="+n.Authority.File)
	const half, other = "ghp_9f31c07be2", "4d8a65c1f0b7"
	forge, err := n.Forge(half+other, "owner/repo", "owner/other")
	if err != nil {
		t.Fatal(err)
	}
	n.Site("git.example", forge)
	refs := func(repository string) string {
		t.Helper()
		refs, err := forge.Refs(repository)
		if err != nil {
			t.Fatal(err)
		}
		return refs
	}
	before := refs("owner/repo")
	w.serve()
	w.must(half+other+"\n", "secret", "set", "ghtoken")
	if said := w.must("", "binding", "add", "gh", "--secret", "ghtoken", "--host", "git.example", "--git", "owner/repo.git", "--git-push", "refs/heads/agent/*"); !strings.Contains(said, "https://git.example/owner/repo") {
		t.Error(said)
	}
	mustContain(t, "the list", w.must("", "binding", "ls"), "fetch,refs/heads/agent/*", "basic x-access-token")

	r := w.run("", "run", "--json", "--timeout", "3m", "--memory", "1GiB", "--disk", "1GiB", "--binding", "gh", "--", "sh", "-c", gitJob, "sh", half, other)
	var out struct {
		ran
		Egress []bound
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || r.code != 0 || !out.Receipt.Clean {
		t.Fatalf("%v: %+v", err, r)
	}
	mustContain(t, "the program", out.Stdout, "this is owner/repo\n", "old "+strings.ReplaceAll(before, " ", "\t"), "pushed\n", "HEAD -> main (not by this binding)", `the binding does not let "refs/heads/main" be pushed to, only refs/heads/agent/*`,
		"HEAD -> agent/y (not with the others)", "HEAD -> v1 (not by this binding)", "the binding is for the repository owner/repo", "found 1\n", "\n2\n")
	if strings.Contains(out.Stdout, "WRONG") || strings.Contains(r.stdout, half+other) || t.Failed() {
		t.Errorf("the program: %s %s", out.Stdout, out.Stderr)
	}
	after := strings.Split(refs("owner/repo"), "\n")
	if len(after) != 2 || !slices.Contains(after, before) || !strings.HasSuffix(after[0], " refs/heads/agent/x") {
		t.Errorf("the repository had %q and has %q", before, after)
	}
	if s := forge.Strangers(); s > 0 {
		t.Errorf("%d requests came without the token", s)
	}
	for _, want := range []struct{ method, decision, reason string }{{"GET", "allow", "binding"}, {"POST", "allow", "binding"}, {"POST", "deny", "push"}, {"GET", "deny", "path"}} {
		if !slices.ContainsFunc(out.Egress, func(f bound) bool {
			return f.Kind == "request" && f.Binding == "gh" && f.Host == "git.example" && f.Method == want.method && f.Decision == want.decision && f.Reason == want.reason
		}) {
			t.Errorf("the report lacks %+v: %+v", want, out.Egress)
		}
	}

	// Without --git-push nothing is pushed.
	w.must("", "binding", "add", "reads", "--secret", "ghtoken", "--host", "git.example", "--git", "owner/repo")
	r = w.run("", "run", "--memory", "1GiB", "--disk", "1GiB", "--binding", "reads", "--", "sh", "-c", "git clone -q $READS_BASE_URL/owner/repo && git -C repo push origin HEAD:refs/heads/agent/z 2>&1")
	if r.code == 0 || !strings.Contains(r.stdout, "lets nothing be pushed") {
		t.Errorf("%+v", r)
	}
	if got := strings.Split(refs("owner/repo"), "\n"); !slices.Equal(got, after) {
		t.Errorf("the repository had %q and has %q", after, got)
	}
}
