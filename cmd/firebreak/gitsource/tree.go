package gitsource

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/archive"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What is read of one commit. A tree that names itself over and over is small
// on disk and has no end.
const (
	MaxEntries = 20000     // files and directories
	MaxBytes   = 512 << 20 // of all files
	maxTrees   = 64 << 20  // bytes of all directories
	maxCommit  = 1 << 20
	maxPath    = 4096
)

// lfsPointer begins a file whose content is on another server.
const lfsPointer = "version https://git-lfs.github.com/spec/v1\n"

// Tree is the files of one commit. Its owner closes it.
type Tree struct {
	Repo, Ref, Subpath string
	Commit             string // in full
	From               string // where the URL that is Repo redirected to; "" if it did not
	Files              []File // in the order of the tree
	Links              []Link // that stay in it

	Submodules []string // left out: their commits are in other repositories
	Pointers   []string // LFS pointers, which stay what they are

	contents *os.File // has no name: it goes with the process
	refused  []string // links, and why
	bytes    int64
	entries  int
	trees    int64 // bytes
}

// File is a regular file of a Tree.
type File struct {
	Path string // relative, slashes
	Mode uint32 // 0644 or 0755
	Size int64

	at int64 // in contents
}

// Link is a symbolic link of a Tree.
type Link struct{ Path, Target string }

// Open yields a file's content.
func (t *Tree) Open(f File) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(t.contents, f.at, f.Size))
}

// maxFollowed is how many links one path may lead over, as the kernel has it.
const maxFollowed = 40

// Find returns the file that path, which is clean, leads to.
func (t *Tree) Find(path string) (File, bool) {
	for range maxFollowed {
		for _, f := range t.Files {
			if f.Path == path {
				return f, true
			}
		}
		next, ok := t.through(path)
		if !ok {
			break
		}
		path = next
	}
	return File{}, false
}

// through follows the first link in name. Nothing above that is one, so its target,
// which stays in the tree, means what its letters say.
func (t *Tree) through(name string) (string, bool) {
	for _, l := range t.Links {
		if rest, ok := strings.CutPrefix(name+"/", l.Path+"/"); ok {
			return path.Join(path.Dir(l.Path), l.Target, rest), true
		}
	}
	return "", false
}

// Close gives the contents up. It may be called on nil.
func (t *Tree) Close() {
	if t != nil {
		_ = t.contents.Close()
	}
}

// Read reads with the zero Network.
func Read(ctx context.Context, spec Spec) (*Tree, error) { return new(Network).Read(ctx, spec) }

// Read resolves spec and copies the files of its commit to a temporary file, which
// costs their size on disk and, by Go and git together, some MiB of memory. What is
// not committed is not read. What is on another machine is fetched before, without
// history: its pack takes its size on disk meanwhile, and git half a GiB of
// memory at worst.
//
// Errors: KindUnsupported (no git here, objects elsewhere, symbolic links that lead out),
// KindNotFound (ref, subpath), KindTooLarge, KindInvalid (everything wrong with the
// repository and the names in its trees); of a server also KindDenied (its address,
// or it asks who one is), KindTimeout, KindUnavailable and KindProtocol.
func (n *Network) Read(ctx context.Context, spec Spec) (t *Tree, err error) {
	r, err := n.open(ctx, spec)
	if err != nil {
		return nil, err
	}
	defer r.close()
	t = &Tree{Repo: spec.Repo, Ref: spec.Ref, Subpath: spec.Subpath, From: r.from}
	if t.contents, err = os.CreateTemp("", "firebreak-git-"); err != nil {
		return nil, sandbox.Wrap("--git", spec.Repo, err)
	}
	defer func() {
		if err != nil {
			t.Close()
			if ctx.Err() != nil {
				err = sandbox.Wrap("--git", spec.Repo, context.Cause(ctx))
			}
		}
	}()
	if err := os.Remove(t.contents.Name()); err != nil {
		return nil, sandbox.Wrap("--git", spec.Repo, err)
	}
	if t.Commit, err = r.resolve(ctx, spec.Ref); err != nil {
		return nil, err
	}
	root, err := t.root(r)
	if err != nil {
		return nil, err
	}
	if err := t.walk(r, root, ""); err != nil {
		return nil, err
	}
	if n := len(t.refused); n > 0 {
		return nil, r.errorf(sandbox.KindUnsupported, "symbolic links that leave the tree are not brought: %s", some(t.refused)).
			WithHint("name a directory without them, as #%s:SUBPATH, or bring files with --input", spec.Ref)
	}
	return t, nil
}

// some names a few of many.
func some(names []string) string {
	s := fmt.Sprintf("%q", names[:min(len(names), 5)])
	if more := len(names) - 5; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// root is the tree of the commit at the subpath.
func (t *Tree) root(r *repository) (string, error) {
	commit, err := r.read(t.Commit, "commit", maxCommit)
	if err != nil {
		return "", t.over(r, err, "the commit", maxCommit)
	}
	line, _, _ := bytes.Cut(commit, []byte("\n"))
	tree, ok := strings.CutPrefix(string(line), "tree ")
	if _, err := newHash(tree); !ok || err != nil || len(tree) != len(t.Commit) {
		return "", r.errorf(sandbox.KindInvalid, "the commit %s has no tree", t.Commit)
	}
	if t.Subpath == "" {
		return tree, nil
	}
	for name := range strings.SplitSeq(t.Subpath, "/") {
		entries, err := t.list(r, tree, "")
		if err != nil {
			return "", err
		}
		tree = ""
		for _, e := range entries {
			if e.name == name && e.mode == "40000" {
				tree = e.id
			}
		}
		if tree == "" {
			return "", r.errorf(sandbox.KindNotFound, "the commit %s has no directory %q", t.Commit, t.Subpath).WithHint("%s", usage)
		}
	}
	return tree, nil
}

// over says which limit an object was over.
func (t *Tree) over(r *repository, err error, what string, limit int64) error {
	if errors.Is(err, errTooLarge) {
		return r.errorf(sandbox.KindTooLarge, "%s have more than %s", what, sandbox.FormatSize(limit)).
			WithHint("name a part of it, as #%s:SUBPATH", t.Ref)
	}
	return err
}

func (t *Tree) walk(r *repository, tree, dir string) error {
	entries, err := t.list(r, tree, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.name)
		if len(name) > maxPath {
			return r.errorf(sandbox.KindTooLarge, "a path of the tree has more than %d bytes", maxPath).WithHint("name a directory further below, as #%s:SUBPATH", t.Ref)
		}
		if t.entries++; t.entries > MaxEntries {
			return r.errorf(sandbox.KindTooLarge, "the tree has more than %d files and directories", MaxEntries).
				WithHint("name a part of it, as #%s:SUBPATH", t.Ref)
		}
		switch e.mode {
		case "40000":
			err = t.walk(r, e.id, name)
		case "100644", "100664": // the second by very old gits
			err = t.file(r, e.id, name, 0o644)
		case "100755":
			err = t.file(r, e.id, name, 0o755)
		case "120000":
			err = t.link(r, e.id, name)
		case "160000":
			t.Submodules = append(t.Submodules, name)
		default:
			err = r.errorf(sandbox.KindInvalid, "%q has the mode %q, which git knows nothing of", name, e.mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxTarget is how long what a link holds may be.
const maxTarget = 4095

func (t *Tree) link(r *repository, id, name string) error {
	target, err := r.read(id, "blob", maxTarget)
	if errors.Is(err, errTooLarge) {
		target, err = nil, nil
	}
	if err != nil {
		return err
	}
	if archive.RefusedLink(name, string(target)) != "" {
		t.refused = append(t.refused, name)
		return nil
	}
	t.Links = append(t.Links, Link{Path: name, Target: string(target)})
	return nil
}

func (t *Tree) file(r *repository, id, name string, mode uint32) error {
	f := File{Path: name, Mode: mode, at: t.bytes}
	var err error
	if f.Size, err = r.copy(t.contents, id, "blob", MaxBytes-t.bytes); err != nil {
		return t.over(r, err, "the files", MaxBytes)
	}
	t.bytes += f.Size
	t.Files = append(t.Files, f)
	if f.Size < 1024 { // as git-lfs has it
		head, err := io.ReadAll(t.Open(f))
		if err != nil {
			return sandbox.Wrap("--git", r.path, err)
		}
		if bytes.HasPrefix(head, []byte(lfsPointer)) {
			t.Pointers = append(t.Pointers, name)
		}
	}
	return nil
}

// entry is a line of a tree.
type entry struct{ mode, name, id string }

// list reads one directory. A name that would be something else where it goes, or
// for a git there, is refused, and so are two of one name.
func (t *Tree) list(r *repository, tree, dir string) ([]entry, error) {
	data, err := r.read(tree, "tree", maxTrees-t.trees)
	if err != nil {
		return nil, t.over(r, err, "the directories", maxTrees)
	}
	t.trees += int64(len(data))
	var entries []entry
	seen := map[string]bool{}
	for len(data) > 0 {
		var e entry
		mode, rest, ok := bytes.Cut(data, []byte(" "))
		name, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || len(rest) < len(tree)/2 {
			return nil, r.errorf(sandbox.KindInvalid, "the tree %s is damaged", tree)
		}
		e.mode, e.name, e.id = string(mode), string(name), hex.EncodeToString(rest[:len(tree)/2])
		data = rest[len(tree)/2:]
		if why := refused(e.name); why != "" {
			return nil, r.errorf(sandbox.KindInvalid, "%q in its tree is refused: %s", strings.TrimPrefix(dir+"/"+e.name, "/"), why)
		}
		if seen[e.name] {
			return nil, r.errorf(sandbox.KindInvalid, "%q is in its tree twice", path.Join(dir, e.name))
		}
		seen[e.name] = true
		entries = append(entries, e)
	}
	return entries, nil
}

// refused says why a name is none for a file.
func refused(name string) string {
	switch {
	case name == "":
		return "it is empty"
	case name == ".", name == "..":
		return "it is a directory that is there"
	case strings.ContainsAny(name, "/\x00"):
		return "it is a path"
	case !utf8.ValidString(name):
		return "it is not UTF-8"
	case dotGit(name):
		return "git would take it for .git"
	}
	return ""
}

// dotGit reports whether name is .git somewhere: Windows ignores case, final dots
// and spaces, what follows a colon, and has GIT~1 for it; macOS ignores case and
// characters that are not shown.
func dotGit(name string) bool {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
			return -1
		}
		return r
	}, name)
	for part := range strings.SplitSeq(name, `\`) { // which Windows takes for a slash
		part, _, _ = strings.Cut(part, ":")
		part = strings.ToLower(strings.TrimRight(part, ". "))
		if part == ".git" || part == "git~1" {
			return true
		}
	}
	return false
}
