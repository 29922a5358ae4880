// Package gitname says what a repository and a ref of git may be called where a
// sandbox is to be kept from the others, and which refs a pattern is for.
//
//	gitname.Matches("refs/heads/agent/*", "refs/heads/agent/x") // true
//
// It is narrower than git: a name that a file system or another server could take
// for another one is none.
package gitname

import (
	"errors"
	"regexp"
	"strings"
)

const (
	maxRepo    = 512
	maxRef     = 1024
	maxPattern = 256
)

var reRepo = regexp.MustCompile(`^[A-Za-z0-9_.~+-]+(/[A-Za-z0-9_.~+-]+)*$`)

// CheckRepo says why repo is no path of a repository on a server, OWNER/NAME
// without .git.
func CheckRepo(repo string) error {
	if len(repo) > maxRepo || !reRepo.MatchString(repo) {
		return errors.New("it is no path of segments of letters, digits and _.~+-")
	}
	for part := range strings.SplitSeq(repo, "/") {
		if part[0] == '.' || part[len(part)-1] == '.' || strings.HasSuffix(strings.ToLower(part), ".git") {
			return errors.New("a segment of it begins or ends with a dot, or ends with .git")
		}
	}
	return nil
}

// CheckRef says why ref is no name of a ref in full: git's own rules
// (git check-ref-format), ASCII, below refs/ and what is below that.
func CheckRef(ref string) error {
	if len(ref) > maxRef {
		return errors.New("it is too long")
	}
	for i := range len(ref) {
		if c := ref[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`~^:?*[\`, c) >= 0 {
			return errors.New("it has a character that is none of a ref's, or is not ASCII")
		}
	}
	parts := strings.Split(ref, "/")
	if len(parts) < 3 || parts[0] != "refs" {
		return errors.New("it is not below refs/heads, refs/tags or the like")
	}
	if strings.Contains(ref, "..") || strings.Contains(ref, "@{") {
		return errors.New("it has .. or @{ in it")
	}
	for _, part := range parts {
		if part == "" || part[0] == '.' || part[len(part)-1] == '.' || strings.HasSuffix(strings.ToLower(part), ".lock") {
			return errors.New("a part of it is empty, begins or ends with a dot, or ends with .lock")
		}
	}
	return nil
}

// CheckPattern says why pattern is none: a ref in full, or the beginning of refs,
// whole parts of a name and /*.
func CheckPattern(pattern string) error {
	if len(pattern) > maxPattern {
		return errors.New("it is too long")
	}
	if base, all := strings.CutSuffix(pattern, "/*"); all {
		return CheckRef(base + "/x")
	}
	return CheckRef(pattern)
}

// Matches reports whether ref, which may be anything, is a ref that pattern is for:
// the same, byte by byte, or one or more parts below it.
func Matches(pattern, ref string) bool {
	if CheckPattern(pattern) != nil || CheckRef(ref) != nil {
		return false
	}
	if base, all := strings.CutSuffix(pattern, "*"); all {
		return strings.HasPrefix(ref, base)
	}
	return ref == pattern
}
