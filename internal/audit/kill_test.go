package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const envVictim = "AUDIT_VICTIM" // a directory

// TestVictim is the process that the tests below kill.
func TestVictim(t *testing.T) {
	dir := os.Getenv(envVictim)
	if dir == "" {
		return // it is a test only for its parents
	}
	if dir, ok := strings.CutPrefix(dir, "acknowledge:"); ok {
		if _, err := Acknowledge(context.Background(), dir, "operator", Options{}, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		return
	}
	l, err := Open(dir, Options{SegmentBytes: 8 << 10, Interval: time.Millisecond}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range victimWriters {
		writers.Go(func() {
			for i := range 6 {
				object := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				r := sandbox.Record{Tenant: "t", Sandbox: sandbox.ID(fmt.Sprint("s", w%5)), Principal: "p", Action: "test", Object: object, Outcome: sandbox.OutcomeDone}
				p, err := l.Record(context.Background(), r)
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Printf("promised %d %s\n", p, object)
			}
		})
	}
	if _, err := l.Rotate(context.Background(), "operator"); err != nil {
		t.Error(err)
	}
	writers.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

const victimWriters = 64

// victim runs it and returns what it was promised, object by position, and
// whether it was killed.
func victim(t *testing.T, dir, point string) (promised map[sandbox.Position]string, hits []string, killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), envVictim+"="+dir, failpoint.Env+"="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if killed = errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL; err != nil && !killed {
		t.Fatalf("%s: %v\n%s", point, err, out)
	}
	promised = map[sandbox.Position]string{}
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) == 3 && f[0] == "promised" {
			p, _ := strconv.ParseUint(f[1], 10, 64)
			promised[sandbox.Position(p)] = f[2]
		}
		if len(f) == 2 && f[0] == "failpoint:" {
			hits = append(hits, f[1])
		}
	}
	return promised, hits, killed
}

// TestKilledAnywhere kills a log with 64 writers at each step: of making a key,
// of a batch of records, a new segment, a tile, a checkpoint, a rotation of the
// key, and of the removal of a torn end. What was promised is there, what was
// signed is a prefix, the chain is whole, and the log goes on.
func TestKilledAnywhere(t *testing.T) {
	base := memory(t)
	_, hits, _ := victim(t, filepath.Join(base, "count", "audit"), "count")
	times := map[string]int{}
	for _, h := range hits {
		name, n, _ := strings.Cut(h, ":")
		times[name], _ = strconv.Atoi(n)
	}
	for _, p := range []string{"before-write", "after-write", "after-sync", "after-create", "after-links", "after-rotate", "after-tile", "after-partial",
		"replacement-written", "replaced", "after-checkpoint", "key-written", "key-linked",
		"rotate-made", "rotate-recorded", "rotate-signed", "rotate-remembered", "rotate-replaced", "rotate-installed"} {
		if times["audit/"+p] == 0 {
			t.Errorf("%s is not among %v", p, times)
		}
	}
	crashes, promises := 0, 0
	for name, most := range times {
		// How often a point is hit depends on how the writers meet: what a
		// later hit finds is another batch, not another step.
		for _, n := range slices.Compact([]int{1, min(2, most), max(most/2, 1), max(most-2, 1)}) {
			dir := filepath.Join(base, strings.ReplaceAll(name, "/", "-"), fmt.Sprint(n), "audit")
			promised, _, killed := victim(t, dir, fmt.Sprint(name, ":", n))
			if killed {
				crashes++
			} else if n == 1 {
				t.Errorf("%s was not hit", name)
			}
			promises += len(promised)
			outlives(t, dir, fmt.Sprint(name, ":", n), promised)
			if n != 1 {
				continue
			}
			for _, again := range []string{"audit/after-aside", "audit/after-cut"} { // of a torn end
				tear(t, dir)
				if _, _, killed := victim(t, dir, again); !killed {
					t.Error(again, "was not hit")
				}
				outlives(t, dir, name+", then "+again, promised)
			}
		}
	}
	t.Logf("%d crashes, %d promised records", crashes, promises)
}

// TestAcknowledgeKilled: killed anywhere, either the log is refused still, or
// the new one is in place; nothing of the old one is lost.
func TestAcknowledgeKilled(t *testing.T) {
	base := memory(t)
	prepare := func(name string) (dir string, evidence string, g *GapError) {
		dir = filepath.Join(base, strings.ReplaceAll(name, "/", "-"), "log")
		l, _ := long(t, dir, 320, Options{SegmentBytes: 4 << 10})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		list, _ := segments(dir)
		if err := os.Remove(segmentPath(dir, list[len(list)-1])); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(segmentPath(dir, 1))
		if err != nil {
			t.Fatal(err)
		}
		return dir, string(b), refused(t, dir, "prepared")
	}
	dir, _, _ := prepare("count")
	_, hits, _ := victim(t, "acknowledge:"+dir, "count")
	if !slices.Contains(hits, "audit/acknowledge-made:1") || !slices.Contains(hits, "audit/acknowledge-exchanged:1") {
		t.Fatal(hits)
	}
	for _, h := range hits {
		dir, evidence, g := prepare(h)
		if _, _, killed := victim(t, "acknowledge:"+dir, h); !killed {
			t.Fatal(h, "was not hit")
		}
		if l, err := Open(dir, Options{}, slog.New(slog.DiscardHandler)); err == nil {
			l.Close()
		} else {
			refused(t, dir, h)
			if _, err := Acknowledge(context.Background(), dir, "operator", Options{}, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(h, err)
			}
		}
		aside, err := filepath.Glob(dir + ".gap-*")
		if err != nil || len(aside) != 1 {
			t.Fatal(h, aside, err)
		}
		if b, err := os.ReadFile(segmentPath(aside[0], 1)); err != nil || string(b) != evidence {
			t.Errorf("%s: the old log is not what it was: %v", h, err)
		}
		acknowledged(t, dir, aside[0], g)
	}
	t.Logf("%d crashes", len(hits))
}

// outlives reopens the log, checks it and closes it again.
func outlives(t *testing.T, dir, what string, promised map[sandbox.Position]string) {
	t.Helper()
	var was Checkpoint
	if msg, err := ReadCheckpoint(dir); err == nil { // else it died before there was one
		if was, err = checkpointOf(msg); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	l, err := Open(dir, Options{SegmentBytes: 8 << 10}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	now := signed(t, l)
	if h, err := Hashes(dir, was.Size); err != nil {
		t.Fatal(err)
	} else if root, err := tlog.TreeHash(was.Size, h); err != nil || was.Origin != "" && (root != was.Root || now.Size < was.Size || now.Origin != was.Origin) {
		t.Errorf("%s: %+v was signed, and now %+v, %v", what, was, now, err)
	}
	if _, err := l.Record(context.Background(), sandbox.Record{Action: "after"}); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if _, err := VerifyLog(dir, VerifyOptions{Key: l.PublicKey()}); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	found := 0
	for e, err := range Scan(dir, 1) {
		if err != nil {
			t.Fatal(err)
		}
		if want, ok := promised[e.Position]; ok && e.Record.Object == want {
			found++
		}
	}
	if found != len(promised) {
		t.Errorf("%s: %d of %d promised records are there", what, found, len(promised))
	}
}

// tear writes the beginning of a record behind the log, as a write cut short does.
func tear(t *testing.T, dir string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	f, err := os.OpenFile(logs[len(logs)-1], os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte{0, 0, 0, 99, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
}
