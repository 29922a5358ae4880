package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// ActionReceipt is the action of the record that ends a sandbox's evidence: no
// later record of the log links back to it.
const ActionReceipt = "sandbox.receipt"

// links knows the newest record of each sandbox that has no receipt yet. It is
// for use by one goroutine.
type links struct {
	last map[string]*sandbox.Position // pointers, so that a known sandbox costs no allocation
}

func newLinks() links { return links{map[string]*sandbox.Position{}} }

// follow registers the record in payload and returns its sandbox's previous one.
func (l links) follow(payload []byte) (previous sandbox.Position) {
	id, action := sandboxOf(payload)
	if len(id) == 0 {
		return 0
	}
	at := sandbox.Position(binary.BigEndian.Uint64(payload[positionOff:]))
	last, known := l.last[string(id)]
	if known {
		previous = *last
	}
	switch {
	case string(action) == ActionReceipt:
		delete(l.last, string(id))
	case known:
		*last = at
	default:
		l.last[string(id)] = &at
	}
	return previous
}

// seal fills the link into a payload of the current version.
func (l links) seal(payload []byte) {
	binary.BigEndian.PutUint64(payload[previousOff:], uint64(l.follow(payload)))
}

// sandboxOf reads two fields of a well-formed payload.
func sandboxOf(payload []byte) (id, action []byte) {
	b := payload[textOff:]
	if payload[0] == oldVersion {
		b = payload[oldClassOff+1:]
	}
	var f [5][]byte
	ok := true
	for i := range f {
		f[i], b, ok = cutBytes(b, ok)
	}
	return f[1], f[4]
}

// linksName is a derived file: the links as they were when the newest segment
// was begun, so that opening the log reads no more than that. A scan of the log
// replaces it.
const linksName = "links.json"

type linksFile struct {
	Position sandbox.Position `json:"position"` // of the newest record that counts
	Hash     string           `json:"hash"`     // chain hash up to it
	Last     []linkEntry      `json:"last"`
	Sum      string           `json:"sum"` // SHA-256 of this, without it
}

type linkEntry struct {
	Sandbox  []byte           `json:"sandbox"`
	Position sandbox.Position `json:"position"`
}

func (f linksFile) sum() string {
	f.Sum = ""
	b, _ := json.Marshal(f) // strings and numbers: it cannot fail
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// save writes the links as of head.
func (l links) save(dir string, head Head) error {
	f := linksFile{Position: head.Position, Hash: hex.EncodeToString(head.Hash[:]), Last: []linkEntry{}}
	for _, id := range slices.Sorted(maps.Keys(l.last)) {
		f.Last = append(f.Last, linkEntry{[]byte(id), *l.last[id]})
	}
	f.Sum = f.sum()
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, linksName)
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o600); err != nil {
		return errors.Join(err, os.Remove(path+".tmp"))
	}
	return os.Rename(path+".tmp", path)
}

// loadLinks returns what was saved, and as of where; ok is false where nothing
// fit to use is there.
func loadLinks(dir string) (l links, at Head, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, linksName))
	if errors.Is(err, fs.ErrNotExist) {
		return l, at, false, nil
	}
	if err != nil {
		return l, at, false, err
	}
	var f linksFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if d.Decode(&f) != nil || f.Sum != f.sum() {
		return l, at, false, nil
	}
	hash, err := hex.DecodeString(f.Hash)
	if err != nil || len(hash) != len(at.Hash) {
		return l, at, false, nil
	}
	at.Position = f.Position
	copy(at.Hash[:], hash)
	l = newLinks()
	for _, e := range f.Last {
		l.last[string(e.Sandbox)] = &e.Position
	}
	return l, at, true, nil
}
