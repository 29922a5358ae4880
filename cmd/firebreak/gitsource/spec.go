// Package gitsource reads the files of one commit of a repository, on this
// machine or behind an https URL. The repository and its server may be hostile:
// nothing of it is executed, nothing outside of it is read, no address is
// reached that is not public, and every object is checked against its name, so
// that the commit that is reported is the commit that was read.
package gitsource

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Spec is what somebody asks for.
type Spec struct {
	Repo    string // a path of this machine, or an https or http URL
	Ref     string // HEAD, a branch, a tag, a commit or an abbreviation of one
	Subpath string // a directory of the tree; "" is all of it
}

const usage = "write --git REPO[#REF[:SUBPATH]], REPO being a directory, or a URL that begins with https://, http:// or file://"

// Parse reads REPO[#REF[:SUBPATH]]. The last # counts: a directory with one in
// its name is written with another behind it.
//
// Errors: KindUnsupported for a repository somewhere else, KindInvalid.
func Parse(s string) (Spec, error) {
	invalid := func(format string, a ...any) (Spec, error) {
		return Spec{}, sandbox.Errorf("--git", sandbox.KindInvalid, format, a...).WithHint(usage)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return invalid("%q is not text", s)
	}
	spec := Spec{Repo: s, Ref: "HEAD"}
	if i := strings.LastIndexByte(s, '#'); i >= 0 {
		ref, sub, _ := strings.Cut(s[i+1:], ":")
		spec.Repo, spec.Subpath = s[:i], sub
		if ref != "" {
			spec.Ref = ref
		}
	}
	if spec.Repo == "" {
		return invalid("no repository")
	}
	if !validRef(spec.Ref) {
		return invalid("%q is not the name of a branch, a tag or a commit", spec.Ref)
	}
	if sub := spec.Subpath; sub != "" {
		clean := path.Clean(sub)
		if path.IsAbs(sub) || clean != strings.TrimSuffix(sub, "/") || clean == ".." || strings.HasPrefix(clean, "../") {
			return invalid("%q is not a directory of a tree", sub)
		}
		if spec.Subpath = clean; clean == "." {
			spec.Subpath = ""
		}
	}
	var err error
	spec.Repo, err = location(spec.Repo)
	return spec, err
}

// location is the path that repo names on this machine, or a URL.
func location(repo string) (string, error) {
	elsewhere := func() (string, error) {
		return "", sandbox.Errorf("--git", sandbox.KindUnsupported, "%q is not on this machine, and only https:// and http:// are fetched", repo).
			WithHint("write its https:// URL; or clone it, and name the directory of the clone (./%s, if it is one)", repo)
	}
	scheme, _, isURL := strings.Cut(repo, "://")
	colon := strings.IndexByte(repo, ':')
	switch {
	case isURL && (strings.EqualFold(scheme, "https") || strings.EqualFold(scheme, "http")):
		return parseURL(repo)
	case strings.Contains(repo, "::"): // a program that fetches: ext::sh -c …
		return elsewhere()
	case isURL && strings.EqualFold(scheme, "file"):
		u, err := url.Parse(repo)
		if err != nil || u.Path == "" || u.RawQuery != "" || strings.ContainsRune(u.Path, 0) {
			return "", sandbox.Errorf("--git", sandbox.KindInvalid, "%q is not a URL of a file", repo).WithHint(usage)
		}
		if u.Host != "" && u.Host != "localhost" {
			return elsewhere()
		}
		return u.Path, nil
	case isURL, colon >= 0 && !strings.Contains(repo[:colon], "/"): // host:path
		return elsewhere()
	}
	return repo, nil
}

// refChars are those of names; what git takes for an expression is none.
var refChars = regexp.MustCompile(`^[^\x00-\x20\x7f~^:?*\[\\]+$`)

// validRef follows git check-ref-format. A name that begins with a dash would be
// fine, it reaches no command line; git does not make one, so neither is it taken.
func validRef(s string) bool {
	if len(s) > 1024 || !refChars.MatchString(s) || s == "@" || strings.HasPrefix(s, "-") || strings.HasSuffix(s, ".") ||
		strings.Contains(s, "..") || strings.Contains(s, "@{") {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return true
}
