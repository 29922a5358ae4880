package template

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Host is the name of the template that shows the machine's own programs.
const Host = "host"

// The languages a template may be able to run.
const (
	Python = "python"
	Node   = "node"
	Shell  = "shell"
)

// languages is every language, in the order templates list them.
var languages = []string{Python, Node, Shell}

// GuestDir is the directory in every root over which a backend binds the guest
// runtime. It is empty.
const GuestDir = "/.firebreak"

// The account user code runs as, present in every root's /etc/passwd.
const (
	UserName = "user"
	UserID   = 1000
	UserHome = "/home/user"
)

// Template is a root file system that is ready to use.
type Template struct {
	Name        string // empty when only a digest refers to it
	Description string
	Digest      string // "sha256:" and 64 hex digits
	Created     time.Time
	Size        int64 // bytes of file content; for Host only the synthetic part

	// Packs names the languages it can run, out of Python, Node and Shell.
	Packs []string
	// Default is the language used when a caller names none.
	Default string
	// Env is what a process gets unless the caller says otherwise.
	Env map[string]string
	// Packages lists what it was built from; empty for Host.
	Packages []Package

	// Source says what image or archive it was made of; nil for others.
	Source *Source
	// Image is what that image says about running it; nil likewise.
	Image *ImageConfig
	// Boot is what a machine of it boots that was brought; nil where nothing was.
	Boot *Boot

	Root sandbox.Root

	// Damaged says what is wrong with a template that cannot be used. Only List
	// returns such templates, so that they can be seen and removed.
	Damaged string
}

// Package is a Debian package at a version.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Runs reports whether t can run language.
func (t Template) Runs(language string) bool { return slices.Contains(t.Packs, language) }

// clone keeps a cached Template apart from what a caller may change.
func (t Template) clone() Template {
	t.Packs = slices.Clone(t.Packs)
	t.Env = maps.Clone(t.Env)
	t.Packages = slices.Clone(t.Packages)
	t.Root.Mounts = slices.Clone(t.Root.Mounts)
	t.Boot, t.Root.Boot = copyOf(t.Boot), copyOf(t.Root.Boot)
	if t.Source != nil {
		c := *t.Source
		c.Layers = slices.Clone(c.Layers)
		t.Source = &c
	}
	if t.Image != nil {
		c := *t.Image
		c.Entrypoint, c.Cmd, c.Labels = slices.Clone(c.Entrypoint), slices.Clone(c.Cmd), maps.Clone(c.Labels)
		t.Image = &c
	}
	return t
}

// called is t under a name, with the reference that name was built by. It shares
// nothing with t.
func (t Template) called(name, reference string) Template {
	t = t.clone()
	t.Name = name
	if ref, digest, ok := strings.Cut(reference, " "); ok && t.Source != nil {
		t.Source.Reference, t.Source.Digest = ref, digest
	}
	return t
}

// WorkDir is the directory commands start in; empty for the home.
func (t Template) WorkDir() string {
	if t.Image == nil {
		return ""
	}
	return t.Image.WorkDir
}

var (
	reName   = regexp.MustCompile(`^[a-z][a-z0-9._-]{0,62}$`)
	reDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	reEntry  = regexp.MustCompile(`^sha256-[0-9a-f]{64}$`)
)

const tmpPrefix = "tmp-"

// entryName is the directory of a digest, which must be well formed.
func entryName(digest string) string { return "sha256-" + digest[len("sha256:"):] }

func entryDigest(name string) string { return "sha256:" + name[len("sha256-"):] }

func isLanguage(name string) bool { return slices.Contains(languages, name) }

// notFound is the answer to a name nothing is built for. It names the command
// that mends it.
func notFound(op, name string) error {
	e := sandbox.Errorf(op, sandbox.KindNotFound, "no template called %q", name).WithID(name)
	switch {
	case isLanguage(name):
		e = sandbox.Errorf(op, sandbox.KindNotFound, "the %s template is not built yet", name).WithID(name).
			WithHint("run `firebreak template build %s`, or use the template %q", name, Host)
	case LooksLikeImage(name):
		e = sandbox.Errorf(op, sandbox.KindNotFound, "%q is an image, not a template", clip(name)).WithID(clip(name)).
			WithHint("run `firebreak template build NAME --image %s` once and use NAME, or `firebreak run --image %[1]s`", clip(name))
	case reDigest.MatchString(name):
		e = e.WithHint("`firebreak template ls` lists what is here")
	default:
		e = e.WithHint("`firebreak template ls` lists what is here; python, node and shell are built by `firebreak template build python`, an image by `firebreak template build %s --image REFERENCE`", clip(name))
	}
	return e
}
