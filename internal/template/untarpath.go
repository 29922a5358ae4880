package template

import (
	"errors"
	"hash/maphash"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Whiteouts, as layers spell what they take away.
const (
	whiteout = ".wh."
	opaque   = ".wh..opq" // behind the first whiteout prefix
)

// open returns the directory dir leads to, resolved as the guest would resolve
// it, making what is missing, and its path without links.
func (u *unpacker) open(dir string) (*os.Root, string, error) {
	if u.parentRoot != nil && u.parentName == dir {
		return u.parentRoot, u.parentPath, nil
	}
	u.forget()
	at, err := u.resolve(dir)
	if err != nil {
		return nil, "", err
	}
	r, err := u.root.OpenRoot(at)
	if err != nil {
		return nil, "", err
	}
	u.parentName, u.parentPath, u.parentRoot = dir, at, r
	return r, at, nil
}

// forget closes the remembered parent: something changed that may be on its path.
func (u *unpacker) forget() {
	if u.parentRoot != nil {
		u.parentRoot.Close() // of a directory; nothing is lost
	}
	u.parentRoot = nil
}

// resolve follows dir from the root. Missing directories are made, with those
// on the way to the target of a link that dangles.
func (u *unpacker) resolve(dir string) (string, error) {
	cur, rest := ".", strings.Split(dir, "/")
	for links := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			cur = path.Dir(cur) // of "." it is "."
			continue
		}
		next := path.Join(cur, c)
		st, err := u.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if strings.Count(next, "/") >= 2*u.limits.Depth {
				return "", refuse(sandbox.KindTooLarge, "links make more than %d directories below each other", u.limits.Depth)
			}
			if err := u.mkdir(next); err != nil {
				return "", err
			}
		case err != nil:
			return "", err
		case st.Mode().Type() == fs.ModeSymlink:
			target, err := u.root.Readlink(next)
			if err != nil {
				return "", err
			}
			if links++; links > 40 {
				return "", refuse(sandbox.KindDenied, "%s: links that never end", clip(dir))
			}
			if path.IsAbs(target) {
				cur = "."
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		case !st.IsDir():
			return "", refuse(sandbox.KindInvalid, "%s: %s is not a directory", clip(dir), clip(next))
		}
		u.mark(next)
		cur = next
	}
	return cur, nil
}

func (u *unpacker) mkdir(name string) error {
	if u.entries++; u.entries > u.limits.Entries {
		return refuse(sandbox.KindTooLarge, "more than %d entries", u.limits.Entries)
	}
	if err := u.root.Mkdir(name, 0o755); err != nil {
		return err
	}
	return u.root.Chmod(name, 0o755)
}

// clear makes room at base: what is there goes, a link itself and not what it
// leads to.
func (u *unpacker) clear(parent *os.Root, at, base string) error {
	st, err := parent.Lstat(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return parent.Remove(base)
	}
	return parent.RemoveAll(base) // an open parent is above it, and stays
}

// hide takes away what lower layers put at name in the directory at, or with
// the opaque mark all they put into it. What this layer brings stays.
func (u *unpacker) hide(at, name string) error {
	defer u.forget()
	switch {
	case name == opaque:
		return u.hideChildren(at)
	case strings.HasPrefix(name, whiteout):
		return nil // aufs's own bookkeeping
	case name == "" || name == "." || name == "..":
		return refuse(sandbox.KindDenied, "the whiteout %q", whiteout+name)
	}
	return u.hideLower(path.Join(at, name))
}

func (u *unpacker) hideLower(name string) error {
	if !u.marked(name) {
		return u.root.RemoveAll(name)
	}
	st, err := u.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !st.IsDir() {
		return err
	}
	return u.hideChildren(name)
}

func (u *unpacker) hideChildren(dir string) error {
	d, err := u.root.Open(dir)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, n := range names {
		if err := u.hideLower(path.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) mark(name string) {
	if u.layers {
		u.own[maphash.String(u.seed, name)] = struct{}{}
	}
}

func (u *unpacker) marked(name string) bool {
	_, ok := u.own[maphash.String(u.seed, name)]
	return ok
}

// mergedDirs are links into /usr in every pack, whatever the release's packages
// say.
var mergedDirs = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// mergedName is where a packaged path, which is clean, belongs on a merged-usr
// system.
func mergedName(name string) string {
	top, _, _ := strings.Cut(name, "/")
	if slices.Contains(mergedDirs, top) {
		name = "usr/" + name
	}
	return name
}
