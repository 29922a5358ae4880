package template

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// lease is this process's hold on a template: one shared flock for however many
// users.
type lease struct {
	file  *os.File
	users int
}

// Acquire keeps the template with this digest from being removed, by this or
// any other process, until release is called. release may be called more than
// once. The hold also ends with the process: whoever takes a sandbox over after
// a restart acquires its template again.
//
// KindNotFound when it is gone. Acquire never waits.
func (s *Store) Acquire(digest string) (release func(), err error) {
	const op = "template acquire"
	if !reDigest.MatchString(digest) {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "%q is not a digest", clip(digest))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[digest]
	if l == nil {
		path := filepath.Join(s.dir, entryName(digest), "lock")
		f, err := tryLock(path, shared)
		if err == nil && !sameFile(f, path) { // removed between open and lock
			f.Close()
			err = fs.ErrNotExist
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errLocked) { // locked: being removed
			return nil, notFound(op, digest)
		}
		if err != nil {
			return nil, sandbox.Wrap(op, digest, err)
		}
		l = &lease{file: f}
		s.leases[digest] = l
		s.used(digest)
	}
	l.users++
	return sync.OnceFunc(func() { s.release(digest, l) }), nil
}

func (s *Store) release(digest string, l *lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 {
		l.file.Close()
		delete(s.leases, digest)
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// temporary is a directory being built or removed. Its lock tells other
// processes that somebody owns it.
type temporary struct {
	dir  string
	lock *os.File
}

// newTemporary makes an empty one. The caller publishes or discards it.
func (s *Store) newTemporary() (*temporary, error) {
	unlock, err := s.lock() // a sweeper must not see it before it is locked
	if err != nil {
		return nil, err
	}
	defer unlock()
	return s.newTemporaryLocked()
}

func (s *Store) newTemporaryLocked() (*temporary, error) {
	dir, err := os.MkdirTemp(s.dir, tmpPrefix)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("template.temporary/after-mkdir")
	path := filepath.Join(dir, "lock")
	err = os.WriteFile(path, nil, 0o644)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	var f *os.File
	if err == nil {
		// Shared is enough to keep sweepers off, and lets others acquire the
		// template the moment it has its final name.
		f, err = tryLock(path, shared)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &temporary{dir, f}, nil
}

// discard deletes the directory and everything in it.
func (t *temporary) discard() error {
	defer t.lock.Close()
	return removeTree(t.dir)
}

// detach turns the template with this digest into a temporary, unless it is in
// use. The caller holds s.lock.
func (s *Store) detach(digest string) (*temporary, error) {
	dir := filepath.Join(s.dir, entryName(digest))
	f, err := tryLock(filepath.Join(dir, "lock"), exclusive)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(dir); err != nil {
			return nil, err
		}
		// Damaged: without its lock file nobody can be using it properly.
		if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o644); err != nil {
			return nil, err
		}
		f, err = tryLock(filepath.Join(dir, "lock"), exclusive)
	}
	if err != nil {
		return nil, err
	}
	tmp := filepath.Join(s.dir, tmpPrefix+rand.Text())
	if err = os.Rename(dir, tmp); err == nil {
		err = syncDir(s.dir)
	}
	failpoint.Hit("template.remove/after-rename")
	if err != nil {
		f.Close()
		return nil, err
	}
	s.mu.Lock()
	delete(s.cache, digest)
	s.mu.Unlock()
	return &temporary{tmp, f}, nil
}

// publish writes m beside the temporary's sealed root and gives the whole its
// final name. A template of that digest that is already there and sound wins:
// the content is the same. The caller holds s.lock; t is used up.
func (s *Store) publish(t *temporary, m manifest, listing []byte) error {
	if _, err := s.load(m.Digest); err == nil {
		return t.discard()
	} else if sandbox.KindOf(err) == sandbox.KindUnavailable { // damaged: make room
		old, err := s.detach(m.Digest)
		if err == nil {
			err = old.discard()
		}
		if err != nil {
			return errors.Join(err, t.discard())
		}
	}
	b, err := m.encode()
	if err == nil {
		err = os.WriteFile(filepath.Join(t.dir, "listing"), listing, 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(t.dir, "manifest.json"), b, 0o644)
	}
	if err == nil {
		err = syncTree(t.dir)
	}
	failpoint.Hit("template.publish/after-sync")
	if err == nil {
		err = os.Rename(t.dir, filepath.Join(s.dir, entryName(m.Digest)))
	}
	if err != nil {
		return errors.Join(err, t.discard())
	}
	failpoint.Hit("template.publish/after-rename")
	t.lock.Close()
	return syncDir(s.dir)
}
