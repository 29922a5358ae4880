package audit

import (
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Tiles hold tileWidth hashes each, of every tileHeight-th level of the tree.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tree is the Merkle tree over the leaves so far, as far as it takes part in
// what comes: the tiles that are not full yet, one at each level. A leaf costs
// about one hash. It is for use by one goroutine.
type tree struct {
	size int64
	edge [][]tlog.Hash // by tile level: the hashes in its tile that is not full
	// full, if not nil, is told of each tile that became so. The hashes are
	// only lent.
	full func(level int, n int64, hashes []tlog.Hash)
}

// add appends a leaf.
func (t *tree) add(h tlog.Hash) {
	t.size++
	for level := 0; ; level++ {
		if level == len(t.edge) {
			t.edge = append(t.edge, make([]tlog.Hash, 0, tileWidth))
		}
		e := append(t.edge[level], h)
		t.edge[level] = e
		if len(e) < tileWidth {
			return
		}
		if t.full != nil {
			t.full(level, t.size>>(tileHeight*(level+1))-1, e)
		}
		h = subtree(e)
		t.edge[level] = e[:0]
	}
}

// root is the tree's hash, as in RFC 6962. Cost: some hundred hashes.
func (t *tree) root() tlog.Hash {
	var root tlog.Hash
	if t.size == 0 {
		root, _ = tlog.TreeHash(0, nil) // of nothing: it reads nothing
		return root
	}
	first := true
	for _, e := range t.edge { // from the right of the tree to its left
		for n := len(e); n > 0; {
			w := 1 << bits.TrailingZeros(uint(n))
			if h := subtree(e[n-w : n]); first {
				root, first = h, false
			} else {
				root = tlog.NodeHash(h, root)
			}
			n -= w
		}
	}
	return root
}

// subtree is the hash over 2^k siblings, at most tileWidth.
func subtree(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	var row [tileWidth / 2]tlog.Hash
	n := len(hashes) / 2
	for i := range n {
		row[i] = tlog.NodeHash(hashes[2*i], hashes[2*i+1])
	}
	for n /= 2; n > 0; n /= 2 {
		for i := range n {
			row[i] = tlog.NodeHash(row[2*i], row[2*i+1])
		}
	}
	return row[0]
}

// treeAt is the tree over the first size leaves, out of stored hashes.
func treeAt(size int64, stored *hashes) (*tree, error) {
	t := &tree{size: size}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		at := size >> (tileHeight * level)
		e := make([]tlog.Hash, 0, tileWidth)
		if k := int(at % tileWidth); k > 0 {
			got, err := stored.tile(level, at/tileWidth, k)
			if err != nil {
				return nil, err
			}
			e = append(e, got...)
		}
		t.edge = append(t.edge, e)
	}
	return t, nil
}
