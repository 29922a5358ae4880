package audit

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// signedNote is a checkpoint as it lies somewhere.
type signedNote struct {
	file string
	raw  []byte
	cp   Checkpoint
}

// readSignedNote parses a checkpoint strictly and checks no signature.
func readSignedNote(file string, raw []byte) (*signedNote, error) {
	text, err := noteText(raw)
	if err != nil {
		return nil, &EvidenceError{File: file, What: err.Error()}
	}
	cp, err := ParseCheckpoint(text)
	if err != nil || cp.Text() != text {
		return nil, &EvidenceError{File: file, What: "it is no checkpoint"}
	}
	return &signedNote{file, raw, cp}, nil
}

// open checks the note's signatures against keys, of which one must have signed.
func (n *signedNote) open(keys ...note.Verifier) (*note.Note, error) {
	opened, err := openNote(n.raw, keys...)
	var invalid *note.InvalidSignatureError
	var unknown *note.UnverifiedNoteError
	switch {
	case errors.As(err, &invalid):
		return nil, &EvidenceError{File: n.file, What: "the signature of " + invalid.Name + " is not good: the note was changed", Err: err}
	case errors.As(err, &unknown):
		names := make([]string, len(keys))
		for i, k := range keys {
			names[i] = fmt.Sprintf("%s+%08x", k.Name(), k.KeyHash())
		}
		return nil, &EvidenceError{File: n.file, What: "it is not signed by " + strings.Join(names, " or "), Err: err}
	case err != nil:
		return nil, &EvidenceError{File: n.file, What: err.Error()}
	}
	return opened, nil
}

// signedNotes is what has been signed about a log.
type signedNotes struct {
	checkpoint *signedNote // nil where nothing is signed
	rotations  []*signedNote
	cosigned   []*signedNote
	pinned     *signedNote // from outside; nil without
}

func (s *signedNotes) all() (list []*signedNote) {
	for _, n := range append([]*signedNote{s.checkpoint, s.pinned}, append(s.rotations, s.cosigned...)...) {
		if n != nil {
			list = append(list, n)
		}
	}
	return list
}

// readNotes reads them. The checkpoint comes first: a log that is being written
// has by then what the others cover.
func readNotes(dir string, from []byte) (s signedNotes, err error) {
	raw, err := readBounded(filepath.Join(dir, checkpointName), maxNote)
	if err == nil {
		s.checkpoint, err = readSignedNote(checkpointName, raw)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if s.rotations, err = readNoteDir(dir, rotateDir, 20); err != nil {
		return s, err
	}
	if s.cosigned, err = readNoteDir(dir, cosignedDir, 8); err != nil {
		return s, err
	}
	slices.SortFunc(s.rotations, func(a, b *signedNote) int { return cmp.Compare(a.cp.Size, b.cp.Size) })
	if len(from) > 0 {
		if s.pinned, err = readSignedNote("the checkpoint from outside", from); err != nil {
			return s, err
		}
	}
	return s, nil
}

func readNoteDir(dir, sub string, digits int) (list []*signedNote, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, sub))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			continue // of a write that was interrupted
		}
		file := filepath.ToSlash(filepath.Join(sub, e.Name()))
		raw, err := readBounded(filepath.Join(dir, file), maxNote)
		if err != nil {
			return nil, err
		}
		n, err := readSignedNote(file, raw)
		if err != nil {
			return nil, err
		}
		if len(e.Name()) != digits || sub == rotateDir && e.Name() != fmt.Sprintf("%020d", n.cp.Size) {
			return nil, &EvidenceError{File: file, What: "its name is not what it should be"}
		}
		list = append(list, n)
	}
	return list, nil
}

// rotation is a change of keys as the log records it.
type rotation struct {
	size     int64 // of the tree that both keys signed: its last record tells of the change
	from, to note.Verifier
	toText   string
	fromText string
	// elsewhere: the key was changed in another log of the data directory while
	// this one was closed. Nothing here leads to the new one.
	elsewhere bool
}

// parseRotation reads an "audit.rotate" record.
func parseRotation(p *view) (r rotation, err error) {
	r = rotation{size: int64(p.position), fromText: p.detail("from"), toText: p.detail("to")}
	if r.from, err = NewVerifier(r.fromText); err == nil {
		r.to, err = NewVerifier(r.toText)
	}
	return r, err
}

// rotate notes a change of keys.
func (v *verifier) rotate(p *view) {
	if r, err := parseRotation(p); err == nil {
		v.rotated = append(v.rotated, r)
	}
}

// rekey notes a key that another log brought.
func (v *verifier) rekey(p *view) {
	text := p.detail("key")
	if k, err := NewVerifier(text); err == nil && p.detail("from") != "" {
		v.rotated = append(v.rotated, rotation{size: int64(p.position), to: k, toText: text, elsewhere: true})
	}
}

// signatures decides whom to believe when the records and what was signed
// disagree, and otherwise checks every signature.
func (v *verifier) signatures() error {
	switch {
	case v.mismatch != nil && v.keyless:
		return v.locate(v.mismatch)
	case v.mismatch != nil:
		return v.judge(v.mismatch)
	case v.notes.checkpoint == nil || v.keyless:
		return nil
	}
	keys, err := v.chain()
	if err != nil {
		return err
	}
	now := keys[len(keys)-1]
	if _, err := v.notes.checkpoint.open(now); err != nil {
		return err
	}
	v.rep.Key = fmt.Sprintf("%s+%08x", now.Name(), now.KeyHash())
	for _, n := range v.notes.all() {
		if err := v.foreign(n); err != nil {
			return err
		}
	}
	if p := v.notes.pinned; p != nil {
		if _, err := p.open(keys...); err != nil && !v.former(err) {
			return err
		}
		v.rep.Pinned = p.cp.Size
	}
	return v.witnesses(keys)
}

// foreign is an error about a note of another log.
func (v *verifier) foreign(n *signedNote) error {
	if cp := v.notes.checkpoint; cp != nil && n.cp.Origin != cp.cp.Origin {
		return &EvidenceError{File: n.file, What: fmt.Sprintf("it is of the log %q, this one is %q", n.cp.Origin, cp.cp.Origin)}
	}
	return nil
}

// former reports whether err may be due to a key that was replaced in another log
// and is not known here: what it signed fits the records all the same.
func (v *verifier) former(err error) bool {
	var unknown *note.UnverifiedNoteError
	return errors.As(err, &unknown) && slices.ContainsFunc(v.rotated, func(r rotation) bool { return r.elsewhere })
}

// judge says what is wrong where the records do not give the root of a note: the
// note, if its signature is bad, else the records.
func (v *verifier) judge(m *signedNote) error {
	candidates := map[string]note.Verifier{}
	add := func(k note.Verifier) {
		if k != nil {
			candidates[fmt.Sprintf("%s+%08x", k.Name(), k.KeyHash())] = k
		}
	}
	add(v.keys.first)
	for _, r := range v.rotated {
		add(r.from)
		add(r.to)
	}
	keys := make([]note.Verifier, 0, len(candidates))
	for _, k := range candidates {
		keys = append(keys, k)
	}
	_, err := m.open(keys...)
	if m == v.notes.pinned && v.foreign(m) != nil {
		return v.foreign(m)
	}
	var unknown *note.UnverifiedNoteError
	if err != nil && (!errors.As(err, &unknown) || m.cp.Size <= int64(v.head.Position) && len(v.rotated) == 0) {
		return err
	}
	return v.locate(m)
}

// chain checks every rotation and returns the log's keys, the present one last,
// once trust has come from the key from outside to it.
func (v *verifier) chain() ([]note.Verifier, error) {
	var keys []note.Verifier
	noted := map[int64]*signedNote{}
	for _, n := range v.notes.rotations {
		noted[n.cp.Size] = n
	}
	last, since := "", 0 // since: keys before this one lead nowhere
	for _, r := range v.rotated {
		if r.size > v.rep.Signed {
			continue // on its way
		}
		if r.elsewhere {
			since, last = len(keys), r.toText
			keys = append(keys, r.to)
			continue
		}
		n := noted[r.size]
		delete(noted, r.size)
		file := fmt.Sprintf("%s/%020d", rotateDir, r.size)
		switch {
		case n == nil:
			return nil, &EvidenceError{File: file, What: fmt.Sprintf("it is missing; record %d tells of it", r.size)}
		case last != "" && r.fromText != last:
			return nil, &EvidenceError{File: file, What: fmt.Sprintf("record %d replaces a key that was not in use", r.size)}
		}
		for _, k := range []note.Verifier{r.from, r.to} {
			if _, err := n.open(k); err != nil {
				return nil, err
			}
		}
		if len(keys) == 0 {
			keys = append(keys, r.from)
		}
		keys, last = append(keys, r.to), r.toText
	}
	for size, n := range noted {
		if size > int64(v.begin.Position) && size <= v.rep.Signed {
			return nil, &EvidenceError{File: n.file, What: fmt.Sprintf("record %d is no change of keys", size)}
		}
	}
	k := v.keys.first
	switch {
	case k == nil && len(keys) == 0:
		return nil, sandbox.Errorf("verify audit log", sandbox.KindInvalid, "no key to check the signature with").WithHint("name the log's public key with --key")
	case len(keys) == 0:
		return []note.Verifier{k}, nil
	case k == nil:
		return keys, nil
	}
	for i, have := range keys[since:] {
		if have.Name() == k.Name() && have.KeyHash() == k.KeyHash() {
			v.rep.Rotations = len(keys) - 1 - since - i
			return keys, nil
		}
	}
	return nil, &EvidenceError{File: checkpointName, What: fmt.Sprintf("no change of keys leads from %s+%08x to the key that signed it", k.Name(), k.KeyHash())}
}

// witnesses counts whose cosignatures cover how much.
func (v *verifier) witnesses(keys []note.Verifier) error {
	confirmed := map[string]Cosigned{}
	wanted := v.keys.witnesses
	for _, n := range append([]*signedNote{v.notes.checkpoint}, v.notes.cosigned...) {
		opened, err := n.open(append(slices.Clone(keys), wanted...)...)
		if err != nil && v.former(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !v.former(&note.UnverifiedNoteError{}) && !slices.ContainsFunc(keys, func(k note.Verifier) bool { _, ok := signedBy(opened, k); return ok }) {
			return &EvidenceError{File: n.file, What: "the log has not signed it"}
		}
		for _, w := range wanted {
			if sig, ok := signedBy(opened, w); ok && n.cp.Size >= confirmed[w.Name()].Size {
				confirmed[w.Name()] = Cosigned{w.Name(), n.cp.Size, cosignedAt(sig)}
			}
		}
	}
	v.rep.Cosigned = []Cosigned{}
	for _, c := range confirmed {
		v.rep.Cosigned = append(v.rep.Cosigned, c)
	}
	slices.SortFunc(v.rep.Cosigned, func(a, b Cosigned) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Witness, b.Witness))
	})
	return v.keys.quorumOf(v.rep.Cosigned, &v.rep.Witnessed)
}

// keyring is whom a verifier trusts.
type keyring struct {
	first     note.Verifier // where trust in the log's keys begins; nil if nobody said
	outside   bool          // whether somebody from outside said so
	witnesses []note.Verifier
	quorum    int
}

// newKeyring reads the keys of o; fallback is the key to believe without any.
// Errors: KindInvalid.
func newKeyring(o VerifyOptions, fallback string) (k keyring, err error) {
	text := cmp.Or(o.Key, fallback)
	if text != "" {
		if k.first, err = NewVerifier(text); err != nil {
			return k, err
		}
	}
	k.outside = o.Key != ""
	seen := map[string]bool{}
	for _, s := range o.Witnesses {
		w, err := NewVerifier(s)
		if err != nil {
			return k, err
		}
		if _, ok := w.(*witnessKey); !ok || seen[w.Name()] {
			return k, sandbox.Errorf("read key", sandbox.KindInvalid, "%.80q is no witness's key, or given twice", s)
		}
		seen[w.Name()] = true
		k.witnesses = append(k.witnesses, w)
	}
	if k.quorum = o.Quorum; k.quorum == 0 {
		k.quorum = len(k.witnesses)
	}
	if k.quorum < 0 || k.quorum > len(k.witnesses) {
		return k, sandbox.Errorf("read key", sandbox.KindInvalid, "a quorum of %d needs as many witnesses", k.quorum)
	}
	return k, nil
}

// quorumOf finds how many records enough witnesses have confirmed. list is
// sorted by size, the largest first.
func (k *keyring) quorumOf(list []Cosigned, size *int64) error {
	if k.quorum == 0 {
		return nil
	}
	if len(list) < k.quorum {
		return &EvidenceError{File: cosignedDir, What: fmt.Sprintf("%d of %d witnesses have cosigned, %d must have", len(list), len(k.witnesses), k.quorum)}
	}
	*size = list[k.quorum-1].Size
	return nil
}
