package audit

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// testKey makes, or reads, the key of the log in dir.
func testKey(t testing.TB, dir string) *key {
	t.Helper()
	k, err := makeKey(filepath.Join(filepath.Dir(dir), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signAt signs the first size records of the log in dir, as far as they can be
// read.
func signAt(t testing.TB, dir string, size int64) Checkpoint {
	t.Helper()
	var tr tree
	for e, err := range Scan(dir, 1) {
		if err != nil || tr.size == size {
			break
		}
		tr.add(e.Leaf)
	}
	if tr.size != size {
		t.Fatalf("%d records to sign, %d are there", size, tr.size)
	}
	return putCheckpoint(t, dir, Checkpoint{"test", size, tr.root()})
}

func putCheckpoint(t testing.TB, dir string, c Checkpoint) Checkpoint {
	t.Helper()
	msg, err := note.Sign(&note.Note{Text: c.Text()}, testKey(t, dir).signer)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, checkpointName), msg, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// naive is the root over leaves, as RFC 6962 says it.
func naive(leaves []tlog.Hash) tlog.Hash {
	switch n := len(leaves); n {
	case 0:
		h, _ := tlog.TreeHash(0, nil)
		return h
	case 1:
		return leaves[0]
	default:
		k := 1
		for 2*k < n {
			k *= 2
		}
		return tlog.NodeHash(naive(leaves[:k]), naive(leaves[k:]))
	}
}
