package template

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
)

// readDirNames lists dir without the cost of stat.
func readDirNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// newPrefix begins the name of a file that is being written.
const newPrefix = ".new-"

// writeFileAtomic makes dir/name hold data, or leaves what was there.
func writeFileAtomic(dir, name string, data []byte) (err error) {
	f, err := os.CreateTemp(dir, newPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	failpoint.Hit("template.name/before-rename")
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	failpoint.Hit("template.name/after-rename")
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// removeTree deletes path and everything below, also where a directory's mode
// forbids it.
func removeTree(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walkErr := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			if chmodErr := os.Chmod(p, 0o700); chmodErr != nil {
				return fs.SkipDir // not ours: RemoveAll reports it
			}
		}
		return nil
	})
	return errors.Join(walkErr, os.RemoveAll(path))
}
