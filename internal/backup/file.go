package backup

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// WriteFile is Write to a file of mode 0600, which is there complete and on
// stable storage when WriteFile returns, and otherwise not: an existing file is
// replaced, with force, only by a complete one. What an attempt that was killed
// left beside it is removed by the next.
//
// Errors: those of Write; KindExists when there is such a file, without force.
func WriteFile(ctx context.Context, name string, force bool, s Source) (m Manifest, err error) {
	const op = "backup"
	if !force {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return m, sandbox.Errorf(op, sandbox.KindExists, "there is such a file").WithID(name).WithHint("choose another name, or overwrite it with --force")
		}
	}
	stage, err := newStage(name)
	if err != nil {
		return m, sandbox.Wrap(op, name, err)
	}
	defer func() { err = errors.Join(err, stage.remove()) }()
	tmp := filepath.Join(stage.dir, "archive")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return m, sandbox.Wrap(op, name, err)
	}
	w := bufio.NewWriterSize(f, 256<<10)
	m, err = Write(ctx, w, stage.dir, s)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	failpoint.Hit("backup/written")
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err == nil {
		err = syncPath(filepath.Dir(name))
	}
	failpoint.Hit("backup/after-rename")
	return m, sandbox.Wrap(op, name, err)
}

// stage is a directory beside its destination, on the same file system, locked
// by the process that uses it.
type stage struct {
	dir   string
	owner *store.Owner
}

// newStage makes one for dest, and removes those of processes that died.
func newStage(dest string) (*stage, error) {
	parent, prefix := filepath.Dir(dest), "."+filepath.Base(dest)+".part-"
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		dead := filepath.Join(parent, e.Name())
		if !strings.HasPrefix(e.Name(), prefix) || !ours(dead) {
			continue
		}
		owner, err := store.Lock(dead)
		if sandbox.KindOf(err) == sandbox.KindUnavailable {
			continue // somebody is at it
		}
		if err == nil {
			err = errors.Join(os.RemoveAll(dead), owner.Close())
		}
		if err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	owner, err := store.Lock(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &stage{dir, owner}, nil
}

// ours reports whether a directory was made by this user and nobody else may
// have put anything into it: backups are also written to /tmp.
func ours(dir string) bool {
	fi, err := os.Lstat(dir)
	if err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o700 {
		return false
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// remove removes the stage, unless it has been renamed, and unlocks it.
func (s *stage) remove() error { return errors.Join(os.RemoveAll(s.dir), s.owner.Close()) }

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// fewFiles are flushed one by one.
const fewFiles = 2000

func syncEach(dir string) error {
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(p)
	})
}
