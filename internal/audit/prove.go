package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Hashes returns the stored hashes of the tree over the first size records of
// the log in dir, in any process, also while the log is written. What has no
// tile is computed from the records. It is for use by one goroutine, which may
// read it as often as it likes: what was read is kept, some megabytes of it.
//
// A tile that was tampered with gives wrong hashes: compare tlog.TreeHash of
// what is returned with the root of a checkpoint, and check proofs.
//
// Errors: KindInvalid for a negative size. Those of reading come from the
// HashReader.
//
// Cost: a read of 8 KiB for each tile; without tiles, reading the segment.
func Hashes(dir string, size int64) (tlog.HashReader, error) {
	if size < 0 {
		return nil, sandbox.Errorf("read audit log", sandbox.KindInvalid, "a log of %d records", size)
	}
	return &hashes{dir: dir, size: size}, nil
}

// RecordProof proves that record p is among the first size records of the log
// in dir: tlog.CheckRecord(proof, size, root, int64(p)-1, leaf). Errors:
// KindInvalid when it is not; KindInternal when the log has less, or is
// damaged.
func RecordProof(dir string, p sandbox.Position, size int64) (tlog.RecordProof, error) {
	const op = "prove record"
	if p == 0 || size < 0 || p > sandbox.Position(size) {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "record %d is not among the first %d", p, size)
	}
	proof, err := tlog.ProveRecord(size, int64(p)-1, &hashes{dir: dir, size: size})
	return proof, sandbox.Wrap(op, dir, err)
}

// TreeProof proves that the first size records of the log in dir begin with
// the first old ones: tlog.CheckTree(proof, size, root, old, oldRoot). Errors:
// those of RecordProof.
func TreeProof(dir string, old, size int64) (tlog.TreeProof, error) {
	const op = "prove growth"
	if old < 1 || size < old {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "%d records cannot have grown to %d", old, size)
	}
	proof, err := tlog.ProveTree(size, old, &hashes{dir: dir, size: size})
	return proof, sandbox.Wrap(op, dir, err)
}

// keepTiles bounds what hashes keeps of tiles, 8 KiB each, and keepSegments
// of leaves.
const (
	keepTiles    = 512
	keepSegments = 2
)

// hashes reads the tree over the first size records.
type hashes struct {
	dir  string
	size int64
	// recompute leaves tiles aside wherever there are records.
	recompute bool
	// absent, if not nil, collects the full tiles that had to be computed.
	absent *[]tileID
	// zeros stands in for what had expired before anything was signed.
	zeros bool

	tiles map[tileID][]tlog.Hash
	segs  []leaves // what was read last comes last
	begin sandbox.Position
	ready bool
}

type tileID struct {
	level int
	n     int64
}

// first is the first record below the tile.
func (t tileID) first() sandbox.Position {
	return sandbox.Position(t.n<<(tileHeight*(t.level+1))) + 1
}

// leaves are those of one segment.
type leaves struct {
	first sandbox.Position
	list  []tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (h *hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		level, n := tlog.SplitStoredHashIndex(x)
		if level > 62 || n+1 > h.size>>level {
			return nil, fmt.Errorf("hash %d is not in a tree of %d records", x, h.size)
		}
		up := level / tileHeight
		at, w := n<<(level%tileHeight), 1<<(level%tileHeight)
		from := int(at % tileWidth)
		row, err := h.tile(up, at/tileWidth, from+w)
		if err != nil {
			return nil, err
		}
		out[i] = subtree(row[from : from+w])
	}
	return out, nil
}

// tile returns the first k hashes of a tile.
func (h *hashes) tile(level int, n int64, k int) ([]tlog.Hash, error) {
	if !h.ready {
		begin, err := readExpired(h.dir)
		if err != nil {
			return nil, err
		}
		h.begin, h.ready, h.tiles = begin.Position, true, map[tileID][]tlog.Hash{}
	}
	id := tileID{level, n}
	if t := h.tiles[id]; len(t) >= k {
		return t[:k], nil
	}
	t, err := h.load(level, n, k)
	if err != nil {
		return nil, err
	}
	if len(h.tiles) >= keepTiles {
		clear(h.tiles)
	}
	h.tiles[id] = t
	return t, nil
}

func (h *hashes) load(level int, n int64, k int) ([]tlog.Hash, error) {
	// What has expired is only in tiles.
	from := tileID{level, n}.first()
	if !h.recompute || from <= h.begin {
		t, err := readTile(h.dir, level, n, k)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return t, err
		}
	}
	t := make([]tlog.Hash, 0, k)
	if level == 0 {
		if from <= h.begin { // a part of it has
			w := min(int(h.begin-from)+1, k)
			old, err := readTile(h.dir, 0, n, w)
			if h.zeros && errors.Is(err, fs.ErrNotExist) {
				old, err = make([]tlog.Hash, w), nil
			}
			if err != nil {
				return nil, fmt.Errorf("the tile of expired record %d: %w", from, err)
			}
			t = append(t, old...)
		}
		for len(t) < k {
			more, err := h.leaves(from+sandbox.Position(len(t)), k-len(t))
			if err != nil {
				return nil, err
			}
			t = append(t, more...)
		}
	} else {
		for i := range k {
			child, err := h.tile(level-1, n*tileWidth+int64(i), tileWidth)
			if err != nil {
				return nil, err
			}
			t = append(t, subtree(child))
		}
	}
	if h.absent != nil && k == tileWidth {
		*h.absent = append(*h.absent, tileID{level, n})
	}
	return t, nil
}

// leaves returns at most n and at least one leaf from a position on, out of
// the records.
func (h *hashes) leaves(from sandbox.Position, n int) ([]tlog.Hash, error) {
	for _, s := range h.segs {
		if i := from - s.first; from >= s.first && i < sandbox.Position(len(s.list)) {
			return s.list[i:min(int(i)+n, len(s.list))], nil
		}
	}
	list, err := segments(h.dir)
	if err != nil {
		return nil, err
	}
	i, found := slices.BinarySearch(list, from)
	if !found {
		i--
	}
	if i < 0 {
		return nil, sandbox.Errorf("read audit log", sandbox.KindInternal, "position %d is missing", from)
	}
	s := leaves{first: list[i]}
	r, err := newSegmentReader(segmentPath(h.dir, list[i]), list[i])
	if err != nil {
		return nil, err
	}
	defer r.close()
	for int64(r.head.Position) < h.size {
		e, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		s.list = append(s.list, e.Leaf)
	}
	if r.head.Position < from {
		return nil, sandbox.Errorf("read audit log", sandbox.KindInternal, "position %d is missing: there are %d records", from, r.head.Position)
	}
	if len(h.segs) == keepSegments {
		h.segs = slices.Delete(h.segs, 0, 1)
	}
	h.segs = append(h.segs, s)
	return h.leaves(from, n)
}
