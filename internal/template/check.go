package template

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// stampName is a file beside a root that says what its files looked like, from
// outside, when their content was last compared with the listing.
const stampName = "stamp"

// Check makes sure that a template's files are what was built, before something
// starts from them. Where their owners, modes, sizes, inodes and times of change
// are as they were when they were last read, it is satisfied; otherwise it reads
// them all, as Verify does. Nobody but the host's root can change a file and leave
// its time of change; what a disk loses unnoticed only Verify finds.
//
// Errors: those of Verify. A mutable template (Host) has nothing to be compared
// with, beyond what Resolve does.
//
// Cost: looking at each file, not into it; of Verify where something differs. It is
// safe for concurrent use.
func (s *Store) Check(ctx context.Context, digest string) error {
	const op = "template check"
	t, err := s.load(digest)
	if err != nil || t.Root.Mutable {
		return sandbox.Wrap(op, digest, err)
	}
	dir := filepath.Join(s.dir, entryName(digest))
	seen, err := stampOf(ctx, dir, t.Boot != nil)
	if err != nil {
		return sandbox.Wrap(op, digest, vanished(digest, err))
	}
	path := filepath.Join(dir, stampName)
	if known, err := os.ReadFile(path); err == nil && string(known) == seen {
		return nil
	}
	if err := s.Verify(ctx, digest); err != nil {
		return sandbox.Wrap(op, digest, vanished(digest, err))
	}
	// What changed while it was read has a later stamp, and is read again.
	if err := keepStamp(path, seen); err != nil {
		s.log.Warn("a template's stamp cannot be kept: it is read whole at every start", "template", digest, "error", err)
	}
	return nil
}

// vanished is the error for a file that is not there any more while it is looked
// at.
func vanished(digest string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return damaged(digest, message(err))
	}
	return err
}

// stampOf describes the files of the template in dir without reading them: all of its
// root, and what machines boot from where it has that.
func stampOf(ctx context.Context, dir string, boot bool) (string, error) {
	h := sha256.New()
	err := stampTree(ctx, h, filepath.Join(dir, "rootfs"))
	if boot && err == nil {
		err = stampTree(ctx, h, filepath.Join(dir, bootName))
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n", err
}

// stampTree writes what there is below root, not root itself.
func stampTree(ctx context.Context, h io.Writer, root string) error {
	var line []byte
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || p == root {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		line = strconv.AppendQuote(line[:0], p[len(root)+1:])
		line = appendInode(line, st)
		_, err = h.Write(line)
		return err
	})
}

// keepStamp makes path hold a stamp, whole or not at all. It is not flushed:
// without it, more is read.
func keepStamp(path, content string) error {
	f, err := os.CreateTemp(filepath.Dir(path), stampName+".")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", stampName, err), os.Remove(f.Name()))
	}
	return nil
}
