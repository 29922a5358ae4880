package broker

import (
	"cmp"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/gitname"
)

// gitUser is what servers of git take a token for, whose it is: GitHub's word, which
// the others do not mind.
const gitUser = "x-access-token"

// normalGit is b, which is for git, with its repository as the path, and the secret
// as a password unless it is said otherwise. Errors: KindInvalid.
func (b Binding) normalGit() (Binding, error) {
	g := Git{Repo: strings.TrimSuffix(strings.Trim(b.Git.Repo, "/"), ".git"), Push: slices.Clone(b.Git.Push)}
	if err := gitname.CheckRepo(g.Repo); err != nil {
		return b, invalid("git: %.80q is no repository: %w", b.Git.Repo, err).WithHint("write --git OWNER/NAME, and the server with --host")
	}
	for _, p := range g.Push {
		if err := gitname.CheckPattern(p); err != nil {
			return b, invalid("git-push: %.80q is no ref: %w", p, err).WithHint("write refs/heads/NAME, or refs/heads/agent/* for all below")
		}
	}
	slices.Sort(g.Push)
	switch g.Push = slices.Compact(g.Push); {
	case len(g.Push) > maxPush:
		return b, invalid("git-push: there are %d", len(g.Push)).WithHint("at most %d; /* at the end is for all below", maxPush)
	case len(g.Push) == 0:
		g.Push = nil
	}
	path := "/" + g.Repo
	if b.Path != "" && b.Path != "/" && b.Path != path {
		return b, invalid("path: that of a binding for git is its repository's").WithHint("leave it out")
	}
	if len(b.Methods) > 0 {
		return b, invalid("method: those of a binding for git are git's").WithHint("leave them out")
	}
	b.Git, b.Path, b.Inject.As = &g, path, cmp.Or(b.Inject.As, AsBasic)
	switch b.Inject.As {
	case AsBasic:
		b.Inject.Name = cmp.Or(b.Inject.Name, gitUser)
	case AsQuery:
		return b, invalid("as: git's requests have no parameter for a secret").WithHint("leave it out: the secret is sent as a password then")
	}
	return b, nil
}
