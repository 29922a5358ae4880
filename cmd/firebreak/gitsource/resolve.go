package gitsource

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxCandidates is how many objects an abbreviation is compared with.
const maxCandidates = 64

// resolve finds the commit that ref is: HEAD, refs/…, a commit in full, else a
// branch, a tag, a branch of a remote (origin/main) or the beginning of a commit's
// id. Git takes the first of several with a warning; here they must agree.
//
// Errors: KindNotFound, KindInvalid if ref is ambiguous.
func (r *repository) resolve(ctx context.Context, ref string) (string, error) {
	if r.wanted != "" {
		return r.arrived(ref)
	}
	names := []string{"refs/heads/" + ref, "refs/tags/" + ref, "refs/remotes/" + ref}
	digits := isHex(ref)
	switch {
	case ref == "HEAD", strings.HasPrefix(ref, "refs/"):
		names = []string{ref}
	case digits && (len(ref) == 40 || len(ref) == 64):
		o, err := r.lookup(ref)
		if err == nil && (o.id != strings.ToLower(ref) || o.kind != "commit") {
			err = r.errorf(sandbox.KindNotFound, "there is no commit %s", ref).WithHint("a shallow clone lacks old ones: `git fetch --unshallow` there")
		}
		return o.id, err
	}
	var commits, found []string
	add := func(commit, as string) {
		if !slices.Contains(commits, commit) {
			commits, found = append(commits, commit), append(found, as)
		}
	}
	for _, name := range names {
		o, err := r.lookup(name + "^{commit}")
		if err != nil {
			return "", err
		}
		if o.kind == "commit" {
			add(o.id, name)
		}
	}
	if digits && len(ref) >= 4 && len(names) > 1 {
		ids, err := r.abbreviated(ctx, ref)
		if err != nil {
			return "", err
		}
		for _, id := range ids {
			add(id, id)
		}
	}
	switch len(commits) {
	case 0:
		return "", r.errorf(sandbox.KindNotFound, "no commit is named %q", ref).WithHint("`git for-each-ref` there lists branches and tags")
	case 1:
		return commits[0], nil
	}
	return "", r.errorf(sandbox.KindInvalid, "%q is ambiguous: %s", ref, some(found)).WithHint("write the one that is meant in full")
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s + s) // an even number of digits
	return err == nil
}

// abbreviated lists the commits whose ids begin with digits.
func (r *repository) abbreviated(ctx context.Context, digits string) ([]string, error) {
	cmd, err := r.command(ctx, "rev-parse", "--disambiguate="+digits)
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, sandbox.Wrap("--git", r.path, err)
	}
	list, err := io.ReadAll(io.LimitReader(out, maxCandidates*65+1))
	_ = cmd.Process.Kill() // there may be more to it than was read
	_ = cmd.Wait()
	if err != nil {
		return nil, sandbox.Wrap("--git", r.path, err)
	}
	if len(list) > maxCandidates*65 {
		return nil, r.errorf(sandbox.KindInvalid, "too many objects begin with %q", digits).WithHint("write more digits")
	}
	var commits []string
	for id := range bytes.FieldsSeq(list) {
		o, err := r.lookup(string(id))
		if err != nil {
			return nil, err
		}
		if o.kind == "commit" {
			commits = append(commits, o.id)
		}
	}
	return commits, nil
}
