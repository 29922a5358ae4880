package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// contents reads a directory, but for the lock.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" {
			return err
		}
		b, err := os.ReadFile(p)
		m[p] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// refused opens the log in dir, which must be refused with a GapError and stay
// as it is.
func refused(t testing.TB, dir, what string) *GapError {
	t.Helper()
	before := contents(t, dir)
	l, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
	var g *GapError
	if !errors.As(err, &g) {
		if err == nil {
			l.Close()
		}
		t.Fatalf("%s: %v", what, err)
	}
	wantKind(t, err, sandbox.KindConflict)
	if !reflect.DeepEqual(contents(t, dir), before) {
		t.Fatalf("%s: a refused log was changed", what)
	}
	return g
}

// TestTruncatedBelowCheckpoint: with less than was signed, by any number of
// bytes, the log is not opened.
func TestTruncatedBelowCheckpoint(t *testing.T) {
	b, starts := smallLog(t, 3)
	dir := write(t, b)
	c := signAt(t, dir, 2)
	for n := range starts[2] {
		if err := os.WriteFile(segmentPath(dir, 1), b[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		g := refused(t, dir, fmt.Sprint("cut to ", n))
		if g.Size != 2 || g.Root != c.Root || g.Origin != "test" || g.Found >= 2 || n >= starts[1] && g.Found != 1 {
			t.Fatalf("cut to %d: %+v", n, g)
		}
		if _, err := Verify(dir); err == nil {
			t.Fatalf("cut to %d: verified", n)
		}
	}
	if err := os.WriteFile(segmentPath(dir, 1), b[:starts[3]-1], 0o600); err != nil { // within what was not signed
		t.Fatal(err)
	}
	mustRecord(t, open(t, dir, Options{}), gate("goes on"))
}

// TestNotWhatWasSigned: other records, missing files and wrong keys are told
// from a log that is whole.
func TestNotWhatWasSigned(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir, other string) error{
		"last segment of another log": func(t *testing.T, dir, other string) error {
			list, _ := segments(dir)
			b, err := os.ReadFile(segmentPath(other, list[len(list)-1]))
			return errors.Join(err, os.WriteFile(segmentPath(dir, list[len(list)-1]), b, 0o600))
		},
		"all of another log": func(t *testing.T, dir, other string) error {
			b, err := os.ReadFile(filepath.Join(dir, checkpointName))
			err = errors.Join(err, os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(other)))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, checkpointName), b, 0o600))
		},
		"all segments gone": func(t *testing.T, dir, _ string) error {
			list, _ := segments(dir)
			for _, p := range list {
				if err := os.Remove(segmentPath(dir, p)); err != nil {
					return err
				}
			}
			return nil
		},
		"first segment gone": func(t *testing.T, dir, _ string) error {
			return errors.Join(os.RemoveAll(filepath.Join(dir, linksName)), os.Remove(segmentPath(dir, 1)))
		},
		"last segment gone": func(t *testing.T, dir, _ string) error {
			list, _ := segments(dir)
			return os.Remove(segmentPath(dir, list[len(list)-1]))
		},
		"checkpoint gone": func(t *testing.T, dir, _ string) error { return os.Remove(filepath.Join(dir, checkpointName)) },
		"checkpoint cut":  func(t *testing.T, dir, _ string) error { return os.Truncate(filepath.Join(dir, checkpointName), 30) },
		"another key": func(t *testing.T, dir, _ string) error {
			k, err := newKey()
			return errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(dir), "key"), []byte(k.secret+"\n"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			base := memory(t)
			dir, other := filepath.Join(base, "log"), filepath.Join(base, "other")
			o := Options{SegmentBytes: 4 << 10, Origin: "o"}
			l, _ := long(t, dir, 320, o)
			l.Close()
			l, _ = long(t, other, 320, o)
			l.Close()
			if err := harm(t, dir, other); err != nil {
				t.Fatal(err)
			}
			g := refused(t, dir, name)
			aside, err := Acknowledge(t.Context(), dir, "operator", o, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			acknowledged(t, dir, aside, g)
		})
	}
}

// acknowledged checks what Acknowledge leaves.
func acknowledged(t testing.TB, dir, aside string, g *GapError) {
	t.Helper()
	if len(contents(t, aside)) == 0 || !strings.HasPrefix(aside, dir+".gap-") {
		t.Errorf("kept in %s: %d files", aside, len(contents(t, aside)))
	}
	if _, err := os.Lstat(unfinished(dir)); err == nil {
		t.Error("something is unfinished")
	}
	l := open(t, dir, Options{})
	mustRecord(t, l, gate("goes on"))
	c := signed(t, l)
	if c.Size != 2 || !strings.Contains(c.Origin, "/"+filepath.Base(dir)+".") {
		t.Errorf("%+v", c)
	}
	e := all(t, dir)[0].Record
	if e.Action != ActionGap || e.Principal != "operator" || e.Object != g.Origin || e.Detail["signed"] != fmt.Sprint(g.Size) ||
		e.Detail["found"] != fmt.Sprint(g.Found) || e.Detail["aside"] != filepath.Base(aside) {
		t.Errorf("%+v", e)
	}
	l.Close()
	_, err := Acknowledge(context.Background(), dir, "operator", Options{}, slog.New(slog.DiscardHandler))
	wantKind(t, err, sandbox.KindConflict)
}

// TestKeyGone: a signed log is not opened without its key, and is when it is
// back; an operator who has lost it for good can begin anew.
func TestKeyGone(t *testing.T) {
	dir := filepath.Join(memory(t), "log")
	path := filepath.Join(filepath.Dir(dir), "key")
	l, _ := long(t, dir, 3, Options{})
	l.Close()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	_, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
	wantKind(t, err, sandbox.KindNotFound)
	if _, err := os.Lstat(path); err == nil || !reflect.DeepEqual(contents(t, dir), before) {
		t.Error("something was made", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{}).Close()
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, Options{}, slog.New(slog.DiscardHandler))
	wantKind(t, err, sandbox.KindDenied)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Acknowledge(t.Context(), dir, "operator", Options{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{}).Close()
}

// TestOldLogIsSigned: a log of version 1, which nobody signed, is signed as it
// is when it is opened, once, even if its first records had expired.
func TestOldLogIsSigned(t *testing.T) {
	entries := make([]*Entry, 300)
	for i := range entries {
		entries[i] = &Entry{Version: oldVersion, Record: sandbox.Record{Action: "old", Sandbox: "s"}}
		entries[i].Record.Time = gate("").Time
	}
	for _, expired := range []int{0, 10, 256, 270} {
		t.Run(fmt.Sprint(expired, " expired"), func(t *testing.T) {
			var h Head
			entries[299].Record.Action, entries[299].Record.Sandbox, entries[299].Record.Detail = "old", "s", nil
			whole := build(entries...)
			at := headerLen
			for range expired {
				_, hash, n, err := cutFrame(whole[at:])
				if err != nil {
					t.Fatal(err)
				}
				h, at = Head{h.Position + 1, hash}, at+n
			}
			if expired > 0 { // the last record says so, as Expire does
				entries[299].Record.Action, entries[299].Record.Sandbox = "audit.expire", ""
				entries[299].Record.Digest = hex.EncodeToString(h.Hash[:])
				entries[299].Record.Detail = map[string]string{"through": fmt.Sprint(expired)}
			}
			b := build(entries...)
			dir := write(t, b)
			if expired > 0 {
				err := errors.Join(writeExpired(dir, h), os.Remove(segmentPath(dir, 1)),
					os.WriteFile(segmentPath(dir, h.Position+1), append(segmentHeader(h.Position+1, h.Hash), b[at:]...), 0o600))
				if err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				l := open(t, dir, Options{})
				mustRecord(t, l, sandbox.Record{Action: "new", Sandbox: "s"})
				signed(t, l)
				if _, err := Verify(dir); err != nil {
					t.Fatal(err)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			last := sandbox.Position(300)
			if expired > 0 {
				last = 299
			}
			es := all(t, dir)[300-expired:]
			if len(es) != 4 || es[0].Record.Action != "audit.key" || es[0].Record.Detail["through"] != "300" || es[1].Previous != last || es[2].Previous != 302 {
				t.Errorf("%+v", es)
			}
		})
	}
}

// TestOneKeyForMany: logs that are opened at once in a new data directory share
// one key.
func TestOneKeyForMany(t *testing.T) {
	base := memory(t)
	keys := make([]string, 20)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			l, err := Open(filepath.Join(base, fmt.Sprint(i)), Options{}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = l.PublicKey()
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal(keys)
		}
	}
	b, err := os.ReadFile(filepath.Join(base, "key.pub"))
	if err != nil || string(b) != keys[0]+"\n" {
		t.Error(string(b), err)
	}
	if fi, err := os.Stat(filepath.Join(base, "key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Error(fi, err)
	}
	if left, _ := filepath.Glob(filepath.Join(base, ".key*")); len(left) > 0 {
		t.Error(left)
	}
}

// TestRotate: both keys sign the handing over, later checkpoints are the new
// key's, and a log that was closed then goes on with it.
func TestRotate(t *testing.T) {
	base := memory(t)
	dir, other := filepath.Join(base, "log"), filepath.Join(base, "run")
	l, _ := long(t, other, 3, Options{})
	l.Close()
	l, _ = long(t, dir, 5, Options{})
	before := signed(t, l)
	public := []string{l.PublicKey()}
	for range 3 {
		vkey, err := l.Rotate(t.Context(), "operator")
		if err != nil {
			t.Fatal(err)
		}
		if vkey != l.PublicKey() || vkey == public[len(public)-1] {
			t.Error("the key is", vkey)
		}
		public = append(public, vkey)
		if c := read(t, l, dir); c.Origin != before.Origin {
			t.Errorf("%+v", c)
		}
		mustRecord(t, l, gate("more"))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rotated(t, dir, public)
	l = open(t, dir, Options{})
	if l.PublicKey() != public[3] || signed(t, l).Origin != before.Origin {
		t.Error("reopened with", l.PublicKey())
	}
	l = open(t, other, Options{})
	if signed(t, l); l.PublicKey() != public[3] {
		t.Error("the other log has", l.PublicKey())
	}
	if es := all(t, other); es[3].Record.Action != "audit.key" || !strings.HasPrefix(public[0], es[3].Record.Detail["from"]) {
		t.Errorf("%+v", es)
	}
}

// TestRotateAgain: a rotation that came to an end anywhere is finished by the
// next call, in the same process.
func TestRotateAgain(t *testing.T) {
	for i := 1; ; i++ {
		dir := filepath.Join(memory(t), "log")
		l, _ := long(t, dir, 5, Options{})
		first := l.PublicKey()
		done, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			n := 0
			defer failpoint.Intercept(func(name string) {
				if !strings.HasPrefix(name, "audit/rotate") {
					return
				}
				if n++; n == i {
					runtime.Goexit()
				}
			})()
			if _, err := l.Rotate(context.Background(), "operator"); err != nil {
				t.Error(err)
			}
			done = true
		}()
		<-ended
		if done {
			if i < 5 {
				t.Errorf("only %d points", i-1)
			}
			return
		}
		second, err := l.Rotate(t.Context(), "operator")
		if err == nil {
			rotated(t, dir, []string{first, second})
		} else if wantKind(t, err, sandbox.KindConflict); i < 5 { // the key is replaced: only the log does not know
			t.Errorf("point %d: %v", i, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, dir, Options{})
		if err == nil && l.PublicKey() != second {
			t.Errorf("point %d: reopened with %s", i, l.PublicKey())
		}
		signed(t, l)
		if _, err := VerifyLog(dir, VerifyOptions{Key: first}); err != nil {
			t.Errorf("point %d: %v", i, err)
		}
		l.Close()
	}
}

// rotated follows the keys of a log from its first.
func rotated(t testing.TB, dir string, public []string) {
	t.Helper()
	i := 0
	for _, e := range all(t, dir) {
		if e.Record.Action != ActionRotate {
			continue
		}
		msg, err := os.ReadFile(filepath.Join(dir, RotationName(e.Position)))
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range public[i : i+2] {
			v, err := note.NewVerifier(k)
			if err != nil {
				t.Fatal(err)
			}
			c, _, err := OpenCheckpoint(msg, v)
			if err != nil || c.Size != int64(e.Position) {
				t.Errorf("rotation %d, %s: %+v, %v", i, k, c, err)
			}
		}
		if e.Record.Detail["from"] != public[i] || e.Record.Detail["to"] != public[i+1] || e.Record.Principal != "operator" {
			t.Errorf("%+v", e.Record)
		}
		i++
	}
	if i != len(public)-1 {
		t.Errorf("%d rotations, want %d", i, len(public)-1)
	}
}
