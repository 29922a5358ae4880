package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestTree: at every size the root is that of RFC 6962.
func TestTree(t *testing.T) {
	var tr tree
	var leaves []tlog.Hash
	for n := 0; n <= 3*tileWidth+5; n++ {
		if n < 40 || n%61 == 0 || n%tileWidth < 2 {
			if tr.root() != naive(leaves) {
				t.Fatal("size", n)
			}
		}
		leaf := tlog.RecordHash(fmt.Append(nil, n))
		leaves = append(leaves, leaf)
		tr.add(leaf)
	}
}

// vkey makes the verifier of a log's key.
func vkey(t testing.TB, l *Log) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(l.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// signed asks for a checkpoint and opens it.
func signed(t testing.TB, l *Log) Checkpoint {
	t.Helper()
	msg, err := l.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := OpenCheckpoint(msg, vkey(t, l))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// long makes a log of n records in several segments, with a checkpoint at each
// of some sizes.
func long(t testing.TB, dir string, n int, o Options) (*Log, []Checkpoint) {
	t.Helper()
	l := open(t, dir, o)
	var cs []Checkpoint
	for i := range n {
		r := sandbox.Record{Class: sandbox.Flow, Action: fmt.Sprint("a", i)}
		if i == n-1 || i%150 == 99 {
			r.Class = sandbox.Gate
		}
		mustRecord(t, l, r)
		if i%150 == 99 {
			cs = append(cs, signed(t, l))
		}
	}
	return l, append(cs, signed(t, l))
}

// TestProofs: records and growth are proved against what was signed, with
// tiles, without, and after the log was closed; what is not there is not.
func TestProofs(t *testing.T) {
	dir := filepath.Join(memory(t), "log")
	l, cs := long(t, dir, 700, Options{SegmentBytes: 8 << 10})
	es := all(t, dir)
	if len(es) != 700 {
		t.Fatal(len(es))
	}
	check := func(t *testing.T) {
		for i, c := range cs {
			for _, p := range []sandbox.Position{1, 2, 99, 256, 257, 512, 513, 699, 700} {
				proof, err := RecordProof(dir, p, c.Size)
				if int64(p) > c.Size {
					wantKind(t, err, sandbox.KindInvalid)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := tlog.CheckRecord(proof, c.Size, c.Root, int64(p)-1, es[p-1].Leaf); err != nil {
					t.Fatalf("record %d of %d: %v", p, c.Size, err)
				}
				if tlog.CheckRecord(proof, c.Size, c.Root, int64(p)-1, es[p%700].Leaf) == nil {
					t.Fatal("another record is proved")
				}
			}
			for _, old := range cs[:i+1] {
				proof, err := TreeProof(dir, old.Size, c.Size)
				if err != nil {
					t.Fatal(err)
				}
				if err := tlog.CheckTree(proof, c.Size, c.Root, old.Size, old.Root); err != nil {
					t.Fatalf("%d to %d: %v", old.Size, c.Size, err)
				}
			}
		}
	}
	t.Run("live", check)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("closed", check)
	if err := os.RemoveAll(filepath.Join(dir, "tile")); err != nil {
		t.Fatal(err)
	}
	t.Run("without tiles", check)
	if _, err := RecordProof(dir, 701, 800); sandbox.KindOf(err) != sandbox.KindInternal {
		t.Errorf("a record that is not there: %v", err)
	}
}

// TestCheckpointFollows: without anybody asking, what is durable is signed soon,
// at Close at the latest; an idle log signs nothing.
func TestCheckpointFollows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := open(t, dir, Options{Interval: 20 * time.Millisecond})
	if c := read(t, l, dir); c.Size != 0 || !strings.HasSuffix(c.Origin, "/log") || !strings.HasPrefix(c.Origin, "firebreak/") {
		t.Fatalf("%+v", c)
	}
	mustRecord(t, l, gate("a"))
	for deadline := time.Now().Add(10 * time.Second); read(t, l, dir).Size != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not signed")
		}
	}
	before, err := os.Stat(filepath.Join(dir, checkpointName))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond)
	signed(t, l)
	if after, err := os.Stat(filepath.Join(dir, checkpointName)); err != nil || !os.SameFile(before, after) {
		t.Error("an idle log is signed again", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{Interval: time.Hour})
	mustRecord(t, l, gate("b"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if c := read(t, l, dir); c.Size != 2 {
		t.Fatalf("Close left the checkpoint at %d", c.Size)
	}
	_, err = l.Checkpoint(t.Context())
	wantKind(t, err, sandbox.KindUnavailable)
}

func read(t testing.TB, l *Log, dir string) Checkpoint {
	t.Helper()
	msg, err := ReadCheckpoint(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := OpenCheckpoint(msg, vkey(t, l))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTilesHeal: tiles that are absent, short or wrong are made again when the
// log is opened, and no proof suffers.
func TestTilesHeal(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"absent": os.Remove,
		"short":  func(p string) error { return os.Truncate(p, 100) },
		"zeros":  func(p string) error { return os.WriteFile(p, make([]byte, tileWidth*tlog.HashSize), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(memory(t), "log")
			l, cs := long(t, dir, 700, Options{SegmentBytes: 8 << 10})
			l.Close()
			c := cs[len(cs)-1]
			want := map[string]string{}
			err := filepath.WalkDir(filepath.Join(dir, "tile"), func(p string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(p)
				want[p] = string(b)
				return errors.Join(err, harm(p))
			})
			if err != nil || len(want) != 3 { // two full ones, and the edge
				t.Fatal(len(want), err)
			}
			l = open(t, dir, Options{SegmentBytes: 8 << 10})
			mustRecord(t, l, gate("more"))
			if now := signed(t, l); now.Size != 701 {
				t.Fatal(now)
			}
			for p, b := range want {
				if strings.Contains(p, ".p/") {
					continue // there is a wider one
				}
				if got, err := os.ReadFile(p); err != nil || string(got) != b {
					t.Errorf("%s is not healed: %v", p, err)
				}
			}
			proof, err := TreeProof(dir, c.Size, 701)
			if err != nil || tlog.CheckTree(proof, 701, read(t, l, dir).Root, c.Size, c.Root) != nil {
				t.Error(err)
			}
			if _, err := Verify(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestProofsOutliveExpiry: the root, and proofs of what is left, need nothing
// that has expired.
func TestProofsOutliveExpiry(t *testing.T) {
	dir := filepath.Join(memory(t), "log")
	l, cs := long(t, dir, 700, Options{SegmentBytes: 8 << 10})
	es := all(t, dir)
	list, _ := segments(dir)
	cut := list[len(list)-3]
	old := time.Now().Add(-2 * time.Hour)
	for _, first := range list[:len(list)-3] {
		if err := os.Chtimes(segmentPath(dir, first), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := l.Expire(t.Context(), time.Now().Add(-time.Hour)); err != nil || n != len(list)-3 {
		t.Fatal(n, err)
	}
	for round := range 3 { // again after restarts, the last without what can be derived
		c := signed(t, l)
		for _, p := range []sandbox.Position{cut, cut + 1, 700} {
			proof, err := RecordProof(dir, p, c.Size)
			if err != nil || tlog.CheckRecord(proof, c.Size, c.Root, int64(p)-1, es[p-1].Leaf) != nil {
				t.Fatalf("round %d, record %d: %v", round, p, err)
			}
		}
		for _, o := range cs {
			proof, err := TreeProof(dir, o.Size, c.Size)
			if err != nil || tlog.CheckTree(proof, c.Size, c.Root, o.Size, o.Root) != nil {
				t.Fatalf("round %d, growth from %d: %v", round, o.Size, err)
			}
		}
		if _, err := Verify(dir); err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			for _, name := range []string{linksName, filepath.Join("tile", "8", "1")} {
				if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		l = open(t, dir, Options{SegmentBytes: 8 << 10})
		mustRecord(t, l, gate("more"))
	}
}

// TestLinks: each record of a sandbox names the one before, over segments and
// restarts, until its receipt; with the derived file, with a wrong one, and
// without.
func TestLinks(t *testing.T) {
	dir := filepath.Join(memory(t), "log")
	o := Options{SegmentBytes: 2 << 10}
	names := []sandbox.ID{"a", "b", "", "c"}
	want := map[sandbox.ID]sandbox.Position{}
	check := map[sandbox.Position]sandbox.Position{}
	for round := range 6 {
		l := open(t, dir, o)
		for i := range 60 {
			id := names[i%len(names)]
			r := sandbox.Record{Action: "x", Sandbox: id}
			if id == "b" && i == 41 {
				r.Action = ActionReceipt
			}
			p := mustRecord(t, l, r)
			check[p] = want[id]
			want[id] = p
			if r.Action == ActionReceipt || id == "" {
				delete(want, id)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, linksName)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		switch round {
		case 1:
			err = os.Remove(path)
		case 2:
			err = os.WriteFile(path, b[:len(b)/2], 0o600)
		case 3:
			err = os.WriteFile(path, []byte(strings.Replace(string(b), `"position":`, `"position":1`, 1)), 0o600)
		case 4:
			list, _ := segments(dir)
			f := linksFile{Position: list[len(list)-1] - 1, Hash: strings.Repeat("00", 32)} // of another log
			f.Sum = f.sum()
			err = os.WriteFile(path, fmt.Appendf(nil, `{"position":%d,"hash":"%s","last":null,"sum":"%s"}`, f.Position, f.Hash, f.Sum), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range all(t, dir) {
		if e.Previous != check[e.Position] {
			t.Fatalf("record %d (%s) links to %d, not to %d", e.Position, e.Record.Sandbox, e.Previous, check[e.Position])
		}
	}
}

// TestMonotonic: the wall clock may be set back, the other clock goes on.
func TestMonotonic(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	now := time.Now()
	for _, d := range []time.Duration{0, -24 * time.Hour, time.Hour, -48 * time.Hour} {
		r := gate("a")
		r.Time = now.Add(d)
		mustRecord(t, l, r)
	}
	es := all(t, dir)
	for i, e := range es {
		if e.Boot != bootID() || i > 0 && e.Monotonic <= es[i-1].Monotonic {
			t.Errorf("%d: %v of boot %x", i, e.Monotonic, e.Boot)
		}
	}
	if es[1].Record.Time.After(es[0].Record.Time) {
		t.Error("the wall time is not kept as it was")
	}
	if !slices.IsSortedFunc(es, func(a, b Entry) int { return int(a.Position) - int(b.Position) }) {
		t.Error("order")
	}
}

// FuzzCheckpoint: what is accepted is exactly what is written, but for
// extensions.
func FuzzCheckpoint(f *testing.F) {
	f.Add(Checkpoint{"o", 3, tlog.RecordHash(nil)}.Text())
	f.Add(Checkpoint{"firebreak/00000000/server", 0, tlog.Hash{}}.Text() + "extension\n")
	f.Add("o\n03\nAAAA\n")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCheckpoint(s)
		if err == nil && !strings.HasPrefix(s, c.Text()) {
			t.Fatalf("%q became %q", s, c.Text())
		}
	})
}
