package audit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const childEnv = "FIREBREAK_AUDIT_TEST_CHILD"

// child records as fast as it can and prints each acknowledged position with
// its action, until it is killed.
func child() int {
	l, err := Open(os.Getenv(childEnv), Options{SegmentBytes: 64 << 10}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	var mu sync.Mutex
	for w := range 16 {
		go func() {
			for i := 0; ; i++ {
				r := sandbox.Record{Action: fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i), Object: strings.Repeat("x", i%700)}
				p, err := l.Record(context.Background(), r)
				mu.Lock()
				if err != nil {
					fmt.Println("error", err)
				} else {
					fmt.Println(p, r.Action)
				}
				mu.Unlock()
			}
		}()
	}
	select {}
}

func TestKill9LosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	acked := map[sandbox.Position]string{}
	for round := range 5 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// From the first acknowledgement on, so that a slow machine tests too.
		kill := time.NewTimer(time.Hour)
		var killer sync.WaitGroup
		killer.Go(func() { <-kill.C; cmd.Process.Kill() })
		in := bufio.NewReader(out)
		for first := true; ; first = false {
			line, err := in.ReadString('\n')
			if first {
				kill.Reset(time.Duration(40+37*round) * time.Millisecond)
			}
			if err != nil {
				break // the line the kill cut short is not an acknowledgement
			}
			p, action, _ := strings.Cut(strings.TrimSpace(line), " ")
			n, err := strconv.ParseUint(p, 10, 64)
			if err != nil {
				t.Error(line)
			}
			acked[sandbox.Position(n)] = action
		}
		kill.Reset(0) // in case its output ended some other way
		killer.Wait()
		cmd.Wait() // killed: always an error

		l := open(t, dir, Options{}) // repairs the tail
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		got := map[sandbox.Position]string{}
		for _, e := range all(t, dir) {
			got[e.Position] = e.Record.Action
		}
		for p, a := range acked {
			if got[p] != a {
				t.Fatalf("round %d: position %d was acknowledged for %q and holds %q", round, p, a, got[p])
			}
		}
		if h, err := Verify(dir); err != nil || h != l.Head() || int(h.Position) != len(got) {
			t.Fatal(h, len(got), err)
		}
	}
	if len(acked) < 100 {
		t.Fatalf("only %d records were acknowledged: too few to mean anything", len(acked))
	}
	list, _ := segments(dir)
	t.Logf("%d acknowledged records, all there, in %d segments", len(acked), len(list))
}

// smallLog writes n records and returns the bytes of its one segment and the
// offset at which each record begins.
func smallLog(t *testing.T, n int) (b []byte, starts []int) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	for i := range n {
		mustRecord(t, l, gate(fmt.Sprint("action", i)))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	for off := headerLen; off < len(b); {
		starts = append(starts, off)
		_, _, size, err := cutFrame(b[off:])
		if err != nil {
			t.Fatal(err)
		}
		off += size
	}
	return b, append(starts, len(b))
}

// memory is a directory in memory where there is one: for tests that make many
// logs, and are not about disks.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "firebreak-audit-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// write makes a log of one segment.
func write(t *testing.T, b []byte) (dir string) {
	t.Helper()
	dir = filepath.Join(memory(t), "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segmentPath(dir, 1), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Cut at any byte, the log opens with every whole record, goes on, and tells
// of the repair.
func TestTruncatedAnywhere(t *testing.T) {
	b, starts := smallLog(t, 3)
	for n := range len(b) + 1 {
		dir := write(t, b[:n])
		signAt(t, dir, 0)
		whole := 0
		for _, s := range starts[1:] {
			if n >= s {
				whole++
			}
		}
		torn := n > headerLen && len(trimZeros(b[starts[whole]:n])) > 0 // zeros are room
		l, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("cut to %d: %v", n, err)
		}
		mustRecord(t, l, gate("after"))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		want := whole + 1
		if torn {
			want++
		}
		e := all(t, dir)
		if len(e) != want || e[len(e)-1].Record.Action != "after" || (torn && e[whole].Record.Action != "audit.repair") {
			t.Fatalf("cut to %d: %d records, want %d", n, len(e), want)
		}
		cut, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%020d.cut", whole+1)))
		if torn && (err != nil || string(cut) != string(b[starts[whole]:n])) {
			t.Fatalf("cut to %d: what was removed is not kept: %v", n, err)
		}
	}
}

// A changed byte anywhere is found by Verify. Open refuses it; except in the
// last record, if that was not signed: then it cannot be told from an
// interrupted write.
func TestEveryBitFlip(t *testing.T) {
	for _, signed := range []int64{0, 2, 3} {
		t.Run(fmt.Sprint("signed ", signed), func(t *testing.T) { flipEveryBit(t, signed) })
	}
}

func flipEveryBit(t *testing.T, signed int64) {
	b, starts := smallLog(t, 3)
	last := starts[len(starts)-2]
	if signed == 3 {
		last = len(b)
	}
	for i := range b {
		for _, bit := range []byte{1, 0x80} {
			c := append([]byte(nil), b...)
			c[i] ^= bit
			dir := write(t, b)
			signAt(t, dir, signed)
			if err := os.WriteFile(segmentPath(dir, 1), c, 0o600); err != nil {
				t.Fatal(err)
			}
			h, err := Verify(dir)
			if err == nil {
				// Only a length that now reaches beyond the end of the file
				// looks like an interrupted write.
				if i < last || i >= last+4 || h.Position != 2 {
					t.Fatalf("byte %d: Verify says %v", i, h.Position)
				}
			} else {
				wantKind(t, err, sandbox.KindInternal)
			}
			l, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
			if i < last {
				var g *GapError
				if end := starts[signed]; signed > 0 && i < end && !errors.As(err, &g) {
					t.Fatalf("byte %d: %v", i, err)
				} else if signed == 0 || i >= end {
					wantKind(t, err, sandbox.KindInternal)
				}
				if now, err := os.ReadFile(segmentPath(dir, 1)); err != nil || string(now) != string(c) {
					t.Fatalf("byte %d: a refused log was changed", i)
				}
				continue
			}
			if err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if e := all(t, dir); len(e) != 3 || e[2].Record.Action != "audit.repair" {
				t.Fatalf("byte %d: %d records", i, len(e))
			}
		}
	}
}

// Segments taken away, swapped or put in from elsewhere are found.
func TestSegmentTampering(t *testing.T) {
	build := func() (string, []sandbox.Position) {
		dir := t.TempDir()
		l := open(t, dir, Options{SegmentBytes: 200})
		for i := range 10 {
			mustRecord(t, l, gate(fmt.Sprint(i)))
		}
		l.Close()
		list, _ := segments(dir)
		if len(list) < 4 {
			t.Fatal(list)
		}
		return dir, list
	}
	for name, tamper := range map[string]func(dir string, list []sandbox.Position) error{
		"first removed":  func(dir string, l []sandbox.Position) error { return os.Remove(segmentPath(dir, l[0])) },
		"middle removed": func(dir string, l []sandbox.Position) error { return os.Remove(segmentPath(dir, l[1])) },
		"middle cut short": func(dir string, l []sandbox.Position) error {
			fi, err := os.Stat(segmentPath(dir, l[1]))
			if err != nil {
				return err
			}
			return os.Truncate(segmentPath(dir, l[1]), fi.Size()-1)
		},
		"middle emptied": func(dir string, l []sandbox.Position) error {
			return os.Truncate(segmentPath(dir, l[1]), int64(headerLen))
		},
		"renamed": func(dir string, l []sandbox.Position) error {
			return os.Rename(segmentPath(dir, l[1]), segmentPath(dir, l[1]+1))
		},
		"from another log": func(dir string, l []sandbox.Position) error {
			other := t.TempDir()
			o := open(t, other, Options{SegmentBytes: 200})
			for i := range 10 {
				mustRecord(t, o, gate(fmt.Sprint(9-i)))
			}
			o.Close()
			return os.Rename(segmentPath(other, l[2]), segmentPath(dir, l[2]))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, list := build()
			if _, err := Verify(dir); err != nil {
				t.Fatal(err)
			}
			if err := tamper(dir, list); err != nil {
				t.Fatal(err)
			}
			_, err := Verify(dir)
			wantKind(t, err, sandbox.KindInternal)
		})
	}
}

// broken is a disk that fails on demand.
type broken struct {
	file
	mu    *sync.Mutex
	write *error // guarded by mu; half of the bytes are written before it
	sync  *error // guarded by mu
}

func (b broken) WriteAt(p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if *b.write != nil {
		n, _ := b.file.WriteAt(p[:len(p)/2], off)
		return n, *b.write
	}
	return b.file.WriteAt(p, off)
}

func (b broken) Sync() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if *b.sync != nil {
		return *b.sync
	}
	return b.file.Sync()
}

func TestFailedFlushIsFatal(t *testing.T) {
	for name, kind := range map[string]string{"sync": "sync", "write": "write"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var mu sync.Mutex
			var werr, serr error
			l := open(t, dir, Options{wrap: func(f file) file { return broken{f, &mu, &werr, &serr} }})
			mustRecord(t, l, gate("before"))
			set := func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if kind == "sync" {
					serr = err
				} else {
					werr = err
				}
			}
			set(syscall.EIO)
			ctx := context.Background()
			_, err := l.Record(ctx, gate("lost"))
			wantKind(t, err, sandbox.KindUnavailable)
			set(nil) // that the disk works again must not matter
			_, err = l.Record(ctx, gate("never"))
			wantKind(t, err, sandbox.KindUnavailable)
			flow := gate("never")
			flow.Class = sandbox.Flow
			_, err = l.Record(ctx, flow)
			wantKind(t, err, sandbox.KindUnavailable)
			if err := l.Close(); err == nil || l.Head().Position != 1 {
				t.Fatal("Close hides that a record was lost:", err, l.Head().Position)
			}
			for _, e := range all(t, dir) {
				if e.Record.Action == "never" {
					t.Fatal("something was written after the failure")
				}
			}
			mustRecord(t, open(t, dir, Options{}), gate("after the restart"))
		})
	}
}

// A full disk refuses, loses no position, and is over when there is space.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	var werr, serr error
	l := open(t, dir, Options{SegmentBytes: 400, wrap: func(f file) file { return broken{f, &mu, &werr, &serr} }})
	ctx := context.Background()
	set := func(err error) { mu.Lock(); werr = err; mu.Unlock() }
	for i := range 3 { // the third round meets a rotation
		mustRecord(t, l, gate(fmt.Sprint("before", i)))
		set(syscall.ENOSPC)
		_, err := l.Record(ctx, gate(fmt.Sprint("kept", i)))
		wantKind(t, err, sandbox.KindNoSpace)
		_, err = l.Record(ctx, gate("refused"))
		wantKind(t, err, sandbox.KindNoSpace)
		set(nil)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err = l.Record(ctx, gate(fmt.Sprint("after", i))); err == nil {
				break
			}
			wantKind(t, err, sandbox.KindNoSpace)
			if time.Now().After(deadline) {
				t.Fatal("it never recovered")
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all(t, dir) {
		got = append(got, e.Record.Action)
	}
	// One that is refused before it has a position, because the room ahead could
	// not be had, is not kept.
	if s := strings.Join(got, " "); !regexp.MustCompile(`^before0( kept0)? after0 before1( kept1)? after1 before2( kept2)? after2$`).MatchString(s) || !strings.Contains(s, "kept") {
		t.Fatal(s)
	}
	// Closed while full, it says what was lost.
	l = open(t, dir, Options{wrap: func(f file) file { return broken{f, &mu, &werr, &serr} }})
	set(syscall.ENOSPC)
	_, err := l.Record(ctx, gate("lost"))
	wantKind(t, err, sandbox.KindNoSpace)
	if err := l.Close(); err == nil {
		t.Fatal("Close hides that a record was lost")
	}
}

// slow is a disk whose flush takes until it is told.
type slow struct {
	file
	gate chan struct{}
}

func (s slow) Sync() error { <-s.gate; return s.file.Sync() }

// Flow records do not wait for the disk until the lag bound, in number or in
// time, and then do.
func TestLagBound(t *testing.T) {
	for name, o := range map[string]Options{
		"count": {MaxLag: 50, MaxLagTime: time.Hour},
		"time":  {MaxLag: 1 << 30, MaxLagTime: 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			gateCh := make(chan struct{}, 1)
			gateCh <- struct{}{} // the header of the first segment
			o.wrap = func(f file) file { return slow{f, gateCh} }
			l := open(t, t.TempDir(), o)
			flow := gate("flow")
			flow.Class = sandbox.Flow
			accepted := 0
			var err error
			for err == nil && accepted < 1e6 {
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				_, err = l.Record(ctx, flow)
				cancel()
				if err == nil {
					accepted++
				}
				if name == "time" {
					time.Sleep(time.Millisecond)
				}
			}
			wantKind(t, err, sandbox.KindTimeout)
			if name == "count" && accepted != 50 {
				t.Errorf("%d records were accepted, the bound is 50", accepted)
			}
			if name == "time" && (accepted < 1 || accepted > 200) {
				t.Errorf("%d records were accepted in 100 ms at 1 ms each", accepted)
			}
			close(gateCh)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if n := int(l.Head().Position); n != accepted+1 {
				t.Errorf("%d records became durable of %d", n, accepted+1)
			}
		})
	}
}

var _ io.Closer = (*Reader)(nil)

// TestRoom: zeros behind the records are no damage, and anything else there is
// what an interrupted write left.
func TestRoom(t *testing.T) {
	b, starts := smallLog(t, 3)
	for name, c := range map[string]struct {
		tail   []byte
		repair bool
	}{
		"little":       {make([]byte, 3), false},
		"much":         {make([]byte, 100_000), false},
		"one byte":     {append(make([]byte, 99), 1), true},
		"far away":     {append(make([]byte, 70_000), 1, 2, 3), true},
		"a beginning":  {append(b[starts[1]:starts[1]+60:starts[1]+60], make([]byte, 9000)...), true},
		"and a record": {append(make([]byte, 8192), b[starts[2]:]...), true}, // an old one
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, append(b[:len(b):len(b)], c.tail...))
			signAt(t, dir, 3)
			if h, err := Verify(dir); err != nil || h.Position != 3 {
				t.Fatal(h, err)
			}
			files, h, err := Prefix(dir)
			if err != nil || h.Position != 3 || files[1].Size != int64(len(b)) {
				t.Fatal(files, h, err)
			}
			l := open(t, dir, Options{})
			mustRecord(t, l, gate("after"))
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			e := all(t, dir)
			if repaired := len(e) == 5 && e[3].Record.Action == "audit.repair"; repaired != c.repair {
				t.Errorf("%d records, the fourth is %s", len(e), e[3].Record.Action)
			}
		})
	}
}

// TestTornWithin: when the machine dies within a write, some sectors of it may
// be there and earlier ones not. That is cut off, kept and recorded; a record
// that was changed is not taken for it.
func TestTornWithin(t *testing.T) {
	dir := filepath.Join(memory(t), "log")
	l := open(t, dir, Options{})
	mustRecord(t, l, gate("whole"))
	signed(t, l)
	for range 8 {
		mustRecord(t, l, sandbox.Record{Action: "batch", Object: strings.Repeat("x", 300)})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	for at := 2 * sector; at+sector <= len(b)-sector; at += sector {
		for _, kind := range []string{"not written", "changed"} {
			c := append([]byte(nil), b...)
			whole := 0
			for off := headerLen; off < at; whole++ {
				_, _, n, _ := cutFrame(b[off:])
				if off+n > at {
					break
				}
				off += n
			}
			if kind == "changed" {
				c[at+7] ^= 0x40
			} else {
				clear(c[at : at+sector])
			}
			dir := write(t, b)
			signAt(t, dir, 1)
			if err := os.WriteFile(segmentPath(dir, 1), append(c, make([]byte, 5000)...), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
			if kind == "changed" {
				wantKind(t, err, sandbox.KindInternal)
				continue
			}
			if err != nil {
				t.Fatalf("sector at %d: %v", at, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			e := all(t, dir)
			r := e[len(e)-1].Record
			if len(e) != whole+1 || r.Action != "audit.repair" {
				t.Fatalf("sector at %d: %d records, want %d, then %s", at, len(e), whole, r.Action)
			}
			cut, err := os.ReadFile(filepath.Join(dir, r.Object))
			if sum := sha256.Sum256(cut); err != nil || hex.EncodeToString(sum[:]) != r.Digest || fmt.Sprint(len(cut)) != r.Detail["bytes"] {
				t.Errorf("what was cut off: %d bytes, %v, %+v", len(cut), err, r)
			}
		}
	}
}

// TestCheckpointFails: without space for a checkpoint only ends are recorded,
// until there is; any other failure ends everything, like that of a flush.
func TestCheckpointFails(t *testing.T) {
	for name, fail := range map[string]error{"full": syscall.ENOSPC, "quota": syscall.EDQUOT, "broken": syscall.EIO} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(memory(t), "log")
			var mu sync.Mutex
			var err error
			set := func(e error) { mu.Lock(); err = e; mu.Unlock() }
			o := Options{Interval: time.Millisecond}
			o.write.checkpoint = func(path string, b []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					return &os.PathError{Op: "write", Path: path, Err: err}
				}
				return swapFile(path, b)
			}
			l := open(t, dir, o)
			mustRecord(t, l, gate("before"))
			signed(t, l)
			set(fail)
			mustRecord(t, l, gate("durable, not signed"))
			until(t, func() bool { return l.Err() != nil })
			_, e := l.Record(t.Context(), sandbox.Record{Action: "begins", Outcome: sandbox.OutcomeAllowed})
			_, ce := l.Checkpoint(t.Context())
			if name == "broken" {
				wantKind(t, e, sandbox.KindUnavailable)
				wantKind(t, ce, sandbox.KindUnavailable)
				<-l.Failed()
				if _, e := l.Record(t.Context(), sandbox.Record{Action: "ends", Outcome: sandbox.OutcomeDone}); e == nil {
					t.Error("recorded after the end")
				}
				set(nil)
				if e := l.Close(); e == nil {
					t.Error("Close hides it")
				}
				if c := read(t, l, dir); c.Size != 1 {
					t.Errorf("signed after the end: %+v", c)
				}
			} else {
				wantKind(t, e, sandbox.KindNoSpace)
				wantKind(t, ce, sandbox.KindNoSpace)
				if strings.Contains(e.Error(), dir) {
					t.Error("it names the host's files:", e)
				}
				mustRecord(t, l, sandbox.Record{Action: "ends", Outcome: sandbox.OutcomeDone})
				set(nil)
				until(t, func() bool { return l.Err() == nil })
				mustRecord(t, l, gate("begins"))
				set(fail)
				mustRecord(t, l, gate("last"))
				if e := l.Close(); e == nil {
					t.Error("Close hides that the end is not signed")
				}
				set(nil)
			}
			l = open(t, dir, Options{})
			signed(t, l)
			if _, err := Verify(dir); err != nil {
				t.Error(err)
			}
		})
	}
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came")
		}
	}
}
