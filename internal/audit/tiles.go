package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// tiles compares the stored tiles with those a verification computes.
type tiles struct {
	dir     string
	whole   int             // that agree
	missing int             // that are not there: they are derived and can be rebuilt
	wrong   string          // the first that does not agree, by name
	early   map[string]bool // by name; those not full that were there before the records were read
}

func tileName(level int, n int64) string {
	return tlog.Tile{H: tileHeight, L: level, N: n, W: tileWidth}.Path()
}

// read returns a full tile's hashes; nil if it is not there.
func (t *tiles) read(level int, n int64) ([]tlog.Hash, error) {
	name := tileName(level, n)
	b, err := os.ReadFile(filepath.Join(t.dir, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && len(b) != tileWidth*tlog.HashSize {
		err = &EvidenceError{File: name, What: fmt.Sprintf("it has %d bytes, a tile has %d", len(b), tileWidth*tlog.HashSize)}
	}
	if err != nil {
		return nil, err
	}
	hashes := make([]tlog.Hash, tileWidth)
	for i := range hashes {
		hashes[i] = tlog.Hash(b[i*tlog.HashSize:][:tlog.HashSize])
	}
	return hashes, nil
}

// check compares a tile that became full. It is a tree's full.
func (t *tiles) check(level int, n int64, want []tlog.Hash) {
	got, err := t.read(level, n)
	switch {
	case err != nil:
		t.differs(tileName(level, n))
	case got == nil:
		t.missing++
	default:
		if !slices.Equal(got, want) {
			t.differs(tileName(level, n))
			return
		}
		t.whole++
	}
}

// look notes which tiles there are before the records are read. Who writes the log
// meanwhile writes others, about records that are not seen any more.
func (t *tiles) look() error {
	t.early = map[string]bool{}
	err := filepath.WalkDir(filepath.Join(t.dir, "tile"), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // there are none, or there is a wider one by now
			return nil
		}
		if err == nil && !e.IsDir() && strings.HasSuffix(filepath.Dir(path), ".p") {
			name, err := filepath.Rel(t.dir, path)
			t.early[filepath.ToSlash(name)] = true
			return err
		}
		return err
	})
	return err
}

// partial compares the stored tiles of level 0 that are not full with the leaves
// behind the last full one.
func (t *tiles) partial(size int64, leaves []tlog.Hash) error {
	n := size / tileWidth
	widths, err := partials(t.dir, n)
	if err != nil {
		return err
	}
	for _, w := range widths {
		name := fmt.Sprintf("%s.p/%d", tileName(0, n), w)
		if w > len(leaves) && !t.early[name] {
			continue
		}
		got, err := os.ReadFile(filepath.Join(t.dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // there is a wider one by now
		}
		if err != nil {
			return err
		}
		want := make([]byte, 0, w*tlog.HashSize)
		for i := range leaves[:min(w, len(leaves))] {
			want = append(want, leaves[i][:]...)
		}
		if !bytes.Equal(got, want) {
			t.differs(name)
		} else {
			t.whole++
		}
	}
	return nil
}

func (t *tiles) differs(name string) {
	if t.wrong == "" {
		t.wrong = name
	}
}

// begin is the tree over records that have expired, out of what outlives them,
// each tile that is still there checked against the one above it. Before there
// were tiles nothing did: zeros stand for that, in a log that is not signed.
func (t *tiles) begin(size int64, zeros bool) (*tree, error) {
	tr, err := treeAt(size, &hashes{dir: t.dir, size: size, zeros: zeros})
	if err != nil {
		return nil, err
	}
	for level := 0; size>>(tileHeight*(level+1)) > 0; level++ {
		for n := range size >> (tileHeight * (level + 1)) {
			own, err := t.read(level, n)
			if err != nil {
				return nil, err
			}
			if own == nil {
				continue
			}
			var above []tlog.Hash
			if upper := n / tileWidth; upper == size>>(tileHeight*(level+2)) {
				above = tr.edge[level+1]
			} else if above, err = t.read(level+1, upper); err != nil || above == nil {
				return nil, &EvidenceError{File: tileName(level+1, upper), What: "it is missing, and the records below it have expired", Err: err}
			}
			if subtree(own) != above[n%tileWidth] {
				t.differs(tileName(level, n))
				continue
			}
			t.whole++
		}
	}
	return tr, nil
}
