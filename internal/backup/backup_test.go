package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const childEnv = "FIREBREAK_BACKUP_TEST_CHILD"

func TestMain(m *testing.M) {
	if args := strings.Split(os.Getenv(childEnv), "\n"); len(args) == 3 {
		os.Exit(child(args[0], args[1], args[2]))
	}
	goleak.VerifyTestMain(m)
}

// child backs up or restores, or dies on it.
func child(op, from, to string) int {
	var err error
	if op == "backup" {
		_, err = WriteFile(context.Background(), to, true, Source{Data: from, Version: "test"})
	} else {
		var f *os.File
		if f, err = os.Open(from); err == nil {
			_, _, err = Restore(context.Background(), f, to, Target{Principal: "test"})
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// run runs child with a crash armed; killed tells whether it came.
func run(t *testing.T, op, from, to, point string) (stderr string, killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{op, from, to}, "\n"), failpoint.Env+"="+point)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return errs.String(), true
	}
	if err != nil {
		t.Fatalf("%s at %s: %v\n%s%s", op, point, err, &out, &errs)
	}
	return errs.String(), false
}

// points lists the crash points of an operation, each with its hit.
func points(t *testing.T, op, from, to, prefix string) (list []string) {
	t.Helper()
	out, _ := run(t, op, from, to, "count")
	for line := range strings.Lines(out) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint: "); ok && strings.HasPrefix(p, prefix) {
			list = append(list, p)
		}
	}
	return list
}

// site is a data directory as a server keeps it.
type site struct {
	t      testing.TB
	dir    string
	store  *store.Store
	audit  *audit.Log
	events *event.Hub
}

func openSite(t testing.TB, dir string) *site {
	t.Helper()
	s := &site{t: t, dir: dir}
	log := slog.New(slog.DiscardHandler)
	err := os.MkdirAll(dir, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if s.store, err = store.Open(context.Background(), filepath.Join(dir, "state.db"), log); err == nil {
		if s.audit, err = audit.Open(filepath.Join(dir, "audit", "server"), audit.Options{SegmentBytes: 8 << 10}, log); err == nil {
			s.events, err = event.Open(filepath.Join(dir, "events"), event.Options{OutputBytes: 4 << 10}, log)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func (s *site) close() {
	if err := errors.Join(s.events.Close(), s.audit.Close(), s.store.Close()); err != nil {
		s.t.Error(err)
	}
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// act does what a create or an end does: evidence, then state that points to
// it, then events.
func (s *site) act(id sandbox.ID, action string, state store.State) {
	s.t.Helper()
	ctx := context.Background()
	pos, err := s.audit.Record(ctx, sandbox.Record{Class: sandbox.Gate, Tenant: "acme", Sandbox: id, Action: action, Outcome: sandbox.OutcomeAllowed})
	s.must(err)
	extra := fmt.Appendf(nil, `{"last":%d}`, pos)
	if action == "sandbox.create" {
		_, err = s.store.Tenant("acme").CreateSandbox(ctx, store.Sandbox{ID: id, State: state, Extra: extra, Instance: sandbox.NewInstanceID()}, store.Quota{})
	} else {
		_, err = s.store.Tenant("acme").EditSandbox(ctx, id, func(sb *store.Sandbox) error { sb.State, sb.Extra = state, extra; return nil })
	}
	s.must(err)
	_, err = s.events.Publish(id, event.Event{Type: event.StateChange, Data: []byte(`{"state":"` + string(state) + `"}`), Final: state == store.Ended})
	s.must(err)
}

// fill makes two ended sandboxes, a living one, a run with artifacts, a key and
// what must not be backed up.
func (s *site) fill() (dead, alive sandbox.ID) {
	s.t.Helper()
	dead, alive = sandbox.NewID(), sandbox.NewID()
	for _, id := range []sandbox.ID{dead, alive, sandbox.NewID()} {
		s.act(id, "sandbox.create", store.Running)
		for range 40 { // enough for .out and .out.old
			_, err := s.events.Publish(id, event.Event{Type: event.Stdout, Process: "1", Data: []byte("output\n")})
			s.must(err)
		}
		if id != alive {
			s.act(id, "sandbox.destroy", store.Ended)
		}
	}
	ctx := context.Background()
	rn := sandbox.NewRunID()
	_, err := s.store.Tenant("acme").CreateRun(ctx, store.Run{ID: rn, Sandbox: dead, State: store.RunEnded})
	s.must(err)
	_, err = s.store.Tenant("acme").CreateKey(ctx, store.Key{ID: "k1", Hash: [32]byte{1, 2}, Role: "owner"})
	s.must(err)
	_, err = s.store.Tenant("acme").SetSecret(ctx, store.Secret{Name: "token", Sealed: "sealed"})
	s.must(err)
	_, err = s.store.Tenant("acme").SetSecret(ctx, store.Secret{Name: "vault", Reference: "env:VAULT"})
	s.must(err)
	run, err := audit.Open(filepath.Join(s.dir, "audit", "run-20260101t000000-abc"), audit.Options{}, slog.New(slog.DiscardHandler))
	s.must(err)
	_, err = run.Record(ctx, sandbox.Record{Class: sandbox.Gate, Action: "run.create"})
	s.must(err)
	s.must(run.Close())
	for name, text := range map[string]string{
		"runs/" + string(rn) + "/stdout":             "out",
		"runs/" + string(rn) + "/stderr":             "",
		"runs/" + string(rn) + "/artifacts/a/ö b":    "artifact",
		"runs/" + string(rn) + "/other":              "not ours",
		"firebreak.yaml":                             "log_level: warn\n",
		"api-key":                                    "fb_secret",
		"secrets/key":                                "AGE-SECRET-KEY-1X",
		"libexec/abc/runsc":                          "program",
		"instances/in/processes":                     "{}",
		"templates/sha256-abc/rootfs/etc/os-release": "x",
	} {
		p := filepath.Join(s.dir, filepath.FromSlash(name))
		s.must(os.MkdirAll(filepath.Dir(p), 0o700))
		s.must(os.WriteFile(p, []byte(text), 0o600))
	}
	return dead, alive
}

// archive backs a site up and returns the file.
func (s *site) archive() (string, Manifest) {
	s.t.Helper()
	name := filepath.Join(s.t.TempDir(), "backup")
	m, err := WriteFile(context.Background(), name, false, Source{Data: s.dir, Version: "v1", Templates: []Template{{Name: "python", Digest: "sha256:x"}}})
	s.must(err)
	return name, m
}

func restore(t testing.TB, archive, dir string) (Manifest, int, error) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Restore(context.Background(), f, dir, Target{Principal: "tester"})
}

// tree reads all plain files below dir.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		m[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestRoundTrip: what was backed up is there, byte for byte or record for
// record; what must not be is not.
func TestRoundTrip(t *testing.T) {
	s := openSite(t, filepath.Join(t.TempDir(), "data"))
	dead, alive := s.fill()
	head := s.audit.Head()
	name, m := s.archive()
	if fi, err := os.Stat(name); err != nil || fi.Mode().Perm() != 0o600 {
		t.Error(fi, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(name)); len(left) != 1 {
		t.Errorf("beside the backup: %v", left)
	}
	if m.Schema != store.Schema() || m.Firebreak != "v1" || m.Audit["server"] != headOf(head) || len(m.Audit) != 2 || m.Templates[0].Name != "python" {
		t.Errorf("manifest %+v", m)
	}
	dir := filepath.Join(t.TempDir(), "new", "data")
	got, lost, err := restore(t, name, dir)
	if err != nil || lost != 1 || got.Sealed != 1 || !reflect.DeepEqual(got.Members, m.Members) {
		t.Fatal(got, lost, err)
	}
	before, after := tree(t, s.dir), tree(t, dir)
	for f, want := range before {
		switch {
		case f == "state.db" || strings.HasPrefix(f, "state.db-"), f == "audit/server/lock", f == "audit/server/checkpoint", f == "audit/server/checkpoint.tmp", strings.Contains(f, ".p/"):
		case !allowed(f):
			if _, there := after[f]; there && f != "audit/run-20260101t000000-abc/lock" && f != "audit/run-20260101t000000-abc/checkpoint.tmp" {
				t.Errorf("%s was restored", f)
			}
		case strings.HasPrefix(f, "audit/server/") || strings.HasPrefix(f, "events/"+string(alive)):
			if !strings.HasPrefix(after[f], strings.TrimRight(want, "\x00")) { // the room behind the records stays behind; the restoring is recorded, and told, behind it
				t.Errorf("%s has changed", f)
			}
		case after[f] != want:
			t.Errorf("%s differs: %q, was %q", f, after[f], want)
		}
	}
	if before["audit/key"] == "" || after["audit/key"] != before["audit/key"] {
		t.Error("the key that signs the evidence is another one")
	}
	r := openSite(t, dir)
	ctx := context.Background()
	sb, err := r.store.Tenant("acme").Sandbox(ctx, dead)
	was, _ := s.store.Tenant("acme").Sandbox(ctx, dead)
	if err != nil || !reflect.DeepEqual(sb, was) {
		t.Errorf("the ended sandbox: %+v, %v; was %+v", sb, err, was)
	}
	sb, err = r.store.Tenant("acme").Sandbox(ctx, alive)
	if err != nil || sb.State != store.Ended || sb.Reason != sandbox.ReasonLost || !strings.Contains(sb.Detail, "backup") || sb.Receipt != nil {
		t.Errorf("the living sandbox: %+v, %v", sb, err)
	}
	if was, err := s.store.Tenant("acme").Sandbox(ctx, alive); err != nil || was.State != store.Running {
		t.Errorf("the original: %+v, %v", was, err)
	}
	if k, err := r.store.System().Key(ctx, "k1"); err != nil || k.Hash[1] != 2 {
		t.Error(k, err)
	}
	if sec, err := r.store.Tenant("acme").Secret(ctx, "token"); err != nil || sec.Sealed != "sealed" {
		t.Error(sec, err)
	}
	if _, there := after["secrets/key"]; there {
		t.Error("the key of the secrets is in the backup")
	}
	actions := map[string]int{}
	for e, err := range audit.Scan(filepath.Join(dir, "audit", "server"), head.Position+1) {
		if err != nil {
			t.Fatal(err)
		}
		actions[e.Record.Action]++
		if e.Record.Principal != "tester" {
			t.Errorf("%+v", e.Record)
		}
	}
	if !reflect.DeepEqual(actions, map[string]int{"backup.restore": 1, "sandbox.lost": 1}) {
		t.Errorf("recorded: %v", actions)
	}
	sub, err := r.events.Subscribe(ctx, alive, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for err == nil { // a follower comes to the end
		var c context.CancelFunc
		wait, c := context.WithTimeout(ctx, 10*time.Second)
		_, err = sub.Next(wait)
		c()
	}
	if err != io.EOF {
		t.Errorf("the events of the lost sandbox end with %v", err)
	}
}

// TestUnderLoad: each of twenty backups made while sandboxes come and go
// restores to a state whose evidence is complete and verifies, and that has all
// that was acknowledged before it began.
func TestUnderLoad(t *testing.T) {
	s := openSite(t, filepath.Join(t.TempDir(), "data"))
	s.fill()
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var acked []sandbox.ID
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				id := sandbox.NewID()
				s.act(id, "sandbox.create", store.Running)
				mu.Lock()
				acked = append(acked, id)
				few := len(acked) < 40 // sandboxes are files, and files are slow on a busy disk
				mu.Unlock()
				for i := 0; ctx.Err() == nil && (i < 5 || !few); i++ {
					_, err := s.events.Publish(id, event.Event{Type: event.Stdout, Process: "1", Data: make([]byte, 700)})
					s.must(err)
					s.act(id, "sandbox.exec", store.Running)
					time.Sleep(2 * time.Millisecond)
				}
				s.act(id, "sandbox.destroy", store.Ended)
			}
		})
	}
	defer load.Wait()
	defer cancel()
	for i := range 20 {
		mu.Lock()
		before := acked[:len(acked):len(acked)]
		mu.Unlock()
		name, m := s.archive()
		dir := filepath.Join(t.TempDir(), "data")
		if _, _, err := restore(t, name, dir); err != nil {
			t.Fatal(i, err)
		}
		if _, err := audit.Verify(filepath.Join(dir, "audit", "server")); err != nil {
			t.Fatal(i, err)
		}
		checkRestored(t, dir, before, m)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if len(acked) < 4 {
		t.Errorf("only %d sandboxes came and went", len(acked))
	}
}

// checkRestored looks for acknowledged records, and for state without evidence.
func checkRestored(t *testing.T, dir string, acked []sandbox.ID, m Manifest) {
	t.Helper()
	ctx := context.Background()
	st, err := store.Open(ctx, filepath.Join(dir, "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for _, id := range acked {
		if _, err := st.Tenant("acme").Sandbox(ctx, id); err != nil {
			t.Fatalf("acknowledged: %v", err)
		}
	}
	for page := (store.Page{Size: store.MaxPageSize}); ; {
		list, next, err := st.Tenant("acme").ListSandboxes(ctx, store.Filter{}, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, sb := range list {
			var last sandbox.Position
			if _, err := fmt.Sscanf(string(sb.Extra), `{"last":%d}`, &last); err != nil || last == 0 {
				t.Fatalf("%s: %s", sb.ID, sb.Extra)
			}
			if last > m.Audit["server"].Position {
				t.Fatalf("%s is ahead of its evidence: %d of %d", sb.ID, last, m.Audit["server"].Position)
			}
			if sb.State != store.Ended {
				t.Errorf("%s is %s", sb.ID, sb.State)
			}
		}
		if next == "" {
			return
		}
		page.Token = next
	}
}

// TestKilled kills backup and restore at each of their points. There is then
// nothing or everything, and the next attempt works and leaves nothing beside.
func TestKilled(t *testing.T) {
	s := openSite(t, filepath.Join(t.TempDir(), "data"))
	_, alive := s.fill()
	good, _ := s.archive()

	dir := t.TempDir()
	list := points(t, "backup", s.dir, filepath.Join(dir, "counted"), "backup/")
	if len(list) < 10 {
		t.Fatalf("points %q", list)
	}
	for _, p := range list {
		dir := t.TempDir()
		to := filepath.Join(dir, "b")
		if _, killed := run(t, "backup", s.dir, to, p); !killed {
			t.Errorf("%s was not reached", p)
		}
		if _, err := os.Stat(to); err == nil {
			if _, _, err := restore(t, to, filepath.Join(t.TempDir(), "data")); err != nil {
				t.Errorf("killed at %s, there is a bad backup: %v", p, err)
			}
		}
		run(t, "backup", s.dir, to, "")
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: left behind: %v", p, left)
		}
	}
	list = points(t, "restore", good, filepath.Join(dir, "data"), "restore/")
	if len(list) < 15 {
		t.Fatalf("points %q", list)
	}
	for _, p := range list {
		dir := t.TempDir()
		to := filepath.Join(dir, "data")
		if _, killed := run(t, "restore", good, to, p); !killed {
			t.Errorf("%s was not reached", p)
		}
		if _, err := os.Stat(to); err != nil {
			run(t, "restore", good, to, "")
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("%s: left behind: %v", p, left)
		}
		r := openSite(t, to)
		if sb, err := r.store.Tenant("acme").Sandbox(context.Background(), alive); err != nil || sb.State != store.Ended {
			t.Errorf("%s: %+v, %v", p, sb, err)
		}
	}
	t.Logf("%d points of restore", len(list))
}

// TestRefusals: nothing is overwritten, merged, or backed up that should not be.
func TestRefusals(t *testing.T) {
	ctx := context.Background()
	s := openSite(t, filepath.Join(t.TempDir(), "data"))
	s.fill()
	name, _ := s.archive()
	wantKind := func(err error, k sandbox.Kind) {
		t.Helper()
		var e *sandbox.Error
		if !errors.As(err, &e) || e.Kind != k || e.Hint == "" && k != sandbox.KindNotFound {
			t.Errorf("%v is not %s with a hint", err, k)
		}
	}
	_, err := WriteFile(ctx, name, false, Source{Data: s.dir})
	wantKind(err, sandbox.KindExists)
	if _, err := WriteFile(ctx, name, true, Source{Data: s.dir}); err != nil {
		t.Error(err)
	}
	_, err = WriteFile(ctx, filepath.Join(t.TempDir(), "b"), false, Source{Data: t.TempDir()})
	wantKind(err, sandbox.KindNotFound)
	_, _, err = restore(t, name, s.dir)
	wantKind(err, sandbox.KindConflict)
	empty := t.TempDir()
	if _, _, err := restore(t, name, empty); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
	// Damaged evidence is not carried on.
	if err := s.audit.Close(); err != nil {
		t.Fatal(err)
	}
	logs, _ := filepath.Glob(filepath.Join(s.dir, "audit", "server", "*.log"))
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(logs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err = WriteFile(ctx, filepath.Join(dir, "b"), false, Source{Data: s.dir})
	wantKind(err, sandbox.KindInternal)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
