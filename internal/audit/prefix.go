package audit

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// PrefixFile is a file of a log, as far as it belongs to a prefix.
type PrefixFile struct {
	Name string // in the log's directory, with slashes
	Size int64
	Data []byte // what to put there, where the file may be replaced meanwhile; else nil
}

// Prefix names what to copy so that the copy is this log as it is now: a log
// that verifies, with every record up to head. Only ever growing, the files keep
// the bytes named. It checks the whole chain on its way, needs no lock, and
// works while the log is being written. The copy is signed as the log is; what
// it needs besides is the key.
//
// Errors: KindInternal where the log is damaged; KindUnavailable when segments
// expired meanwhile.
func Prefix(dir string) (files []PrefixFile, head Head, err error) {
	const op = "read audit log"
	if files, err = steady(dir); err != nil {
		return nil, head, sandbox.Wrap(op, dir, err)
	}
	// Before the records, too: a tile that is written after those were looked at is
	// about some that are not in the copy.
	tiles, err := lasting(dir)
	if err != nil {
		return nil, head, sandbox.Wrap(op, dir, err)
	}
	begin, err := readExpired(dir)
	if err != nil {
		return nil, head, sandbox.Wrap(op, dir, err)
	}
	list, err := segments(dir)
	if err != nil {
		return nil, head, sandbox.Wrap(op, dir, err)
	}
	i, _ := slices.BinarySearch(list, begin.Position+1)
	head = begin
	for n, first := range list[i:] {
		size, end, err := measure(dir, first, head, i+n == len(list)-1)
		if errors.Is(err, io.EOF) {
			break // being made
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = sandbox.Errorf(op, sandbox.KindUnavailable, "segments expired meanwhile").WithHint("try again")
		}
		if err != nil {
			return nil, head, sandbox.Wrap(op, dir, err)
		}
		head = end
		files = append(files, PrefixFile{Name: filepath.Base(segmentPath(dir, first)), Size: size})
	}
	return append(files, tiles...), head, nil
}

// steady lists the files that are replaced, or state how long the log is, with
// what is in them: before the records are looked at, which only grow.
func steady(dir string) (files []PrefixFile, err error) {
	names := []string{checkpointName, expiredName}
	for _, sub := range []string{rotateDir, cosignedDir} {
		list, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range list {
			if !strings.HasSuffix(e.Name(), ".tmp") {
				names = append(names, sub+"/"+e.Name())
			}
		}
	}
	for _, name := range names {
		b, err := readBounded(filepath.Join(dir, filepath.FromSlash(name)), maxNote)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files = append(files, PrefixFile{name, int64(len(b)), b})
	}
	return files, nil
}

// lasting lists the files that stay as they are once they are there: tiles, and
// what was cut off.
func lasting(dir string) (files []PrefixFile, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a tile that a wider one has replaced
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		name := filepath.ToSlash(rel)
		t, terr := tlog.ParseTilePath(name)
		if err != nil || terr != nil && !strings.HasSuffix(name, ".cut") {
			return err
		}
		var b []byte
		if terr == nil && t.W < tileWidth { // it goes when there is a wider one
			b, err = os.ReadFile(p)
		}
		fi, ferr := d.Info()
		if errors.Is(errors.Join(err, ferr), fs.ErrNotExist) {
			return nil
		}
		if err = errors.Join(err, ferr); err == nil {
			files = append(files, PrefixFile{name, fi.Size(), b})
		}
		return err
	})
	return files, err
}

// measure verifies one segment, which must continue the chain at head, and
// returns the size of its whole records and where they end.
func measure(dir string, first sandbox.Position, head Head, last bool) (int64, Head, error) {
	s, err := newSegmentReader(segmentPath(dir, first), first)
	if err != nil {
		return 0, head, err
	}
	defer s.close()
	if s.head != head {
		return 0, head, s.damaged("the segment does not continue the chain")
	}
	for {
		if _, err = s.next(); err != nil {
			break
		}
	}
	if !errors.Is(err, io.EOF) {
		return 0, head, err
	}
	if last {
		_, err = s.end()
	} else {
		err = s.ended()
	}
	return s.off, s.head, err
}
