package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
)

// records reads the log in dir.
func records(t *testing.T, dir string) (all []audit.Entry) {
	t.Helper()
	for e, err := range audit.Scan(dir, 1) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func actionsOf(all []audit.Entry) (names []string) {
	for _, e := range all {
		names = append(names, e.Record.Action)
	}
	return names
}

// verified checks a whole log with the data directory's key.
func (w *world) verified(dir string) audit.Report {
	w.t.Helper()
	key, err := os.ReadFile(filepath.Join(w.dir, "data", "audit", "key.pub"))
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := audit.VerifyLog(dir, audit.VerifyOptions{Key: strings.TrimSpace(string(key))})
	if err != nil {
		w.t.Errorf("%s: %v", dir, err)
	}
	return r
}

func (w *world) serverLog() string { return filepath.Join(w.dir, "data", "audit", "server") }

// TestServerRecordsItself: a server's log begins with its start and ends, signed
// to the last record, with its stop.
func TestServerRecordsItself(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	s.do("GET", "/v1/sandboxes", "", "Authorization", "Bearer nonsense")
	s.stop()
	all := records(t, w.serverLog())
	names := actionsOf(all)
	if !slices.Equal(names[:3], []string{"daemon.start", "quota.set", "key.create"}) || !slices.Contains(names, "auth.failure") || names[len(names)-1] != "daemon.stop" {
		t.Fatalf("%q", names)
	}
	start := all[0].Record
	for _, k := range []string{"version", "config", "pid", "backends"} {
		if start.Detail[k] == "" {
			t.Errorf("daemon.start does not say %s: %v", k, start.Detail)
		}
	}
	if all[0].Boot == [16]byte{} || all[0].Monotonic == 0 {
		t.Error("daemon.start does not say which boot")
	}
	if r := w.verified(w.serverLog()); r.Signed != int64(len(all)) || r.Unsigned() != 0 {
		t.Errorf("%d of %d records are signed", r.Signed, len(all))
	}
	// Another configuration shows.
	s = w.serve("--tenant-sandboxes", "7")
	s.stop()
	var limits []string
	var digests []string
	for _, e := range records(t, w.serverLog()) {
		switch e.Record.Action {
		case "quota.set":
			limits = append(limits, e.Record.Detail["sandboxes"])
		case "daemon.start":
			digests = append(digests, e.Record.Detail["config"])
		}
	}
	if !slices.Equal(limits, []string{"200", "7"}) || len(digests) != 2 || digests[0] == digests[1] {
		t.Errorf("quotas %q, configurations %q", limits, digests)
	}
}

// TestGapIsRefused: a log that was rolled back below its last checkpoint is not
// served on. Runs without the server go on, and so does the server once somebody
// has acknowledged.
func TestGapIsRefused(t *testing.T) {
	w := newWorld(t)
	w.serve().stop()
	dir := w.serverLog()
	segments, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	old := map[string][]byte{}
	for _, f := range segments {
		if old[f], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	w.serve().stop()
	for _, f := range segments {
		if err := os.WriteFile(f, old[f], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, dir)
	for range 2 {
		r := w.run("", "serve", "--listen", "127.0.0.1:0", "--socket", filepath.Join(w.dir, "s.sock"))
		if r.code != 125 || !strings.Contains(r.stderr, "not what was signed") || !strings.Contains(r.stderr, "firebreak audit acknowledge") {
			t.Errorf("serve over a gap: exit code %d\n%s", r.code, r.stderr)
		}
	}
	if after := tree(t, dir); after != before {
		t.Errorf("refusing changed the evidence:\n%s\nwas\n%s", after, before)
	}
	if r := w.run("", "run", "-c", "print(6*7)"); r.code != 0 || r.stdout != "42\n" {
		t.Errorf("run beside a refused log: %d %q %s", r.code, r.stdout, r.stderr)
	}
	aside, err := audit.Acknowledge(t.Context(), dir, "uid:0", audit.Options{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if kept := tree(t, aside); !strings.Contains(kept, "checkpoint") {
		t.Errorf("the old log was not kept: %s", kept)
	}
	w.serve().stop()
	names := actionsOf(records(t, dir))
	if names[0] != "audit.gap" || !slices.Contains(names, "daemon.start") {
		t.Errorf("%q", names)
	}
	w.verified(dir)
}

// tree lists the files below dir that hold evidence, with their contents' sizes
// and times.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "lock" {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil {
			b.WriteString(strings.TrimPrefix(path, dir) + " " + string(data) + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestRunLeavesEvidence: each run without a server leaves a small log that
// verifies with the data directory's key, and old ones are removed by later runs.
func TestRunLeavesEvidence(t *testing.T) {
	w := newWorld(t)
	logs := func() []string {
		dirs, err := filepath.Glob(filepath.Join(w.dir, "data", "audit", "run-*"))
		if err != nil {
			t.Fatal(err)
		}
		return dirs
	}
	r := w.run("", "run", "--json", "-c", "print(6*7)")
	var out struct {
		Audit   struct{ First, Last int }
		Receipt map[string]any
	}
	if err := json.Unmarshal([]byte(r.stdout), &out); err != nil || out.Audit.First != 1 {
		t.Fatalf("%v %s %s", err, r.stdout, r.stderr)
	}
	first := logs()
	if len(first) != 1 {
		t.Fatalf("%q", first)
	}
	all := records(t, first[0])
	names := actionsOf(all)
	if names[0] != "run.create" || names[len(names)-1] != "sandbox.receipt" || len(all) != out.Audit.Last {
		t.Errorf("%d records %q, of which the run says %+v", len(all), names, out.Audit)
	}
	if got := canonicalDigest(t, out.Receipt); got != all[len(all)-1].Record.Digest {
		t.Errorf("the receipt of --json has the digest %s, the record %s", got, all[len(all)-1].Record.Digest)
	}
	if rep := w.verified(first[0]); rep.Signed != int64(len(all)) {
		t.Errorf("%d of %d records are signed", rep.Signed, len(all))
	}
	if size := diskUse(t, first[0]); size > 256<<10 {
		t.Errorf("the log of one run takes %d bytes", size)
	}
	age := func(dir string, by time.Duration) {
		then := time.Now().Add(-by)
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				err = os.Chtimes(path, then, then)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	age(first[0], 89*24*time.Hour)
	if w.run("", "run", "-c", "1"); len(logs()) != 2 {
		t.Errorf("a log of 89 days was removed: %q", logs())
	}
	age(first[0], 91*24*time.Hour)
	forever := *w
	forever.env = append(slices.Clone(w.env), "FIREBREAK_RETAIN_AUDIT=forever")
	if forever.run("", "run", "-c", "1"); len(logs()) != 3 {
		t.Errorf("a log that is kept for ever was removed: %q", logs())
	}
	// So it looks while a neighbour begins, before it has its lock.
	beginning := filepath.Join(w.dir, "data", "audit", "run-20261122t000000-abcdefgh")
	if err := os.Mkdir(beginning, 0o700); err != nil {
		t.Fatal(err)
	}
	w.run("", "run", "-c", "import time; time.sleep(1)")
	if err := os.Remove(beginning); err != nil {
		t.Errorf("the log of a run that begins was removed: %v", err)
	}
	now := logs()
	if len(now) != 3 || slices.Contains(now, first[0]) {
		t.Fatalf("the log of 91 days is still there: %q", now)
	}
	expired := false
	for _, log := range now { // two that begin in one second have no order
		for _, e := range records(t, log) {
			expired = expired || e.Record.Action == "audit.expire" && e.Record.Object == filepath.Base(first[0])
		}
	}
	if !expired {
		t.Error("its removal is not recorded by who removed it")
	}
}

// TestReapOverAGap: a run that was killed and whose evidence was then cut below
// its checkpoint is destroyed all the same, on record.
func TestReapOverAGap(t *testing.T) {
	w := newWorld(t)
	cmd := w.command("run", "-c", "import time; time.sleep(600)")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var dir string
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		dirs, _ := filepath.Glob(filepath.Join(w.dir, "data", "audit", "run-*"))
		if len(dirs) == 1 {
			dir = dirs[0]
			if note, err := audit.ReadCheckpoint(dir); err == nil && strings.Contains(strings.Join(actionsOf(records(t, dir)), " "), "process.exec") {
				text, _, _ := strings.Cut(string(note), "\n\n")
				if cp, err := audit.ParseCheckpoint(text + "\n"); err == nil && cp.Size >= 3 {
					break
				}
			}
		}
		if time.Now().After(end) {
			t.Fatal("the run's log is not signed")
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	segments, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	if err := os.Truncate(segments[0], 60); err != nil { // a header and a bit
		t.Fatal(err)
	}
	cut := tree(t, dir)
	reaped := dir + "-reaped"
	for end := time.Now().Add(time.Minute); ; {
		if r := w.run("", "run", "-c", "import time; time.sleep(1)"); r.code != 0 {
			t.Fatalf("%d %s", r.code, r.stderr)
		}
		left, err := os.ReadDir(filepath.Join(w.dir, "data", "run"))
		if err == nil && len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("what the dead run left is still there: %v, %v", left, err)
		}
	}
	names := actionsOf(records(t, reaped))
	if !slices.Contains(names, "sandbox.receipt") || !slices.Contains(names, "sandbox.destroy") && !slices.Contains(names, "sandbox.orphan") {
		t.Errorf("%q", names)
	}
	w.verified(reaped)
	if tree(t, dir) != cut {
		t.Error("the evidence that was cut was touched")
	}
}

// canonicalDigest is what docs/guides/audit-records.md tells others to compute.
func canonicalDigest(t *testing.T, receipt map[string]any) string {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(receipt); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(bytes.TrimSpace(b.Bytes())))
}

// diskUse is what a directory's files take of the disk.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			n += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAuditOverHTTP: what `tail -f` and a verifier elsewhere ask a server for.
func TestAuditOverHTTP(t *testing.T) {
	s := newWorld(t).serve()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/v1/audit/entries/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.key)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func(action string) {
		t.Helper()
		for lines.Scan() {
			var e struct{ Action string }
			if json.Unmarshal(lines.Bytes(), &e) == nil && e.Action == action {
				return
			}
		}
		t.Fatalf("no %s arrives: %v", action, lines.Err())
	}
	next("daemon.start")
	_, body, _ := s.do("POST", "/v1/sandboxes", "{}")
	var sb struct{ ID string }
	json.Unmarshal([]byte(body), &sb)
	next("sandbox.create")
	s.do("DELETE", "/v1/sandboxes/"+sb.ID, "")
	next("sandbox.receipt")
	code, file, _ := s.do("GET", "/v1/audit/evidence?sandbox_id="+sb.ID, "", "Accept", "text/plain")
	e, err := audit.DecodeEvidence([]byte(file))
	if code != 200 || err != nil {
		t.Fatalf("%d %v %.200s", code, err, file)
	}
	key, err := os.ReadFile(filepath.Join(s.dir, "data", "audit", "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	rep, err := e.Verify(audit.VerifyOptions{Key: strings.TrimSpace(string(key))})
	if err != nil || !rep.Complete || !rep.Receipt || !rep.Clean {
		t.Errorf("%+v %v", rep, err)
	}
}
