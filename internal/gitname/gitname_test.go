package gitname

import (
	"os/exec"
	"strings"
	"testing"
)

func TestMatches(t *testing.T) {
	const agent = "refs/heads/agent/*"
	for _, c := range []struct {
		pattern, ref string
		want         bool
	}{
		{agent, "refs/heads/agent/x", true},
		{agent, "refs/heads/agent/x/y.z/-1", true},
		{agent, "refs/heads/agent", false},
		{agent, "refs/heads/agent/", false},
		{agent, "refs/heads/agents/x", false},
		{agent, "refs/heads/Agent/x", false},
		{agent, "REFS/heads/agent/x", false},
		{agent, "refs/tags/agent/x", false},
		{agent, "heads/agent/x", false},
		{agent, "agent/x", false},
		{agent, "/refs/heads/agent/x", false},
		{agent, "refs//heads/agent/x", false},
		{agent, "refs/heads/agent//x", false},
		{agent, "refs/heads/main", false},
		{agent, "refs/heads/agent/../main", false},
		{agent, "refs/heads/agent/./x", false},
		{agent, "refs/heads/agent/x/..", false},
		{agent, "refs/heads/agent/..main", false},
		{agent, "refs/heads/agent/x..y", false},
		{agent, `refs/heads/agent/..\main`, false},
		{agent, `refs/heads/agent\x`, false},
		{agent, "refs/heads/agent/x.lock", false},
		{agent, "refs/heads/agent/x.LOCK/y", false},
		{agent, "refs/heads/agent/x./y", false},
		{agent, "refs/heads/agent/.\u200c./main", false},
		{agent, "refs/heads/agent/größe", false},
		{agent, "refs/heads/ａgent/x", false},
		{agent, "refs/heads/agent/x\x00", false},
		{agent, "refs/heads/agent/x\n", false},
		{agent, "refs/heads/agent/x y", false},
		{agent, "refs/heads/agent/x:refs/heads/main", false},
		{agent, "refs/heads/agent/*", false},
		{agent, "refs/heads/agent/x@{1}", false},
		{agent, "refs/heads/agent/x~1", false},
		{agent, "HEAD", false},
		{agent, "", false},
		{"refs/heads/*", "refs/heads/main", true},
		{"refs/heads/*", "refs/tags/v1", false},
		{"refs/heads/work", "refs/heads/work", true},
		{"refs/heads/work", "refs/heads/work/x", false},
		{"refs/heads/work", "refs/heads/Work", false},
		{"refs/*", "refs/heads/x", false},
		{"*", "refs/heads/x", false},
		{"refs/heads/a*", "refs/heads/ab", false},
		{"refs/heads/*/x", "refs/heads/a/x", false},
	} {
		if got := Matches(c.pattern, c.ref); got != c.want {
			t.Errorf("%q, %q: %v", c.pattern, c.ref, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for repo, good := range map[string]bool{
		"owner/repo": true, "repo": true, "a/b/c": true, "~me/x.y": true, "a/b-c_d+1": true,
		"": false, "/a/b": false, "a/b/": false, "a//b": false, "a/../b": false, "a/.": false, "a/b.git": false, "a/b.GIT": false, "a.git/b": false, "a/b?x": false, "a/b#c": false,
		"a/%62": false, "a b": false, "a/ü": false, `a\b`: false, "a/b;c": false, "a:b@c": false, ".a/b": false, strings.Repeat("a", 513): false,
	} {
		if err := CheckRepo(repo); (err == nil) != good {
			t.Errorf("%q: %v", repo, err)
		}
	}
	for pattern, good := range map[string]bool{
		"refs/heads/agent/*": true, "refs/heads/*": true, "refs/tags/v1": true, "refs/heads/a/b": true,
		"": false, "*": false, "refs/*": false, "refs": false, "main": false, "heads/x": false, "refs/heads/a*": false, "refs/heads/*/*": false, "refs/heads/**": false, "refs/heads/": false,
		"refs/heads/x/": false, "refs/heads/../*": false, "+refs/heads/x": false, "refs/heads/x?": false, "refs/heads/[ab]": false, "refs/heads/" + strings.Repeat("x", 300): false,
	} {
		if err := CheckPattern(pattern); (err == nil) != good {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

// FuzzRef: what is a ref here is one for git too, and is below what its pattern says
// for whoever takes it apart at the slashes.
func FuzzRef(f *testing.F) {
	git, err := exec.LookPath("git")
	for _, s := range []string{"refs/heads/agent/x", "refs/heads/agent/../main", "refs/heads/@", "refs/heads/-x", "refs/heads/agent/x.lock"} {
		f.Add(s)
	}
	n := 0
	f.Fuzz(func(t *testing.T, ref string) {
		if CheckRef(ref) != nil {
			return
		}
		if n++; err == nil && n%64 == 1 { // a process each is slow
			if out, err := exec.Command(git, "check-ref-format", ref).CombinedOutput(); err != nil {
				t.Errorf("git does not take %q: %v %s", ref, err, out)
			}
		}
		if Matches("refs/heads/agent/*", ref) {
			if parts := strings.Split(ref, "/"); len(parts) < 4 || strings.Join(parts[:3], "/") != "refs/heads/agent" || strings.Contains(ref, "..") {
				t.Errorf("%q is one of the agent's", ref)
			}
		}
	})
}
