package template

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// hostView is a machine's root directory as the host template sees it: an
// allowlist. What is not named here is not visible.
type hostView struct{ root string }

// machine is the machine this program runs on.
var machine = hostView{"/"}

// hostTrees may be shown: the directories packages fill. /usr/local, /usr/etc
// and /usr/src are a machine owner's own and are not among them. Listing the
// children of /usr costs a bind mount each (about one millisecond of a gVisor
// start for all of them together) and fails closed: masking what must not be
// seen would show whatever appears beside it later.
var hostTrees = []string{
	"usr/bin", "usr/sbin", "usr/lib", "usr/lib32", "usr/lib64", "usr/libx32", "usr/libexec", "usr/share", "usr/include",
	// Links into /usr on a merged-usr system, directories elsewhere.
	"bin", "sbin", "lib", "lib32", "lib64", "libx32",
}

// hostInterpreters decide which languages the host template has.
var hostInterpreters = map[string]string{Python: "/usr/bin/python3", Node: "/usr/bin/node", Shell: "/bin/sh"}

const alternatives = "etc/alternatives"

// hostFresh is how long the machine's fingerprint is believed: packages are upgraded
// over seconds, and what is then made of the old layout is what was made just before.
const hostFresh = time.Second

// seen is the machine's fingerprint as it was last looked at.
type seen struct {
	mu     sync.Mutex
	digest string    // guarded by mu
	at     time.Time // guarded by mu
}

// fingerprint is the machine's, looked at no longer ago than hostFresh. Another view,
// as of tests, is looked at each time.
func (s *Store) fingerprint() (digest string, err error) {
	if s.host != machine {
		return s.host.digest()
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	if s.seen.at.IsZero() || time.Since(s.seen.at) > hostFresh {
		if digest, err = s.host.digest(); err != nil {
			return "", err
		}
		s.seen.digest, s.seen.at = digest, time.Now()
	}
	return s.seen.digest, nil
}

// Look looks at the machine's fingerprint, for those who resolve Host within hostFresh.
// What is wrong they are told.
func (s *Store) Look() {
	s.seen.mu.Lock()
	was := s.seen.at
	s.seen.mu.Unlock()
	digest, err := s.host.digest()
	if err != nil || s.host != machine {
		return
	}
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	if s.seen.at.Equal(was) { // else somebody knows better
		s.seen.digest, s.seen.at = digest, time.Now()
	}
}

// resolveHost returns the host template as it is now, laid out if need be.
func (s *Store) resolveHost(ctx context.Context) (Template, error) {
	for range 3 {
		digest, err := s.fingerprint()
		if err != nil {
			return Template{}, err
		}
		t, err := s.load(digest)
		if err == nil {
			return t, nil
		}
		if k := sandbox.KindOf(err); k != sandbox.KindNotFound && k != sandbox.KindUnavailable {
			return Template{}, err
		}
		if err := s.layHost(ctx, digest); err != nil {
			return Template{}, err
		}
	}
	return Template{}, sandbox.Errorf("template resolve", sandbox.KindUnavailable, "the machine's packages are changing right now").
		WithID(Host).WithHint("try again when the package manager is done")
}

// layHost builds and publishes the layout for digest.
func (s *Store) layHost(ctx context.Context, digest string) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.load(digest); err == nil { // another process was faster
		return nil
	}
	t, err := s.newTemporaryLocked()
	if err != nil {
		return err
	}
	failpoint.Hit("template.host/after-temporary")
	m, listing, err := s.host.build(ctx, filepath.Join(t.dir, "rootfs"), digest)
	if err == nil {
		var now string
		if now, err = s.host.digest(); err == nil && now != digest {
			s.seen.mu.Lock()
			s.seen.at = time.Time{}
			s.seen.mu.Unlock()
			return t.discard() // resolveHost looks again
		}
	}
	if err != nil {
		return errors.Join(err, t.discard())
	}
	failpoint.Hit("template.host/after-layout")
	return s.publish(t, m, listing)
}

// current reports whether digest still describes the machine.
func (v hostView) current(digest string) error {
	now, err := v.digest()
	if err == nil && now != digest {
		err = sandbox.Errorf("template resolve", sandbox.KindConflict, "the machine's programs changed since").WithID(digest).
			WithHint("use the template by its name, %s", Host)
	}
	return err
}

// build fills rootfs and describes it.
func (v hostView) build(ctx context.Context, rootfs, digest string) (m manifest, listing []byte, err error) {
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		return m, nil, err
	}
	if err := os.Chmod(rootfs, 0o755); err != nil {
		return m, nil, err
	}
	if err := skeleton(rootfs); err != nil {
		return m, nil, err
	}
	mounts, err := v.layTrees(rootfs)
	if err != nil {
		return m, nil, err
	}
	if err := v.layEtc(rootfs); err != nil {
		return m, nil, err
	}
	if err := settle(rootfs, true); err != nil {
		return m, nil, err
	}
	listing, size, err := list(ctx, rootfs)
	if err != nil {
		return m, nil, err
	}
	return manifest{
		Version: manifestVersion, Name: Host, Description: "this machine's own programs, read-only",
		Digest: digest, Listing: "sha256:" + hexSum(listing), Created: time.Now().UTC(), Size: size,
		Languages: v.languages(), Env: map[string]string{"PATH": rootPath, "LANG": "C.UTF-8"},
		Mounts: mounts, Mutable: true,
	}, listing, nil
}

// layTrees makes a mount point, or a copy of the link, for every tree.
func (v hostView) layTrees(rootfs string) ([]sandbox.Mount, error) {
	mounts := []sandbox.Mount{}
	for _, tree := range hostTrees {
		st, err := os.Lstat(v.path(tree))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		switch {
		case st.Mode().Type() == fs.ModeSymlink:
			err = v.copyLink(rootfs, tree)
		case !st.IsDir():
		default:
			if err := makeDirs(filepath.Join(rootfs, tree)); err != nil {
				return nil, err
			}
			if v.linksOnly(tree) {
				err = v.copyLinks(rootfs, tree)
				break
			}
			mounts = append(mounts, sandbox.Mount{Source: v.path(tree), Target: "/" + tree})
		}
		if err != nil {
			return nil, err
		}
	}
	return mounts, nil
}

// linksOnly says whether tree is so small that its links are better copied than
// mounted: /usr/lib64 of a Debian system is one link to the loader.
func (v hostView) linksOnly(tree string) bool {
	entries, err := os.ReadDir(v.path(tree))
	if err != nil || len(entries) > 8 {
		return false
	}
	return !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Type() != fs.ModeSymlink })
}

// copyLinks copies the links in dir that stay inside the view.
func (v hostView) copyLinks(rootfs, dir string) error {
	entries, err := os.ReadDir(v.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink {
			continue
		}
		if err := v.copyLink(rootfs, path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// copyLink copies one link if what it leads to is in the view.
func (v hostView) copyLink(rootfs, name string) error {
	if _, ok := v.resolve("/" + name); !ok {
		return nil
	}
	target, err := os.Readlink(v.path(name))
	if err != nil {
		return err
	}
	return replaceLink(filepath.Join(rootfs, name), target)
}

func (v hostView) path(name string) string { return filepath.Join(v.root, name) }

// visible reports whether the view shows path: clean, absolute, without links.
func (v hostView) visible(p string) bool {
	return slices.ContainsFunc(hostTrees, func(t string) bool { return below(p, "/"+t) })
}

// resolve follows p as a guest would and reports whether it leads to something
// that exists in the view without ever leaving it.
func (v hostView) resolve(p string) (string, bool) {
	cur, rest := "/", strings.Split(strings.Trim(p, "/"), "/")
	for links := 0; len(rest) > 0; {
		c := rest[0]
		rest = rest[1:]
		next := path.Join(cur, c) // also does "." and ".."
		st, err := os.Lstat(v.path(next))
		if err != nil {
			return "", false
		}
		if st.Mode().Type() != fs.ModeSymlink {
			cur = next
			continue
		}
		target, err := os.Readlink(v.path(next))
		if links++; err != nil || links > 40 || !v.visible(next) && !below(next, "/"+alternatives) {
			return "", false
		}
		if path.IsAbs(target) {
			cur = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	return cur, v.visible(cur)
}

// languages looks for the interpreters where packages put them.
func (v hostView) languages() []string {
	found := []string{}
	for lang, p := range hostInterpreters {
		real, ok := v.resolve(p)
		if !ok {
			continue
		}
		if st, err := os.Stat(v.path(real)); err == nil && st.Mode().IsRegular() && st.Mode()&0o001 != 0 {
			found = append(found, lang)
		}
	}
	return sortedLanguages(found)
}

// usable refuses machines this template cannot show.
func (v hostView) usable() error {
	refuse := func(why string) error {
		return sandbox.Errorf("template resolve", sandbox.KindUnavailable, "this machine cannot serve as a template: %s", why).
			WithID(Host).WithHint("build one with `firebreak template build python`")
	}
	if runtime.GOOS != "linux" {
		return refuse("it runs " + runtime.GOOS)
	}
	if _, ok := v.resolve(hostInterpreters[Shell]); !ok {
		return refuse("no /bin/sh in its system directories")
	}
	return nil
}
