package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// signedLog makes a log of n tiny records in several segments, of two sandboxes,
// with a repair near its middle, all signed. It returns its directory.
func signedLog(t testing.TB, n int, segment int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "server")
	o := Options{SegmentBytes: segment, Reserve: -1}
	write := func(l *Log, n int) {
		for i := range n {
			r := sandbox.Record{Class: sandbox.Flow, Time: time.Unix(1, 2).UTC(), Action: "a", Sandbox: sandbox.ID([]string{"", "s", "t"}[i%3])}
			if i%12 == 11 {
				r.Action = ActionReceipt
			}
			if i%4 == 3 {
				r.Class = sandbox.Gate // a segment ends between two flushes
			}
			mustRecord(t, l, r)
		}
		if _, err := l.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, dir, o)
	write(l, n/2)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	appendTo(t, dir, "half a record")
	l = open(t, dir, o)
	write(l, n-n/2-2) // and the repair, and the change of keys
	if _, err := l.Rotate(t.Context(), "uid:0"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// appendTo writes behind the last record.
func appendTo(t testing.TB, dir, what string) {
	t.Helper()
	list, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(segmentPath(dir, list[len(list)-1]), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(what)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// trusted is the log as a witness is told of it: its origin, and its key, whose
// name is another one since the rotation.
func trusted(t testing.TB, dir string) string {
	t.Helper()
	msg, err := ReadCheckpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	origin, _, _ := strings.Cut(string(msg), "\n")
	return origin + " " + publicKey(t, dir)
}

// oldKey is the key before the log's rotation.
func oldKey(t testing.TB, dir string) (key string) {
	t.Helper()
	for _, b := range payloads(t, dir) {
		var p view
		if viewPayload(b, &p) && p.is(ActionRotate) {
			return p.detail("from")
		}
	}
	t.Fatal("no change of keys")
	return ""
}

func publicKey(t testing.TB, dir string) string {
	t.Helper()
	k, err := readPublicKey(dir)
	if err != nil || k == "" {
		t.Fatal("no key", err)
	}
	return k
}

// files reads a directory; directories and what is no evidence are left out.
func files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	m := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" || strings.HasSuffix(d.Name(), ".tmp") {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		m[filepath.ToSlash(name)], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// lay writes files into a directory.
func lay(t testing.TB, dir string, m map[string][]byte) {
	t.Helper()
	for name, b := range m {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// good verifies a log that should be whole.
func good(t testing.TB, dir string, o VerifyOptions) Report {
	t.Helper()
	r, err := VerifyLog(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bad verifies a log that is not and returns why.
func bad(t testing.TB, dir string, o VerifyOptions) *EvidenceError {
	t.Helper()
	_, err := VerifyLog(dir, o)
	var e *EvidenceError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an EvidenceError", err)
	}
	return e
}

func TestVerifyLog(t *testing.T) {
	dir := signedLog(t, 300, 4<<10)
	r := good(t, dir, VerifyOptions{Key: publicKey(t, dir)})
	if r.Records != 300 || r.Signed != 300 || r.First != 1 || r.Repairs != 1 || r.Tiles != 2 || r.TilesMissing != 0 || !r.KeyOutside || r.Unsigned() != 0 {
		t.Errorf("%+v", r)
	}
	if r := good(t, dir, VerifyOptions{}); r.KeyOutside || r.Key == "" || r.Rotations != 0 {
		t.Errorf("%+v", r)
	}
	if r := good(t, dir, VerifyOptions{Key: oldKey(t, dir)}); !r.KeyOutside || r.Rotations != 1 || !strings.HasPrefix(publicKey(t, dir), r.Key) {
		t.Errorf("%+v", r)
	}
	// What lies behind the checkpoint is not signed yet, torn or not.
	l := open(t, dir, Options{Interval: time.Hour})
	mustRecord(t, l, gate("later"))
	live := good(t, dir, VerifyOptions{})
	if live.Records != 301 || live.Signed != 300 || live.Unsigned() != 1 {
		t.Errorf("%+v", live)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	appendTo(t, dir, "\x00\x00\x00\x80half a record")
	if r := good(t, dir, VerifyOptions{}); r.Torn == 0 || r.Records != 301 {
		t.Errorf("%+v", r)
	}
}

// TestVerifyNamesTheFlippedByte changes every byte of every file of small logs,
// one at a time. Nothing but the key is known from elsewhere.
func TestVerifyNamesTheFlippedByte(t *testing.T) {
	for name, c := range map[string]struct {
		dir string
		in  string // only files whose name has this
	}{
		"segments":    {signedLog(t, 36, 1500), ""},
		"a full tile": {signedLog(t, 257, 64<<10), "tile/8/0/000"},
	} {
		t.Run(name, func(t *testing.T) {
			key := oldKey(t, c.dir) // the hard way
			all := files(t, c.dir)
			if len(all) < 5 {
				t.Fatal("the log has too few files: ", len(all))
			}
			type flip struct {
				file string
				at   int
			}
			var flips []flip
			for file, b := range all {
				for i := range b {
					if strings.Contains(file, c.in) {
						flips = append(flips, flip{file, i})
					}
				}
			}
			parallel(t, len(flips), func(t testing.TB) func(i int) {
				copied := filepath.Join(t.TempDir(), "server")
				lay(t, copied, all)
				return func(i int) {
					f := flips[i]
					b := all[f.file][f.at]
					poke(t, filepath.Join(copied, f.file), f.at, b^1<<(i%8))
					_, err := VerifyLog(copied, VerifyOptions{Key: key})
					var e *EvidenceError
					if !errors.As(err, &e) {
						t.Errorf("byte %d of %s flipped: %v", f.at, f.file, err)
					} else if e.File != f.file {
						t.Errorf("byte %d of %s flipped: found in %s", f.at, f.file, e)
					}
					poke(t, filepath.Join(copied, f.file), f.at, b)
				}
			})
		})
	}
}

// poke changes one byte of a file.
func poke(t testing.TB, path string, at int, b byte) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{b}, int64(at))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

// parallel calls what setup returns with 0 to n-1, on all cores.
func parallel(t *testing.T, n int, setup func(testing.TB) func(int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		f := setup(t)
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !t.Failed(); i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}

// payloads reads the records of a log as they are.
func payloads(t testing.TB, dir string) (list [][]byte) {
	t.Helper()
	if err := walkFrames(dir, 1, func(_ place, b []byte) bool { list = append(list, bytes.Clone(b)); return true }); err != nil {
		t.Fatal(err)
	}
	return list
}

// forge makes the segments of a log with these records, as somebody would who
// can compute sums and chain: only signatures are beyond him.
func forge(list [][]byte, perSegment int) map[string][]byte {
	m := map[string][]byte{}
	var head Head
	for len(list) > 0 {
		n := min(perSegment, len(list))
		b := segmentHeader(head.Position+1, head.Hash)
		name := filepath.Base(segmentPath("", head.Position+1))
		for _, p := range list[:n] {
			frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), make([]byte, frameLen-4)...)
			frame = append(frame, p...)
			_, hash := new(chainer).seal(frame, head.Hash)
			head = Head{head.Position + 1, hash}
			b = append(b, frame...)
		}
		m[name], list = b, list[n:]
	}
	return m
}

// renumber gives the records the positions they now have, and the links.
func renumber(list [][]byte) [][]byte {
	l := newLinks()
	for i, p := range list {
		list[i] = bytes.Clone(p)
		binary.BigEndian.PutUint64(list[i][positionOff:], uint64(i+1))
		l.seal(list[i])
	}
	return list
}

// TestVerifyNamesTheForgedRecord drops, doubles, reorders and changes each
// record of a log, with all sums and the chain made to fit.
func TestVerifyNamesTheForgedRecord(t *testing.T) {
	const n = 280 // a full tile and one that is not
	dir := signedLog(t, n, 4<<10)
	key := publicKey(t, dir)
	all, list := files(t, dir), payloads(t, dir)
	kept := map[string][]byte{}
	for name, b := range all {
		if !strings.HasSuffix(name, ".log") && name != linksName {
			kept[name] = b
		}
	}
	forgeries := []struct {
		name string
		make func(i int) [][]byte
	}{
		{"change", func(i int) [][]byte {
			f := slices.Clone(list)
			f[i] = bytes.Clone(f[i])
			f[i][timeOff] ^= 1
			return f
		}},
		{"drop", func(i int) [][]byte { return renumber(slices.Delete(slices.Clone(list), i, i+1)) }},
		{"swap", func(i int) [][]byte {
			f := slices.Clone(list)
			j := (i + 1) % n
			f[i], f[j] = f[j], f[i]
			return renumber(f)
		}},
		{"double", func(i int) [][]byte { return renumber(slices.Insert(slices.Clone(list), i, list[i])) }},
	}
	for _, c := range forgeries {
		t.Run(c.name, func(t *testing.T) {
			parallel(t, n, func(t testing.TB) func(int) {
				copied := filepath.Join(t.TempDir(), "server")
				lay(t, copied, kept)
				return func(i int) {
					forged, first := c.make(i), 0 // first: the first record that is another one
					for first < min(n, len(forged)) && bytes.Equal(forged[first], list[first]) {
						first++
					}
					if first++; first > n {
						return // it is the same but for what is not signed
					}
					old, err := segments(copied)
					for _, first := range old {
						err = errors.Join(err, os.Remove(segmentPath(copied, first)))
					}
					if err != nil {
						t.Error(err)
						return
					}
					lay(t, copied, forge(forged, 50))
					_, err = VerifyLog(copied, VerifyOptions{Key: key})
					var e *EvidenceError
					if !errors.As(err, &e) || int(e.Position) != first || !strings.HasSuffix(e.File, ".log") {
						t.Errorf("%s %d: record %d is another one; %v", c.name, i+1, first, err)
					}
				}
			})
		})
	}
}

// TestVerifyTruncated cuts a log at every byte below its checkpoint: the segment that is cut,
// with and without those that follow it.
func TestVerifyTruncated(t *testing.T) {
	dir := signedLog(t, 24, 1000)
	key := publicKey(t, dir)
	all := files(t, dir)
	var names []string
	for name := range all {
		if strings.HasSuffix(name, ".log") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	parallel(t, 2*len(names), func(t testing.TB) func(int) {
		return func(i int) {
			cut, rest := i/2, i%2 == 0 // whether the segments behind it stay
			copied := filepath.Join(t.TempDir(), "server")
			lay(t, copied, all)
			for _, name := range names[cut+1:] {
				if !rest {
					os.Remove(filepath.Join(copied, name))
				}
			}
			for at := len(all[names[cut]]) - 1; at >= 0; at-- {
				if err := os.Truncate(filepath.Join(copied, names[cut]), int64(at)); err != nil {
					t.Error(err)
				}
				_, err := VerifyLog(copied, VerifyOptions{Key: key})
				var e *EvidenceError
				if !errors.As(err, &e) || e.Position == 0 || e.File != names[cut] && !(rest && e.File == names[min(cut+1, len(names)-1)]) {
					t.Errorf("%s cut at %d of %d (rest %v): %v", names[cut], at, len(all[names[cut]]), rest, err)
				}
			}
		}
	})
	for _, name := range names { // and without one altogether
		copied := filepath.Join(t.TempDir(), "server")
		lay(t, copied, all)
		os.Remove(filepath.Join(copied, name))
		if e := bad(t, copied, VerifyOptions{Key: key}); e.Position == 0 {
			t.Error(e)
		}
	}
}

// TestVerifyRolledBack puts an earlier state of a log in place, checkpoint
// and all: only somebody who remembers can tell.
func TestVerifyRolledBack(t *testing.T) {
	dir := signedLog(t, 30, 1500)
	before := files(t, dir)
	w, _ := newWitness(t, trusted(t, dir))
	server := httptestServer(t, w)
	address, err := ParseWitness(server + " " + w.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	s := &Submitter{Dir: dir, Log: quiet}
	ask := func() error {
		msg, err := ReadCheckpoint(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s.Submit(t.Context(), address, msg)
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, Options{})
	for range 10 {
		mustRecord(t, l, gate("more"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	pinned, err := ReadCheckpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := VerifyOptions{Key: publicKey(t, dir), Witnesses: []string{w.PublicKey()}, From: pinned}
	if r := good(t, dir, o); r.Witnessed != 40 || r.Pinned != 40 || len(r.Cosigned) != 1 || time.Since(r.Cosigned[0].Time).Abs() > time.Minute {
		t.Errorf("%+v", r)
	}

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	lay(t, dir, before)
	good(t, dir, VerifyOptions{Key: o.Key})
	if e := bad(t, dir, VerifyOptions{Key: o.Key, From: pinned}); !strings.Contains(e.What, "rolled back") {
		t.Error(e)
	}
	var no *ContradictionError
	if err := ask(); !errors.As(err, &no) || no.Seen != 40 || no.Size != 30 {
		t.Error(err)
	}
	// It grows again past what the witness has seen, with another past.
	l = open(t, dir, Options{})
	for range 15 {
		mustRecord(t, l, gate("other"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(); !errors.As(err, &no) || no.Seen != -1 {
		t.Error(err)
	}
	if e := bad(t, dir, VerifyOptions{Key: o.Key, From: pinned}); e.Position == 0 || e.Position > 31 {
		t.Error(e)
	}
	if e := bad(t, dir, VerifyOptions{Key: o.Key, Witnesses: o.Witnesses}); e.File != cosignedDir {
		t.Error(e)
	}
}

// TestVerifyExpired: what is gone is told of by the log, and its tiles stand for
// it.
func TestVerifyExpired(t *testing.T) {
	dir := signedLog(t, 380, 4<<10)
	key := publicKey(t, dir)
	l := open(t, dir, Options{SegmentBytes: 4 << 10})
	list, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range list[:len(list)-3] {
		if err := os.Chtimes(segmentPath(dir, first), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := l.Expire(t.Context(), time.Unix(2, 0)); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := good(t, dir, VerifyOptions{Key: key})
	if r.Expired < 256 || r.First != r.Expired+1 || r.Records != 381 {
		t.Fatalf("%+v", r)
	}
	all := files(t, dir)
	for name, b := range all {
		if name != expiredName && !strings.HasPrefix(name, "tile/") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			every := max(1, len(b)/512)
			parallel(t, len(b)/every, func(t testing.TB) func(int) {
				copied := filepath.Join(t.TempDir(), "server")
				lay(t, copied, all)
				return func(i int) {
					i *= every
					poke(t, filepath.Join(copied, name), i, b[i]^1)
					_, err := VerifyLog(copied, VerifyOptions{Key: key})
					if e := (*EvidenceError)(nil); !errors.As(err, &e) {
						t.Errorf("byte %d: %v", i, err)
					}
					poke(t, filepath.Join(copied, name), i, b[i])
				}
			})
		})
	}
	// Without the note, or with one that goes further than the log says.
	copied := filepath.Join(t.TempDir(), "server")
	lay(t, copied, all)
	os.Remove(filepath.Join(copied, expiredName))
	if e := bad(t, copied, VerifyOptions{Key: key}); !strings.Contains(e.What, "missing") {
		t.Error(e)
	}
	lay(t, copied, all)
	list, err = segments(copied)
	if err != nil {
		t.Fatal(err)
	}
	next, err := newSegmentReader(segmentPath(copied, list[1]), list[1])
	if err != nil {
		t.Fatal(err)
	}
	through := next.head
	next.close()
	if err := errors.Join(writeExpired(copied, through), os.Remove(segmentPath(copied, list[0]))); err != nil {
		t.Fatal(err)
	}
	if e := bad(t, copied, VerifyOptions{Key: key}); e.File != expiredName {
		t.Error(e)
	}
}

// TestVerifyUnsigned: a log without a checkpoint is whole, and proves nothing.
func TestVerifyUnsigned(t *testing.T) {
	dir := signedLog(t, 10, 1<<20)
	if err := os.Remove(filepath.Join(dir, checkpointName)); err != nil {
		t.Fatal(err)
	}
	if e := bad(t, dir, VerifyOptions{}); !errors.Is(e, ErrUnsigned) || e.File != checkpointName {
		t.Error(e)
	}
	if _, err := VerifyLog(filepath.Join(dir, "none"), VerifyOptions{}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Error(err)
	}
	other := signedLog(t, 10, 1<<20)
	dir = signedLog(t, 10, 1<<20)
	if e := bad(t, dir, VerifyOptions{Key: publicKey(t, other)}); e.File != checkpointName {
		t.Error(e)
	}
	msg, err := ReadCheckpoint(other)
	if err != nil {
		t.Fatal(err)
	}
	if e := bad(t, dir, VerifyOptions{From: msg}); !strings.Contains(e.What, "of the log") {
		t.Error(e)
	}
}

// TestVerifyRekeyed: a log that was closed while another one changed the key has
// nothing that leads to the new one; who has that can check it still.
func TestVerifyRekeyed(t *testing.T) {
	dir := signedLog(t, 20, 1<<20)
	early, err := ReadCheckpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := publicKey(t, dir)
	l := open(t, filepath.Join(filepath.Dir(dir), "other"), Options{})
	if _, err := l.Rotate(t.Context(), "uid:0"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	good(t, dir, VerifyOptions{Key: before}) // nothing was signed with the new one yet
	l = open(t, dir, Options{})
	mustRecord(t, l, gate("more"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := good(t, dir, VerifyOptions{Key: publicKey(t, dir), From: early}); r.Rotations != 0 || r.Pinned != 20 {
		t.Errorf("%+v", r)
	}
	if e := bad(t, dir, VerifyOptions{Key: before}); !strings.Contains(e.What, "no change of keys leads") {
		t.Error(e)
	}
}
