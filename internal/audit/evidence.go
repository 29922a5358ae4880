package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Bounds of an evidence file.
const (
	MaxEvidence    = 64 << 20 // bytes
	evidenceFormat = "firebreak-evidence/1"
)

// Evidence is what a log proves about one sandbox, in one file that can be
// checked anywhere with the log's public key: its records, each with its proof
// against one checkpoint.
//
// As a file it is JSON in exactly the form that Encode gives it: one space for
// each level of indentation, keys in this order, base64 with padding, a newline
// at the end. DecodeEvidence refuses everything else.
type Evidence struct {
	Format     string           `json:"format"` // "firebreak-evidence/1"
	Origin     string           `json:"origin"`
	Sandbox    sandbox.ID       `json:"sandbox"`
	Keys       []string         `json:"keys"`       // the log's, for information: trust in them comes from elsewhere
	Checkpoint string           `json:"checkpoint"` // signed note
	Rotations  []EvidenceKeys   `json:"rotations"`  // oldest first
	Records    []EvidenceRecord `json:"records"`    // by position
	Receipt    string           `json:"receipt"`    // what the last sandbox.receipt has the digest of, as text; may be empty
}

// EvidenceKeys is one change of the log's key.
type EvidenceKeys struct {
	Note    string      `json:"note"`    // checkpoint whose last record tells of the change, signed by both keys
	Payload []byte      `json:"payload"` // of that record
	Proof   []tlog.Hash `json:"proof"`   // of it, in the tree of the note
}

// EvidenceRecord is one record.
type EvidenceRecord struct {
	Position sandbox.Position `json:"position"`
	Payload  []byte           `json:"payload"`
	Proof    []tlog.Hash      `json:"proof"` // RFC 6962 audit path to the root of the checkpoint
}

// EvidenceReport is what checking an evidence file has found.
type EvidenceReport struct {
	Origin     string           `json:"origin"`
	Sandbox    sandbox.ID       `json:"sandbox_id"`
	Records    int              `json:"records"`
	First      sandbox.Position `json:"first"`
	Last       sandbox.Position `json:"last"`
	Complete   bool             `json:"complete"` // from the beginning to the receipt, nothing was left out
	Missing    string           `json:"missing"`  // why it is not
	Receipt    bool             `json:"receipt"`  // the receipt is in the file, and is the recorded one
	Clean      bool             `json:"clean"`    // and says that nothing of the sandbox is left
	Signed     int64            `json:"signed"`   // size of the tree
	Root       string           `json:"root"`
	Key        string           `json:"key"`
	KeyOutside bool             `json:"key_outside"`
	Rotations  int              `json:"rotations"`
	Witnessed  int64            `json:"witnessed"`
	Cosigned   []Cosigned       `json:"cosigned"`
}

// Encode gives the file. Errors: KindTooLarge beyond MaxEvidence.
func (e *Evidence) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(e); err != nil {
		return nil, sandbox.Wrap("write evidence", string(e.Sandbox), err)
	}
	if b.Len() > MaxEvidence {
		return nil, sandbox.Errorf("write evidence", sandbox.KindTooLarge, "the evidence has %d bytes, at most %d fit into a file", b.Len(), MaxEvidence)
	}
	return b.Bytes(), nil
}

// DecodeEvidence reads a file. It checks the form and no proof. Errors:
// *EvidenceError.
func DecodeEvidence(b []byte) (*Evidence, error) {
	bad := func(what string) (*Evidence, error) { return nil, &EvidenceError{What: what} }
	if len(b) > MaxEvidence {
		return bad("the evidence is too long")
	}
	var e Evidence
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return bad("the evidence is malformed: " + err.Error())
	}
	if e.Format != evidenceFormat {
		return bad(fmt.Sprintf("the format is %.40q, not %q", e.Format, evidenceFormat))
	}
	// One way to write it leaves no room for what readers understand differently.
	if again, err := e.Encode(); err != nil || !bytes.Equal(again, b) {
		return bad("the file is not as it was exported: fields, their order, escapes or spaces differ, or something was added")
	}
	return &e, nil
}

// Verify checks everything the file claims: the signature of a key from outside
// on the checkpoint, through changes of keys, every record's place in the tree,
// that none is missing between the first and the receipt, and the receipt.
// o.From is not used.
//
// Errors: *EvidenceError naming the record; KindInvalid for bad options.
func (e *Evidence) Verify(o VerifyOptions) (r EvidenceReport, err error) {
	fallback := ""
	if len(e.Keys) > 0 {
		fallback = e.Keys[len(e.Keys)-1]
	}
	ring, err := newKeyring(o, fallback)
	if err != nil {
		return r, err
	}
	if ring.first == nil {
		return r, sandbox.Errorf("verify evidence", sandbox.KindInvalid, "no key to check the signature with").WithHint("name the log's public key with --key")
	}
	r = EvidenceReport{Origin: e.Origin, Sandbox: e.Sandbox, Records: len(e.Records), KeyOutside: ring.outside, Cosigned: []Cosigned{}}
	cp, err := readSignedNote("checkpoint", []byte(e.Checkpoint))
	if err != nil {
		return r, err
	}
	if cp.cp.Origin != e.Origin {
		return r, &EvidenceError{File: "checkpoint", What: fmt.Sprintf("it is of the log %q", cp.cp.Origin)}
	}
	r.Signed, r.Root = cp.cp.Size, cp.cp.Root.String()
	key, err := e.currentKey(&ring, &r)
	if err != nil {
		return r, err
	}
	opened, err := cp.open(append([]note.Verifier{key}, ring.witnesses...)...)
	if err != nil {
		return r, err
	}
	if _, ok := signedBy(opened, key); !ok {
		return r, &EvidenceError{File: "checkpoint", What: "the log has not signed it"}
	}
	r.Key = fmt.Sprintf("%s+%08x", key.Name(), key.KeyHash())
	for _, w := range ring.witnesses {
		if sig, ok := signedBy(opened, w); ok {
			r.Cosigned = append(r.Cosigned, Cosigned{w.Name(), r.Signed, cosignedAt(sig)})
		}
	}
	if err := ring.quorumOf(r.Cosigned, &r.Witnessed); err != nil {
		return r, err
	}
	return r, e.records(cp.cp, &r)
}

// currentKey follows the changes of keys from the one that is trusted.
func (e *Evidence) currentKey(ring *keyring, r *EvidenceReport) (note.Verifier, error) {
	key, begun := ring.first, false
	is := func(a, b note.Verifier) bool { return a.Name() == b.Name() && a.KeyHash() == b.KeyHash() }
	var last note.Verifier
	for i, c := range e.Rotations {
		file := fmt.Sprintf("rotation %d", i+1)
		n, err := readSignedNote(file, []byte(c.Note))
		if err != nil {
			return nil, err
		}
		var p view
		if !viewPayload(c.Payload, &p) || !p.is("audit.rotate") || n.cp.Origin != e.Origin || int64(p.position) != n.cp.Size {
			return nil, &EvidenceError{File: file, What: "its record is no change of keys"}
		}
		change, err := parseRotation(&p)
		if err != nil || last != nil && !is(last, change.from) {
			return nil, &EvidenceError{File: file, What: "its record names other keys"}
		}
		for _, k := range []note.Verifier{change.from, change.to} {
			if _, err := n.open(k); err != nil {
				return nil, err
			}
		}
		if err := tlog.CheckRecord(c.Proof, n.cp.Size, n.cp.Root, n.cp.Size-1, tlog.RecordHash(c.Payload)); err != nil {
			return nil, &EvidenceError{File: file, What: "its record is not in the tree that was signed"}
		}
		if begun = begun || is(key, change.from); begun {
			r.Rotations++
		}
		begun = begun || is(key, change.to)
		last = change.to
	}
	if last == nil {
		return key, nil
	}
	if !begun {
		return nil, &EvidenceError{File: "rotations", What: fmt.Sprintf("no change of keys leads from %s+%08x to the one that signed", key.Name(), key.KeyHash())}
	}
	return last, nil
}

// records checks the records against the checkpoint and against each other.
func (e *Evidence) records(cp Checkpoint, r *EvidenceReport) error {
	last := struct {
		position  sandbox.Position
		ended, v1 bool
	}{ended: true}
	created, digest := false, ""
	for _, rec := range e.Records {
		var p view
		bad := func(what string) error {
			return &EvidenceError{What: fmt.Sprintf("record %d: %s", rec.Position, what)}
		}
		switch {
		case !viewPayload(rec.Payload, &p):
			return bad("it is malformed")
		case p.position != uint64(rec.Position):
			return bad(fmt.Sprintf("it says it is %d", p.position))
		case string(p.fields[fieldSandbox]) != string(e.Sandbox):
			return bad("it is about something else")
		case rec.Position <= last.position:
			return bad("it is not in order")
		case int64(rec.Position) > cp.Size:
			return bad(fmt.Sprintf("the checkpoint covers %d records", cp.Size))
		}
		if err := tlog.CheckRecord(rec.Proof, cp.Size, cp.Root, int64(rec.Position)-1, tlog.RecordHash(rec.Payload)); err != nil {
			return bad("it is not in the tree that was signed")
		}
		switch {
		case p.version == oldVersion:
			last.v1 = true
		case p.previous == uint64(last.position) && last.position > 0:
		case p.previous == 0 && last.ended: // the first, or the first after a receipt
		case p.previous == 0 && last.v1:
		default:
			return bad(fmt.Sprintf("the record before it, %d, is missing", p.previous))
		}
		created = created || p.is("sandbox.create")
		last.position, last.ended = rec.Position, p.is(ActionReceipt)
		if last.ended {
			digest = string(p.fields[fieldDigest])
		}
	}
	if len(e.Records) > 0 {
		r.First, r.Last = e.Records[0].Position, last.position
	}
	switch {
	case len(e.Records) == 0:
		r.Missing = "there are no records"
	case last.v1:
		r.Missing = "records of version 1 have no links"
	case !created:
		r.Missing = "the creation is not among the records"
	case digest == "":
		r.Missing = "the sandbox has not ended"
	}
	r.Complete = r.Missing == ""
	return e.receipt(digest, r)
}

// receipt checks the receipt against the digest in the log.
func (e *Evidence) receipt(digest string, r *EvidenceReport) error {
	if e.Receipt == "" {
		return nil
	}
	sum := sha256.Sum256([]byte(e.Receipt))
	if hex.EncodeToString(sum[:]) != digest {
		return &EvidenceError{File: "receipt", What: "it is not the one that was recorded"}
	}
	var body struct{ Clean bool }
	if err := json.Unmarshal([]byte(e.Receipt), &body); err != nil {
		return &EvidenceError{File: "receipt", What: "it is malformed"}
	}
	r.Receipt, r.Clean = true, body.Clean
	return nil
}

// SetReceipt adds the receipt if it is the one that was recorded; it tells
// whether it was.
func (e *Evidence) SetReceipt(receipt sandbox.Receipt) bool {
	for _, rec := range slices.Backward(e.Records) {
		var p view
		if viewPayload(rec.Payload, &p) && p.is(ActionReceipt) {
			if string(p.fields[fieldDigest]) != receipt.Digest() {
				return false
			}
			e.Receipt = string(receipt.Canonical())
			return true
		}
	}
	return false
}

// Tenant is whose sandbox it was, as its first record says.
func (e *Evidence) Tenant() sandbox.TenantID {
	var p view
	if len(e.Records) == 0 || !viewPayload(e.Records[0].Payload, &p) {
		return ""
	}
	return sandbox.TenantID(p.fields[fieldTenant])
}

// NewEvidence begins a file against one signed checkpoint.
func NewEvidence(id sandbox.ID, checkpoint []byte, keys []string) (*Evidence, error) {
	n, err := readSignedNote(checkpointName, checkpoint)
	if err != nil {
		return nil, err
	}
	return &Evidence{Format: evidenceFormat, Origin: n.cp.Origin, Sandbox: id, Keys: append([]string{}, keys...), Checkpoint: string(checkpoint),
		Rotations: []EvidenceKeys{}, Records: []EvidenceRecord{}}, nil
}

// CollectEvidence gathers what the log in dir proves about a sandbox, while it may be
// written. Where witnesses have cosigned a checkpoint that covers the
// records, that one is used.
//
// Errors: KindNotFound when no record is about the sandbox; KindConflict when its
// newest one is not signed yet, which takes about a second.
//
// Cost: a pass over the log.
func CollectEvidence(dir string, id sandbox.ID) (*Evidence, error) {
	const op = "collect evidence"
	var payloads [][]byte
	var rotations [][]byte
	begin, err := readExpired(dir)
	if err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	err = walkFrames(dir, begin.Position+1, func(_ place, b []byte) bool {
		var p view
		if !viewPayload(b, &p) {
			return true
		}
		if id != "" && string(p.fields[fieldSandbox]) == string(id) {
			payloads = append(payloads, bytes.Clone(b))
		}
		if p.is("audit.rotate") {
			rotations = append(rotations, bytes.Clone(b))
		}
		return true
	})
	if err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	if len(payloads) == 0 {
		return nil, sandbox.Errorf(op, sandbox.KindNotFound, "no record is about it").WithID(string(id))
	}
	var p view
	viewPayload(payloads[len(payloads)-1], &p)
	cp, err := bestCheckpoint(dir, int64(p.position))
	if err != nil {
		return nil, sandbox.Wrap(op, string(id), err)
	}
	key, err := readPublicKey(dir)
	if err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	e, err := NewEvidence(id, cp.raw, nil)
	if err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	if err := e.collectKeys(dir, rotations, cp.cp.Size, key); err != nil {
		return nil, sandbox.Wrap(op, dir, err)
	}
	for _, b := range payloads {
		viewPayload(b, &p)
		proof, err := RecordProof(dir, sandbox.Position(p.position), cp.cp.Size)
		if err != nil {
			return nil, sandbox.Wrap(op, dir, err)
		}
		e.Records = append(e.Records, EvidenceRecord{sandbox.Position(p.position), b, proof})
	}
	return e, nil
}

// collectKeys adds the changes of keys up to the checkpoint.
func (e *Evidence) collectKeys(dir string, rotations [][]byte, size int64, current string) error {
	var p view
	for _, b := range rotations {
		viewPayload(b, &p)
		at := int64(p.position)
		if at > size {
			break
		}
		raw, err := os.ReadFile(filepath.Join(dir, rotateDir, fmt.Sprintf("%020d", at)))
		if err != nil {
			return err
		}
		proof, err := RecordProof(dir, sandbox.Position(at), at)
		if err != nil {
			return err
		}
		if len(e.Keys) == 0 {
			e.Keys = append(e.Keys, p.detail("from"))
		}
		e.Keys = append(e.Keys, p.detail("to"))
		e.Rotations = append(e.Rotations, EvidenceKeys{string(raw), b, proof})
	}
	if len(e.Keys) == 0 && current != "" {
		e.Keys = append(e.Keys, current)
	}
	return nil
}

// bestCheckpoint is the checkpoint that covers size records and that most
// witnesses have cosigned; of those the newest.
func bestCheckpoint(dir string, size int64) (*signedNote, error) {
	s, err := readNotes(dir, nil)
	if err != nil {
		return nil, err
	}
	if s.checkpoint == nil || s.checkpoint.cp.Size < size {
		return nil, sandbox.Errorf("", sandbox.KindConflict, "record %d is not signed yet", size).WithHint("try again in a second")
	}
	best := s.checkpoint
	bySize := map[int64]*signedNote{best.cp.Size: best}
	for _, n := range s.cosigned {
		if n.cp.Size < size {
			continue
		}
		if have := bySize[n.cp.Size]; have != nil {
			if n, err = mergeNotes(have, n); err != nil {
				return nil, err
			}
		}
		bySize[n.cp.Size] = n
	}
	lines := func(n *signedNote) int { return bytes.Count(n.raw, []byte("\n")) }
	for _, n := range bySize {
		if lines(n) > lines(best) || lines(n) == lines(best) && n.cp.Size > best.cp.Size {
			best = n
		}
	}
	return best, nil
}

// mergeNotes joins the signatures on one checkpoint.
func mergeNotes(a, b *signedNote) (*signedNote, error) {
	if a.cp != b.cp {
		return nil, &EvidenceError{File: b.file, What: "it contradicts " + a.file}
	}
	raw := bytes.Clone(a.raw)
	for line := range bytes.Lines(b.raw[len(b.cp.Text())+1:]) {
		if !bytes.Contains(raw, line) {
			raw = append(raw, line...)
		}
	}
	return readSignedNote(a.file, raw)
}
