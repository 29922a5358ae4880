package audit

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// EvidenceError says that evidence is not what it was, and where.
type EvidenceError struct {
	File     string           // in the log's directory, or of the evidence; empty where it concerns no file
	Offset   int64            // in that file; meaningful where Position is not 0
	Position sandbox.Position // of the record concerned, or 0
	What     string
	Err      error // ErrUnsigned, or nil
}

// ErrUnsigned marks the error about a log that is whole but has no checkpoint.
var ErrUnsigned = errors.New("nothing in this log is signed")

// Error implements error.
func (e *EvidenceError) Error() string {
	var where []string
	if e.File != "" {
		where = append(where, e.File)
	}
	if e.Position != 0 {
		where = append(where, fmt.Sprintf("at byte %d, record %d", e.Offset, e.Position))
	}
	if len(where) == 0 {
		return e.What
	}
	return strings.Join(where, " ") + ": " + e.What
}

// Unwrap implements errors.Wrapper.
func (e *EvidenceError) Unwrap() error { return e.Err }

// VerifyOptions is what a verifier brings along from outside.
type VerifyOptions struct {
	// Key is the log's public key: the present one, or an earlier one from which
	// rotations lead to it. Empty: the file key.pub beside the log is believed,
	// which whoever can change the log can change too.
	Key string
	// From is a checkpoint of this log that was put aside earlier, as a signed
	// note. The log must contain everything it covers.
	From []byte
	// Witnesses are public keys, of which Quorum (0: all) must have cosigned.
	Witnesses []string
	Quorum    int
}

// Cosigned is what one witness has confirmed.
type Cosigned struct {
	Witness string    `json:"witness"`
	Size    int64     `json:"size"` // the first so many records
	Time    time.Time `json:"time"`
}

// Report is what a verification has found.
type Report struct {
	Dir          string     `json:"dir"`
	Origin       string     `json:"origin"`
	First        uint64     `json:"first"`         // position of the first record that is there; 0 if none is
	Records      uint64     `json:"records"`       // position of the last
	Signed       int64      `json:"signed"`        // so many are covered by the checkpoint
	Root         string     `json:"root"`          // of those, base64
	Key          string     `json:"key"`           // that signed, without doubt
	KeyOutside   bool       `json:"key_outside"`   // whether trust in it began outside the log's directory
	Rotations    int        `json:"rotations"`     // that led to it, checked
	Pinned       int64      `json:"pinned"`        // size of the checkpoint from outside; 0 without
	Witnessed    int64      `json:"witnessed"`     // so many records a quorum of witnesses has seen
	Cosigned     []Cosigned `json:"cosigned"`      // by witness asked for
	Repairs      int        `json:"repairs"`       // torn ends that were cut off, kept aside and checked
	Expired      uint64     `json:"expired"`       // records 1 to this one were removed because of their age
	Tiles        int        `json:"tiles"`         // stored tiles that agree
	TilesMissing int        `json:"tiles_missing"` // that could be there; they are derived
	Torn         int64      `json:"torn"`          // bytes behind the last record that are none
	Head         Head       `json:"-"`             // of the last record
}

// Unsigned is how many records came after the checkpoint.
func (r *Report) Unsigned() int64 { return int64(r.Records) - r.Signed }

// VerifyLog checks a whole log without the program that writes it: every frame
// and link of the chain, the Merkle tree over the records against every signed
// checkpoint there is, the signatures back to a key from outside, stored tiles,
// what repairs cut off, and where records have expired, that the log says so. It
// can run while the log is being written; what lies behind the checkpoint is
// reported as not signed yet.
//
// Errors: *EvidenceError where the evidence is bad, naming the place; everything
// else means that it could not be checked.
//
// Cost: one pass over the log, about 2 µs for a record, in bounded memory; a
// second pass only to name a record that differs.
func VerifyLog(dir string, o VerifyOptions) (Report, error) {
	v := &verifier{dir: dir, o: o, rep: Report{Dir: dir, Cosigned: []Cosigned{}}}
	err := v.run()
	v.rep.Records, v.rep.Head = uint64(v.head.Position), v.head
	var bad *EvidenceError
	if err != nil && !errors.As(err, &bad) {
		err = sandbox.Wrap("verify audit log", dir, err)
	}
	return v.rep, err
}

// Verify is VerifyLog without keys: it shows that a log is whole and fits its
// checkpoint, not whose it is, and accepts one that is not signed. It returns the
// chain's head. Errors: KindInternal where the log is damaged, wrapping an
// *EvidenceError.
func Verify(dir string) (Head, error) {
	v := &verifier{dir: dir, keyless: true, rep: Report{Dir: dir}}
	err := v.run()
	return v.head, sandbox.Wrap("verify audit log", dir, err)
}

// verifier is one pass over a log.
type verifier struct {
	dir string
	o   VerifyOptions
	// keyless leaves signatures aside.
	keyless bool
	rep     Report
	keys    keyring

	notes    signedNotes
	marks    []*signedNote // not reached yet, by size
	good     int64         // the largest size whose root was right
	mismatch *signedNote   // the first whose root was not, or that covers more than there is

	head     Head // of what was read
	at       place
	tree     *tree
	tiles    tiles
	begin    Head // behind which the log begins
	expiries bool // the record that says so was seen
	cuts     map[sandbox.Position]bool
	links    links
	// What is wrong with records that are as signed: the first of each.
	unrepaired, unlinked error
	saved                *linksFile // the stored links, until the record was read that they were stored at
	rotated              []rotation // as the records say
}

// place is where a record is.
type place struct {
	file string
	off  int64
}

func (v *verifier) run() error {
	if err := v.load(); err != nil {
		return err
	}
	if err := v.expired(); err != nil {
		return err
	}
	if err := v.scan(); err != nil {
		return err
	}
	if err := v.ended(); err != nil {
		return err
	}
	if err := v.signatures(); err != nil {
		return err
	}
	return v.rest()
}

// load reads everything small: checkpoints, what has expired, what was cut off.
func (v *verifier) load() (err error) {
	beside, err := readPublicKey(v.dir)
	if err != nil {
		return err
	}
	if v.keys, err = newKeyring(v.o, beside); err != nil {
		return err
	}
	v.rep.KeyOutside = v.keys.outside
	if v.notes, err = readNotes(v.dir, v.o.From); err != nil {
		return err
	}
	v.marks = v.notes.all()
	slices.SortStableFunc(v.marks, func(a, b *signedNote) int { return cmp.Compare(a.cp.Size, b.cp.Size) })
	if v.begin, err = readExpired(v.dir); err != nil {
		return &EvidenceError{File: expiredName, What: "it is damaged"}
	}
	if v.begin.Position > 0 {
		want, _ := json.Marshal(expired{v.begin.Position, hex.EncodeToString(v.begin.Hash[:])})
		if raw, err := os.ReadFile(filepath.Join(v.dir, expiredName)); err != nil || string(raw) != string(want)+"\n" {
			return &EvidenceError{File: expiredName, What: "it is damaged"}
		}
	}
	v.links = newLinks()
	if v.saved, err = readLinks(v.dir); err != nil {
		return err
	}
	v.head, v.rep.Expired = v.begin, uint64(v.begin.Position)
	v.tiles.dir = v.dir
	if err := v.tiles.look(); err != nil {
		return err
	}
	entries, err := os.ReadDir(v.dir)
	if err != nil {
		return err
	}
	v.cuts = map[sandbox.Position]bool{}
	for _, e := range entries {
		if digits, ok := strings.CutSuffix(e.Name(), ".cut"); ok && len(digits) == 20 {
			if p, _ := parseSize(strings.TrimLeft(digits, "0")); sandbox.Position(p) > v.begin.Position { // else its record has expired too
				v.cuts[sandbox.Position(p)] = true
			}
		}
	}
	if v.notes.checkpoint != nil {
		v.rep.Origin, v.rep.Signed, v.rep.Root = v.notes.checkpoint.cp.Origin, v.notes.checkpoint.cp.Size, v.notes.checkpoint.cp.Root.String()
	}
	return nil
}

// expired begins the tree with the records that are gone, out of the tiles that
// outlive them. Whether they are the right ones shows in the root.
func (v *verifier) expired() (err error) {
	gone := int64(v.begin.Position)
	if v.tree, err = v.tiles.begin(gone, v.notes.checkpoint == nil); err != nil {
		return err
	}
	v.tree.full = v.tiles.check
	return nil
}

// reached compares the root with what was signed at this size.
func (v *verifier) reached() {
	for len(v.marks) > 0 && v.marks[0].cp.Size <= v.tree.size {
		m := v.marks[0]
		v.marks = v.marks[1:]
		switch {
		case v.mismatch != nil || m.cp.Size < v.tree.size: // the latter within what has expired
		case v.tree.root() != m.cp.Root:
			v.mismatch = m
		default:
			v.good = m.cp.Size
		}
	}
}

// record looks at one record. leaf is its hash in the tree.
func (v *verifier) record(payload []byte, p *view, leaf tlog.Hash) error {
	v.tree.add(leaf)
	v.linked(payload, p)
	if len(v.marks) > 0 && v.marks[0].cp.Size == v.tree.size {
		v.reached()
	}
	if a := p.fields[fieldAction]; len(a) < 6 || string(a[:6]) != "audit." {
		return nil
	}
	switch {
	case p.is("audit.repair"):
		return v.repair(p)
	case p.is("audit.expire") && len(p.fields[fieldObject]) == 0:
		if p.detail("through") == fmt.Sprint(v.begin.Position) && string(p.fields[fieldDigest]) == fmt.Sprintf("%x", v.begin.Hash) {
			v.expiries = true
		}
	case p.is("audit.rotate"):
		v.rotate(p)
	case p.is("audit.key"):
		v.rekey(p)
	}
	return nil
}

// linked compares a record's link to the one before of its sandbox with what was
// read, and the stored links once their place is reached.
func (v *verifier) linked(payload []byte, p *view) {
	want := uint64(v.links.follow(payload))
	if p.version != oldVersion && p.previous != want && (want != 0 || p.previous > uint64(v.begin.Position)) && v.unlinked == nil {
		v.unlinked = v.badAt(v.head.Position, fmt.Sprintf("it names %d as the record before it of its sandbox, which is %d", p.previous, want))
	}
	if s := v.saved; s != nil && s.Position == v.head.Position {
		v.saved = nil
		if s.Hash != hex.EncodeToString(v.head.Hash[:]) || !v.links.are(s.Last, v.begin.Position) {
			v.derived(linksName)
		}
	}
}

// are reports whether list says the same, as far as that can be known without
// the records up to begin.
func (l links) are(list []linkEntry, begin sandbox.Position) bool {
	n := 0
	for _, e := range list {
		p, known := l.last[string(e.Sandbox)]
		switch {
		case known && *p == e.Position:
			n++
		case known || e.Position > begin:
			return false
		}
	}
	return n == len(l.last)
}

// readLinks reads the stored links; nil where there are none.
func readLinks(dir string) (*linksFile, error) {
	b, err := os.ReadFile(filepath.Join(dir, linksName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var f linksFile
	err = json.Unmarshal(b, &f)
	if again, _ := json.Marshal(f); err != nil || f.Sum != f.sum() || string(b) != string(again)+"\n" {
		return nil, &EvidenceError{File: linksName, What: "it is damaged; it is derived from the records and can be removed"}
	}
	return &f, nil
}

// derived notes a file that does not agree with the records it is made of.
func (v *verifier) derived(name string) { v.tiles.differs(name) }

// ended is what can be said once the last record was read.
func (v *verifier) ended() error {
	if v.mismatch == nil && len(v.marks) > 0 {
		v.mismatch = v.marks[0]
		if slices.Contains(v.marks, v.notes.checkpoint) {
			v.mismatch = v.notes.checkpoint
		}
	}
	if v.begin.Position > 0 && !v.expiries && v.mismatch == nil {
		return &EvidenceError{File: expiredName, What: fmt.Sprintf("it says that records 1–%d expired, and no record says so", v.begin.Position)}
	}
	return nil
}

func (v *verifier) short(want int64, why string) error {
	return &EvidenceError{File: v.at.file, Offset: v.at.off, Position: v.head.Position + 1,
		What: fmt.Sprintf("the log ends at %d, and %d records %s", v.head.Position, want, why)}
}

// rest is what remains once everything signed has been found right.
func (v *verifier) rest() error {
	edge := []tlog.Hash(nil)
	if len(v.tree.edge) > 0 {
		edge = v.tree.edge[0]
	}
	if err := v.tiles.partial(v.tree.size, edge); err != nil {
		return err
	}
	v.rep.Tiles, v.rep.TilesMissing = v.tiles.whole, v.tiles.missing
	if v.tiles.wrong != "" {
		return &EvidenceError{File: v.tiles.wrong,
			What: "it is not that of the records, which are as signed; it is derived from them and can be removed"}
	}
	if v.unrepaired != nil {
		return v.unrepaired
	}
	for p := range v.cuts {
		return &EvidenceError{File: fmt.Sprintf("%020d.cut", p), What: "no record of the log speaks of it"}
	}
	if v.unlinked != nil {
		return v.unlinked
	}
	// A log that was never written to is signed, too, but for one that nobody has
	// opened yet: whoever brings a key expects more than that.
	if v.notes.checkpoint == nil && (v.head.Position > 0 || v.keys.outside) && !v.keyless {
		return &EvidenceError{File: checkpointName, What: "there is none, so " + ErrUnsigned.Error(), Err: ErrUnsigned}
	}
	return nil
}

// locate names what differs from the root that was signed at m: with the help
// of the tiles the record, else where it is.
func (v *verifier) locate(m *signedNote) error {
	from, to := v.good+1, min(m.cp.Size, int64(v.head.Position))
	if p := v.firstOther(m); p > 0 {
		from, to = p, p
	}
	if from > int64(v.head.Position) {
		what := "are signed"
		if m != v.notes.checkpoint {
			what = "are in " + m.file + ": the log was rolled back"
		}
		return v.short(m.cp.Size, what)
	}
	at, err := findRecord(v.dir, sandbox.Position(from))
	if err != nil {
		return err
	}
	e := &EvidenceError{File: at.file, Offset: at.off, Position: sandbox.Position(from), What: "it differs from what was signed"}
	if to > from {
		e.What = fmt.Sprintf("it, or another one up to %d, differs from what was signed in %s", to, m.file)
	}
	return e
}

// firstOther finds the first record that is not the one of the tiles, or that is
// missing; 0 where the tiles do not give the root of m, and so prove nothing.
func (v *verifier) firstOther(m *signedNote) (first int64) {
	stored := tiles{dir: v.dir}
	begin := int64(v.begin.Position)
	tree, err := stored.begin(begin, false)
	if err != nil {
		return 0
	}
	var tile []tlog.Hash
	next := func(record *tlog.Hash) bool {
		n := tree.size
		if n%tileWidth == 0 || n == begin {
			tile, _ = readTile(v.dir, 0, n/tileWidth, int(min(tileWidth, m.cp.Size-n/tileWidth*tileWidth)))
		}
		var leaf tlog.Hash
		switch {
		case tile != nil:
			leaf = tile[n%tileWidth]
		case record != nil:
			leaf = *record
		default:
			return false
		}
		if first == 0 && (record == nil || *record != leaf) {
			first = n + 1
		}
		tree.add(leaf)
		return tree.size < m.cp.Size
	}
	var h hasher
	err = walkFrames(v.dir, v.begin.Position+1, func(_ place, payload []byte) bool {
		_, leaf := h.sums(new([32]byte), payload)
		return next(&leaf)
	})
	for err == nil && tree.size < m.cp.Size && next(nil) {
	}
	if err != nil || tree.size != m.cp.Size || tree.root() != m.cp.Root {
		return 0
	}
	return first
}

// publicKeyPath is where the public key of the logs of a data directory lies.
func publicKeyPath(dir string) string {
	return filepath.Join(filepath.Dir(filepath.Clean(dir)), "key.pub")
}

const rotateDir = "rotate"

// readPublicKey reads the key the verifier was not given.
func readPublicKey(dir string) (string, error) {
	b, err := os.ReadFile(publicKeyPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}
