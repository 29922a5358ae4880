package broker

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	keyName      = "key"
	keyTemporary = ".key-*"
	maxKeyFile   = 64 << 10
)

// keyHead stands above the first key of a file.
const keyHead = "# Opens the secrets of this Firebreak. It is in no backup: keep a copy elsewhere.\n" +
	"# Add keys of other servers below; the first seals, all open.\n"

// keys reads the keys of dir, the one that seals first. Errors: KindNotFound without
// a file; KindDenied when others may read it; KindInvalid when it holds something
// else.
func keys(dir string) ([]*age.X25519Identity, error) {
	const op = "open secrets"
	path := filepath.Join(dir, keyName)
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, sandbox.Wrap(op, path, err)
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		return nil, sandbox.Errorf(op, sandbox.KindDenied, "the key file is not a regular file with mode 0600").WithID(path).
			WithHint("others may have read it: chmod 600, and set all secrets anew with values that are new")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, sandbox.Wrap(op, path, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, sandbox.Wrap(op, path, err)
	}
	list, ok := parseKeys(string(text))
	if !ok {
		// What age says of a line that is no key quotes it.
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "the key file holds something that is no key").WithID(path).
			WithHint("a key is a line AGE-SECRET-KEY-1…; lines that begin with # say nothing")
	}
	return list, nil
}

// parseKeys reads the lines of a key file. One that is cut short has no key at all
// or is refused.
func parseKeys(text string) (list []*age.X25519Identity, ok bool) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		id, err := age.ParseX25519Identity(line)
		if err != nil {
			return nil, false
		}
		list = append(list, id)
	}
	return list, len(list) > 0
}

// makeKey makes a key, whole, or none. It replaces nothing.
func makeKey(dir string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	failpoint.Hit("broker/after-mkdir")
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, keyTemporary) // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(keyHead + id.String() + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	failpoint.Hit("broker/after-temporary")
	if err := os.Link(f.Name(), filepath.Join(dir, keyName)); err != nil {
		return err
	}
	failpoint.Hit("broker/after-link")
	return nil
}

// sweepKeys removes what a process that died while it made a key left beside it:
// another name for the key, or a key that was never used.
func sweepKeys(dir string) error {
	stale, err := filepath.Glob(filepath.Join(dir, keyTemporary))
	for _, name := range stale {
		if e := os.Remove(name); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = e
		}
	}
	return err
}

// syncKeys puts the names of dir and of its key on stable storage: whoever made them
// may have died before that.
func syncKeys(dir string) error { return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir))) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
