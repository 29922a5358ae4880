package template

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Store is a directory of templates. Its methods may be called concurrently,
// also by several processes on one directory.
type Store struct {
	dir  string
	log  *slog.Logger
	host hostView
	seen seen // of host
	opts Options

	mu     sync.Mutex
	cache  map[string]cached // by digest
	leases map[string]*lease // by digest

	uploads map[string]*upload // by id; guarded by mu
}

// Options is what a Store may do beyond packs. The zero value fetches images
// from public registries only, without credentials.
type Options struct {
	Registries Registries
	Limits     Limits
	// Instances are directories whose entries stand for live instances, whoever
	// made them: a digest that a file there names is in use, also while no
	// process holds a lease on it. Patterns of path/filepath.
	Instances []string
	// GivenDirs are directories below which a build may read files of this host, for
	// who may have machines boot what he brings.
	GivenDirs []string
}

// New opens the store in dir, creating it if it is missing, and removes what
// builds that died left behind. What another process is building stays.
//
// Leftovers that cannot be removed (a rootless build's files belong to
// subordinate uids) are reported to log and stay; they are never used.
func New(dir string, log *slog.Logger) (*Store, error) { return Open(dir, Options{}, log) }

// Open is New with options.
func Open(dir string, o Options, log *slog.Logger) (*Store, error) {
	const op = "template open"
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	// Roots hold nothing secret and a backend's helper may run as anybody.
	if err := os.MkdirAll(filepath.Join(dir, "names"), 0o755); err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	o.Limits = o.Limits.orDefault()
	s := &Store{dir: dir, log: log, host: machine, opts: o, cache: map[string]cached{}, leases: map[string]*lease{}, uploads: map[string]*upload{}}
	if err := s.sweep(); err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	return s, nil
}

// sweep removes temporaries nobody holds.
func (s *Store) sweep() error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	var dead []string
	names, err := readDirNames(s.dir)
	for _, name := range names {
		if !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		path := filepath.Join(s.dir, name)
		f, lockErr := tryLock(filepath.Join(path, "lock"), exclusive)
		switch {
		case lockErr == nil:
			defer f.Close() // keeps other sweepers away until it is gone
			dead = append(dead, path)
		case errors.Is(lockErr, fs.ErrNotExist): // died before or after it had a lock: both happen under s.lock
			dead = append(dead, path)
		}
	}
	// Names are written under s.lock, so whoever began one of these has died.
	pointers, globErr := filepath.Glob(filepath.Join(s.dir, "names", newPrefix+"*"))
	err = errors.Join(err, globErr)
	for _, path := range pointers {
		err = errors.Join(err, os.Remove(path))
	}
	unlock()
	for _, path := range dead {
		if err := removeTree(path); err != nil {
			s.log.Warn("leftover of a template build cannot be removed", "path", path, "error", err)
		}
	}
	if err == nil {
		err = s.sweepBlobs()
	}
	return err
}

// Resolve finds the template called name: Host, a name given to Build, or a
// digest.
//
// Host is laid out on first use and again whenever its fingerprint changed, at which
// it looks at most once a second, by some seventy stat calls. KindNotFound, with a
// hint naming the command to run, when nothing is built under that name; KindInvalid when
// name can never be one; KindUnavailable when the template is damaged or, for
// Host, when this machine has no usable /usr.
//
// What Resolve checks is the manifest's own digest and the identity of the
// root directory; Verify reads everything.
func (s *Store) Resolve(ctx context.Context, name string) (Template, error) {
	const op = "template resolve"
	if err := ctx.Err(); err != nil {
		return Template{}, sandbox.Wrap(op, name, err)
	}
	switch {
	case name == Host:
		t, err := s.resolveHost(ctx)
		return t.clone(), sandbox.Wrap(op, name, err)
	case reDigest.MatchString(name):
		t, err := s.load(name)
		if err == nil && t.Root.Mutable {
			err = s.host.current(name)
		}
		if err != nil {
			return Template{}, sandbox.Wrap(op, name, err)
		}
		return t.clone(), nil
	case LooksLikeImage(name):
		return Template{}, notFound(op, name)
	case !reName.MatchString(name):
		return Template{}, sandbox.Errorf(op, sandbox.KindInvalid, "%q is not a template name", clip(name)).
			WithHint("a lower-case letter, then up to 62 letters, digits, dots, dashes or underscores; or sha256: and 64 hex digits")
	}
	digest, reference, err := s.pointer(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Template{}, notFound(op, name)
	}
	if err != nil {
		return Template{}, sandbox.Wrap(op, name, err)
	}
	t, err := s.load(digest)
	if sandbox.KindOf(err) == sandbox.KindNotFound { // removed by digest a moment ago, or by hand
		err = notFound(op, name)
	}
	if err != nil {
		return Template{}, sandbox.Wrap(op, name, err)
	}
	return t.called(name, reference), nil
}

// Choose finds the template for code in language when the caller named no
// template: the pack of that name if it is built, else Host if the machine can
// run the language. An empty language means Host.
func (s *Store) Choose(ctx context.Context, language string) (Template, error) {
	const op = "template resolve"
	if language == "" {
		return s.Resolve(ctx, Host)
	}
	if !isLanguage(language) {
		return Template{}, sandbox.Errorf(op, sandbox.KindInvalid, "unknown language %q", clip(language)).
			WithHint("one of %s", strings.Join(languages, ", "))
	}
	t, err := s.Resolve(ctx, language)
	if sandbox.KindOf(err) != sandbox.KindNotFound {
		return t, err
	}
	h, hostErr := s.Resolve(ctx, Host)
	if hostErr == nil && h.Runs(language) {
		return h, nil
	}
	var e *sandbox.Error
	if errors.As(err, &e) && hostErr == nil { // the host template is no way out here
		e.Hint = fmt.Sprintf("run `firebreak template build %s`, or install it on this machine from its own packages", language)
	}
	return Template{}, err
}

// List returns every template: Host as it is now, each name, then templates no
// name refers to. Damaged ones are included and say so.
func (s *Store) List(ctx context.Context) ([]Template, error) {
	const op = "template list"
	host, err := s.resolveHost(ctx)
	list := []Template{}
	switch {
	case err == nil:
		list = append(list, host.clone())
	case sandbox.KindOf(err) != sandbox.KindUnavailable: // a machine without a usable /usr still has packs
		return nil, sandbox.Wrap(op, Host, err)
	}
	names, err := s.names()
	if err != nil {
		return nil, sandbox.Wrap(op, "", err)
	}
	add := func(name, digest, reference string) {
		t, err := s.load(digest)
		if err != nil {
			t = Template{Digest: digest, Damaged: message(err)}
		}
		list = append(list, t.called(name, reference))
	}
	seen := map[string]bool{host.Digest: true}
	for _, n := range names {
		add(n.name, n.digest, n.reference)
		seen[n.digest] = true
	}
	entries, err := readDirNames(s.dir)
	for _, e := range entries {
		if reEntry.MatchString(e) && !seen[entryDigest(e)] {
			add("", entryDigest(e), "")
		}
	}
	return list, sandbox.Wrap(op, "", err)
}

// Remove deletes a template by name or digest. A name goes together with what
// it refers to, unless another name refers to the same; a digest takes its
// names along. Removing Host deletes the layout, which the next Resolve makes
// anew.
//
// KindNotFound when there is none; KindConflict, with nothing changed, while a
// process holds it (Acquire). Damaged templates can be removed.
func (s *Store) Remove(ctx context.Context, name string) error {
	const op = "template remove"
	if err := ctx.Err(); err != nil {
		return sandbox.Wrap(op, name, err)
	}
	unlock, err := s.lock()
	if err != nil {
		return sandbox.Wrap(op, name, err)
	}
	trash, err := s.remove(op, name)
	unlock()
	for _, t := range trash {
		err = errors.Join(err, t.discard())
	}
	return sandbox.Wrap(op, name, err)
}

// remove does the part of Remove that needs s.lock: it moves the tree aside and
// deletes pointers.
func (s *Store) remove(op, name string) ([]*temporary, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	digest, others := "", false
	var pointers []string
	switch {
	case name == Host:
		if digest, err = s.host.digest(); err != nil {
			return nil, err
		}
	case reDigest.MatchString(name):
		digest = name
		for _, n := range names {
			if n.digest == digest {
				pointers = append(pointers, n.name)
			}
		}
	default:
		for _, n := range names {
			if n.name == name {
				digest, pointers = n.digest, []string{name}
			}
		}
		for _, n := range names {
			others = others || n.digest == digest && n.name != name
		}
	}
	if digest == "" {
		return nil, notFound(op, name)
	}
	var trash []*temporary
	if !others {
		t, err := s.detach(digest)
		switch {
		case errors.Is(err, fs.ErrNotExist) && len(pointers) > 0: // a dangling name
		case errors.Is(err, fs.ErrNotExist):
			return nil, notFound(op, name)
		case errors.Is(err, errLocked):
			return nil, sandbox.Errorf(op, sandbox.KindConflict, "template is in use").WithID(name).
				WithHint("remove the sandboxes that use it first; `firebreak ls` lists them")
		case err != nil:
			return nil, err
		default:
			trash = append(trash, t)
		}
	}
	for _, p := range pointers {
		if err := os.Remove(filepath.Join(s.dir, "names", p)); err != nil {
			return trash, err
		}
	}
	return trash, syncDir(filepath.Join(s.dir, "names"))
}

type named struct{ name, digest, reference string }

// names reads all pointers, sorted by name.
func (s *Store) names() ([]named, error) {
	files, err := readDirNames(filepath.Join(s.dir, "names"))
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	list := []named{}
	for _, f := range files {
		if !reName.MatchString(f) { // a pointer being written
			continue
		}
		digest, reference, err := s.pointer(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, named{f, digest, reference})
	}
	return list, nil
}

// pointer reads the digest a name stands for and, where it was built from an
// image, the reference that was asked for with the digest it had then.
func (s *Store) pointer(name string) (digest, reference string, err error) {
	b, err := os.ReadFile(filepath.Join(s.dir, "names", name))
	if err != nil {
		return "", "", err
	}
	digest, reference, _ = strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n")
	if !reDigest.MatchString(digest) {
		return "", "", damaged(name, "the name file holds no digest")
	}
	return digest, reference, nil
}

// point makes name stand for digest. What it stood for before counts as used
// until now, so that a create under way with it has time. The caller holds
// s.lock.
func (s *Store) point(name, digest, reference string) error {
	if old, _, err := s.pointer(name); err == nil && old != digest {
		s.used(old)
	}
	text := digest + "\n"
	if reference != "" {
		text += reference + "\n"
	}
	return writeFileAtomic(filepath.Join(s.dir, "names"), name, []byte(text))
}

// used notes that the template was of use now, for Collect.
func (s *Store) used(digest string) {
	now := time.Now()
	_ = os.Chtimes(filepath.Join(s.dir, entryName(digest), "lock"), now, now) // gone or damaged: nothing to keep
}

func clip(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return s
}

// message is what err says without the operation it happened in.
func message(err error) string {
	var e *sandbox.Error
	if errors.As(err, &e) {
		return e.Message()
	}
	return err.Error()
}
