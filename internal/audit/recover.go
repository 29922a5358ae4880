package audit

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// recovery is what Open finds out about a log before it touches anything.
type recovery struct {
	dir     string
	begin   Head               // behind what has expired
	list    []sandbox.Position // segments from there on
	torn    string             // a last segment without a whole header, if there is one
	signed  Checkpoint         // zero where nothing is
	sealed  bool               // whether there is a checkpoint
	signer  *note.Signature    // of the checkpoint
	current bool               // whether a record of the current version was found

	head    Head // of the last whole record
	tree    *tree
	links   links
	linked  bool           // whether those that were saved were fit to begin with
	root    tlog.Hash      // over the first signed.Size records, once that many were found
	tail    *segmentReader // at the end of the last segment; nil where there is none
	missing []tileID       // full tiles that have no file, or a wrong one
}

// recover finds the end of the log and makes it fit to be written, after
// checking it against what was signed. It returns what is to be recorded of
// that.
func (l *Log) recover() (news []sandbox.Record, err error) {
	r := &recovery{dir: l.dir}
	defer func() {
		if r.tail != nil {
			r.tail.close()
		}
	}()
	k, err := l.approve(r)
	if err != nil {
		return nil, err
	}
	if news, err = l.settle(r, k); err != nil {
		return nil, err
	}
	return news, finishAcknowledge(l.dir)
}

// approve decides whether the log may be opened, and touches nothing of it.
func (l *Log) approve(r *recovery) (k *key, err error) {
	if r.begin, err = readExpired(r.dir); err != nil {
		return nil, err
	}
	if err := r.find(); err != nil {
		return nil, err
	}
	if k, err = l.openKey(r); err != nil {
		return nil, err
	}
	return k, r.examine()
}

// find lists the segments that count.
func (r *recovery) find() error {
	list, err := segments(r.dir)
	if err != nil {
		return err
	}
	i, _ := slices.BinarySearch(list, r.begin.Position+1)
	r.list = list[i:]
	if n := len(r.list); n > 0 {
		// A crash between creating a segment and flushing its header leaves
		// a file that holds no record.
		path := segmentPath(r.dir, r.list[n-1])
		if torn, err := tornHeader(path); err != nil {
			return err
		} else if torn {
			r.torn, r.list = path, r.list[:n-1]
		}
	}
	return nil
}

// errNoKey says that a log is signed and its key is not there.
var errNoKey = errors.New("the log is signed, and its key is missing")

// openKey reads the signing key, or makes one where nothing was signed yet, and
// the checkpoint in its light.
func (l *Log) openKey(r *recovery) (k *key, err error) {
	k, err = readKey(l.o.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(l.dir, checkpointName)); !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(err, sandbox.Errorf("open audit log", sandbox.KindNotFound, "%w: %s", errNoKey, l.o.KeyFile).
				WithHint("restore the key from a backup"))
		}
		k, err = makeKey(l.o.KeyFile)
	}
	if err != nil {
		return nil, err
	}
	if err := k.publish(l.o.KeyFile); err != nil {
		return nil, err
	}
	ours, err := former(l.o.KeyFile)
	if err != nil {
		return nil, err
	}
	ours = append(ours, k.verifier)
	slices.SortFunc(ours, func(a, b note.Verifier) int { return cmp.Compare(a.KeyHash(), b.KeyHash()) })
	ours = slices.CompactFunc(ours, func(a, b note.Verifier) bool { return a.KeyHash() == b.KeyHash() && a.Name() == b.Name() })
	r.signed, r.signer, err = readSigned(l.dir, ours)
	r.sealed = r.signer != nil
	if err != nil {
		return nil, gap(GapError{Reason: "the checkpoint is damaged, or was signed by another key: " + err.Error()})
	}
	return k, nil
}

// examine reads as much of the log as is needed to know its end, its tree and
// its links, and compares it with what was signed.
func (r *recovery) examine() error {
	from := 0
	saved, at, ok, err := loadLinks(r.dir)
	if err != nil {
		return err
	}
	if n := len(r.list); r.sealed && n > 0 {
		i, found := slices.BinarySearch(r.list, sandbox.Position(max(r.signed.Size, 1)))
		if !found {
			i--
		}
		if i = max(min(i, n-1), 0); ok && at.Position+1 >= r.list[i] || r.list[i] == 1 {
			from = i
		}
	}
	err = r.scan(from, saved, at, ok, false)
	if err == nil && from > 0 && !r.linked {
		err = r.scan(0, links{}, Head{}, false, false)
	}
	if r.sealed && (err != nil || r.differs()) {
		// A derived file may be wrong: everything again, from the records.
		err = r.scan(0, links{}, Head{}, false, true)
	}
	if err != nil && (!r.sealed || r.head.Position >= sandbox.Position(r.signed.Size)) {
		return err
	}
	g := GapError{Origin: r.signed.Origin, Size: r.signed.Size, Root: r.signed.Root, Found: int64(r.head.Position)}
	switch {
	case err != nil:
		g.Reason = fmt.Sprintf("%d records were signed, %d can be read: %v", g.Size, g.Found, err)
	case r.sealed && g.Found < g.Size:
		g.Reason = fmt.Sprintf("%d records were signed, %d are there", g.Size, g.Found)
	case r.sealed && r.root != g.Root:
		g.Reason, g.Other = fmt.Sprintf("the first %d records are not those that were signed", g.Size), r.root
	case !r.sealed && r.current:
		g.Reason = "the checkpoint is missing"
	default:
		return nil
	}
	return gap(g)
}

func (r *recovery) differs() bool {
	return r.head.Position < sandbox.Position(r.signed.Size) || r.root != r.signed.Root
}

// scan reads the segments from r.list[from] on. The tree before them comes from
// tiles; with afresh, wherever there are records, from those. The links before
// them come from saved, if ok.
func (r *recovery) scan(from int, saved links, at Head, ok, afresh bool) error {
	if r.tail != nil {
		r.tail.close()
		r.tail = nil
	}
	r.head, r.root, r.current, r.linked, r.missing = r.begin, tlog.Hash{}, false, false, nil
	if first := r.begin.Position + 1; len(r.list) > 0 && r.list[0] != first || len(r.list) == 0 && first > 1 {
		return sandbox.Errorf("open audit log", sandbox.KindInternal, "the segment that begins at %d is missing", first)
	}
	if len(r.list) > 0 {
		r.head.Position = r.list[from] - 1
	}
	size := int64(r.head.Position)
	stored := &hashes{dir: r.dir, size: size, recompute: afresh, zeros: !r.sealed, absent: &r.missing}
	var err error
	if r.tree, err = treeAt(size, stored); err != nil {
		return err
	}
	r.tree.full = r.compare
	r.links = newLinks()
	if r.signed.Size == size {
		r.root = r.tree.root()
	}
	for i := from; i < len(r.list); i++ {
		s, err := newSegmentReader(segmentPath(r.dir, r.list[i]), r.list[i])
		if err != nil {
			return err
		}
		if i > from && s.head != r.head || i == 0 && s.head != r.begin {
			s.close()
			return s.damaged("the segment does not continue the chain")
		}
		r.head = s.head
		if err = r.segment(s, saved, at, ok); err == nil && i < len(r.list)-1 {
			err = s.ended()
		}
		if err != nil || i < len(r.list)-1 {
			s.close()
		} else {
			r.tail = s
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compare remembers a tile whose file is not there, or wrong.
func (r *recovery) compare(level int, n int64, want []tlog.Hash) {
	if got, err := readTileFile(tilePath(r.dir, level, n, tileWidth), tileWidth); err != nil || !slices.Equal(got, want) {
		r.missing = append(r.missing, tileID{level, n})
	}
}

// segment reads the records of one segment.
func (r *recovery) segment(s *segmentReader, saved links, at Head, ok bool) error {
	for {
		if ok && r.head == at {
			r.links, r.linked = saved, true
		}
		e, err := s.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errBadFrame) {
			return nil // what follows the last whole record is settled later
		}
		if err != nil {
			return err
		}
		r.head = s.head
		r.current = r.current || e.Version == version
		r.links.follow(e.Payload)
		if r.tree.add(e.Leaf); r.tree.size == r.signed.Size {
			r.root = r.tree.root()
		}
	}
}

// settle makes the log fit to be written. What it finds was approved.
func (l *Log) settle(r *recovery, k *key) (news []sandbox.Record, err error) {
	rest, err := r.rest()
	if err != nil {
		return nil, err
	}
	h, err := findHandover(l.dir, k)
	if err != nil {
		return nil, err
	}
	if k, err = h.finish(l.dir, r.signed.Origin, l.o.KeyFile, k); err != nil {
		return nil, err
	}
	if err := dropExpired(l.dir, r.begin); err != nil {
		return nil, err
	}
	if r.torn != "" {
		if err := os.Remove(r.torn); err != nil {
			return nil, err
		}
	}
	again := &hashes{dir: l.dir, size: r.tree.size, recompute: true, zeros: !r.sealed}
	for _, t := range r.missing {
		h, err := again.tile(t.level, t.n, tileWidth)
		if err == nil {
			err = l.o.write.tile(l.dir, t.level, t.n, h, t.first() <= r.begin.Position)
		}
		if err != nil {
			return nil, err
		}
		failpoint.Hit("audit/after-rebuilt")
	}
	l.head, l.links, l.public = r.head, r.links, k.public
	l.notary.expired = r.begin.Position
	if err := l.notary.begin(r, k); err != nil {
		return nil, err
	}
	var fix *sandbox.Record
	if r.tail != nil {
		fix, err = l.reopen(r, rest)
	} else {
		l.seg, err = l.create(l.head)
	}
	if err != nil {
		return nil, err
	}
	if fix != nil { // at the position its file is named after
		news = append(news, *fix)
	}
	key := sandbox.Record{Action: "audit.key", Digest: hex.EncodeToString(r.head.Hash[:]),
		Detail: map[string]string{"key": k.public, "through": fmt.Sprint(r.head.Position)}}
	switch {
	case !r.current && r.head.Position > 0: // of an earlier version, and signed for the first time
		news = append(news, key)
	case r.sealed && r.signer.Hash != k.verifier.KeyHash() && h.next == nil: // rotated while this log was closed
		key.Detail["from"] = fmt.Sprintf("%s+%08x", r.signer.Name, r.signer.Hash)
		news = append(news, key)
	}
	return news, nil
}

// begin takes over the tree as it was found. Where nothing is signed it signs:
// before the first record that relies on it.
func (n *notary) begin(r *recovery, k *key) error {
	n.key, n.origin = k, r.signed.Origin
	n.tree.size, n.tree.edge = r.tree.size, r.tree.edge
	n.wide = r.tree.size
	if r.sealed {
		if r.signer.Hash != k.verifier.KeyHash() {
			return nil // it is signed anew
		}
		n.signed = r.signed.Size
		msg, err := ReadCheckpoint(r.dir)
		n.note = msg
		return err
	}
	if n.origin = n.l.o.Origin; n.origin == "" {
		n.origin = k.name() + "/" + filepath.Base(r.dir)
	}
	return n.write()
}

func tornHeader(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(headerLen)+1))
	if err != nil || len(b) > headerLen {
		return false, err
	}
	_, _, ok := parseHeader(b)
	return !ok, nil
}

// rest is what follows the last whole record: nothing; or what a dying process
// left, which may be removed. Where a record can be found in it, it is not the
// mark of an interrupted write, and removing it would remove evidence.
func (r *recovery) rest() ([]byte, error) {
	if r.tail == nil {
		return nil, nil
	}
	return r.tail.end()
}

// reopen opens the last segment for writing, behind its last whole record.
func (l *Log) reopen(r *recovery, rest []byte) (fix *sandbox.Record, err error) {
	f, err := os.OpenFile(r.tail.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%020d.cut", r.head.Position+1)
	aside := filepath.Join(l.dir, name)
	if len(rest) > 0 {
		err = setAside(aside, rest)
		failpoint.Hit("audit/after-aside")
	}
	// Zeros behind the records are room that a dead process had made.
	if err == nil {
		err = f.Truncate(r.tail.off)
	}
	if err == nil && len(rest) > 0 {
		failpoint.Hit("audit/after-cut")
		err = dataFile{f}.Sync()
	}
	var cut []byte
	if err == nil {
		// It is there, too, when the process that cut it off could not
		// record that.
		cut, err = readBounded(aside, math.MaxInt64)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	l.seg = segment{f: l.o.wrap(dataFile{f}), size: r.tail.off}
	if len(cut) == 0 {
		return nil, nil
	}
	sum := sha256.Sum256(cut)
	return &sandbox.Record{Action: "audit.repair", Object: name, Digest: hex.EncodeToString(sum[:]),
		Detail: map[string]string{"bytes": fmt.Sprint(len(cut))}}, nil
}

// setAside keeps what is about to be removed, behind what is kept there of an
// earlier attempt at the same position.
func setAside(path string, rest []byte) error {
	had, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.HasSuffix(had, rest) {
		return nil
	}
	return replaceFile(path, append(had, rest...), 0o600)
}

// holdsRecord looks at every offset of b but the first for a frame that could
// follow position after. Bytes that a caller put into a record may look like
// one; that errs on the side of refusing.
func holdsRecord(b []byte, after sandbox.Position) bool {
	for i := 1; i+frameLen+minOldPayload <= len(b); i++ {
		if v := b[i+frameLen]; v != version && v != oldVersion {
			continue
		}
		p := sandbox.Position(binary.BigEndian.Uint64(b[i+frameLen+positionOff:]))
		if p <= after || p-after > 1<<32 {
			continue
		}
		if _, _, _, err := cutFrame(b[i:]); err == nil {
			return true
		}
	}
	return false
}

// sector is what a disk writes as a whole, or not at all.
const sector = 512

// skipped reports whether the record at the front of b, which is at offset off
// of its segment and bad, was never written as a whole: records are written
// into room that holds zeros, and when the machine dies within a write, some of
// its sectors may still hold them while later ones do not. No caller was told
// then that any of these records is durable. Bytes that changed since, or were
// changed, do not look like that.
func skipped(b []byte, off int64) bool {
	b = trimZeros(b)
	extent := sector // where the length is not one
	if len(b) >= 4 {
		if n := binary.BigEndian.Uint32(b); n >= uint32(minOldPayload) && n <= MaxRecord {
			extent = frameLen + int(n)
		}
	}
	extent = min(extent, len(b))
	for at := 0; at < extent; {
		end := at + sector - int((off+int64(at))%sector)
		if end > len(b) {
			return false
		}
		// The first two bytes of a length are always zero.
		if (end-at >= 4 || at > 0) && len(trimZeros(b[at:end])) == 0 {
			return true
		}
		at = end
	}
	return false
}

// cutShort reports whether nothing but room follows what is there of the record
// at the front of b: it is being written, or its writer died. A record may end in
// some zero bytes itself: then maybe says that a moment later will tell.
func cutShort(b []byte) (is, maybe bool) {
	t := trimZeros(b)
	_, _, n, err := cutFrame(t)
	if !errors.Is(err, errShort) {
		return false, false
	}
	return n == 0 || n-len(t) > 64, n > 0 && n-len(t) <= 64
}

// writeTime is more than a writer takes between two bytes of a record.
const writeTime = 2 * time.Millisecond

func trimZeros(b []byte) []byte { return bytes.TrimRight(b, "\x00") }
