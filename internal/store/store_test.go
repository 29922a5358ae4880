package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(childEnv) != "":
		os.Exit(child())
	case os.Getenv(migrateEnv) != "":
		os.Exit(migrateChild())
	case os.Getenv(newerEnv) != "":
		os.Exit(newerChild())
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(context.Background(), path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func openTemp(t testing.TB) *Store { return open(t, filepath.Join(t.TempDir(), "state.db")) }

func wantKind(t testing.TB, err error, k sandbox.Kind) {
	t.Helper()
	var e *sandbox.Error
	if k == "" && err == nil {
		return
	}
	if !errors.As(err, &e) || e.Kind != k {
		t.Fatalf("got %v (%T), want kind %q", err, err, k)
	}
}

func mustCreate(t testing.TB, tn *Tenant, sb Sandbox) Sandbox {
	t.Helper()
	if sb.ID == "" {
		sb.ID = sandbox.NewID()
	}
	got, err := tn.CreateSandbox(context.Background(), sb, Quota{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func full() Sandbox {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
	return Sandbox{
		ID: sandbox.NewID(), Instance: sandbox.NewInstanceID(), Name: "web", State: Running,
		Backend: "gvisor", Isolation: sandbox.IsolationUserKernel, Template: "python", TemplateDigest: "sha256:00",
		Tier: "L2", Metadata: map[string]string{"team": "red", "ünï": "☃\x00\n"},
		Limits:   sandbox.Limits{Memory: 64 << 20, CPUs: 0.5, PIDs: 128, Disk: 1 << 30},
		Explicit: sandbox.LimitMemory, Enforced: sandbox.AllLimits, AcceptWeaker: true, ReadonlyRoot: true,
		IdleTimeout: time.Minute, MaxLife: time.Hour, ExpiresAt: at.Add(time.Hour), Principal: "uid:0",
		Created: at, Started: at.Add(time.Second), Extra: json.RawMessage(`{"a":1}`),
	}
}

// Everything a record holds comes back: from the write, from the cache, from
// the database and after a restart.
func TestSandboxRoundTrip(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	tn := s.Tenant("acme")
	want := mustCreate(t, tn, full())
	want, err := tn.EditSandbox(ctx, want.ID, func(sb *Sandbox) error {
		sb.State, sb.Reason, sb.Detail = Ended, sandbox.ReasonMemory, "limit 64 MiB"
		sb.Exit = &sandbox.Exit{Reason: sandbox.ReasonMemory, Time: sb.Created}
		sb.Usage = sandbox.Usage{CPU: time.Second, MemoryPeak: 1 << 20, OOMKills: 1}
		sb.Kept = 4096
		sb.Receipt = &sandbox.Receipt{Instance: sb.Instance, Clean: true, Time: sb.Created,
			Objects: []sandbox.Object{{Kind: "mount", Name: "/x", Gone: true}}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want.Version != 2 || want.Ended.IsZero() || want.Tenant != "acme" {
		t.Fatalf("version %d, ended %v, tenant %q", want.Version, want.Ended, want.Tenant)
	}
	v := reflect.ValueOf(want)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the test does not cover field %s", v.Type().Field(i).Name)
		}
	}
	check := func(from string, s *Store) {
		t.Helper()
		got, err := s.Tenant("acme").Sandbox(ctx, want.ID)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("from %s: %v\n got %+v\nwant %+v", from, err, got, want)
		}
	}
	check("database", s)
	check("cache", s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check("restart", open(t, path))
}

func TestCreateRefusals(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	a := mustCreate(t, tn, full())
	long := make([]byte, maxMetaValue+1)
	for i := range long {
		long[i] = 'x'
	}
	for name, c := range map[string]struct {
		tenant sandbox.TenantID
		mutate func(*Sandbox)
		quota  Quota
		kind   sandbox.Kind
	}{
		"id":           {mutate: func(sb *Sandbox) { sb.ID = "../etc" }, kind: sandbox.KindInvalid},
		"no id":        {mutate: func(sb *Sandbox) { sb.ID = "" }, kind: sandbox.KindInvalid},
		"tenant":       {tenant: "../x", kind: sandbox.KindInvalid},
		"bad instance": {mutate: func(sb *Sandbox) { sb.Instance = "x" }, kind: sandbox.KindInvalid},
		"state":        {mutate: func(sb *Sandbox) { sb.State = "sleeping" }, kind: sandbox.KindInvalid},
		"name":         {mutate: func(sb *Sandbox) { sb.Name = string(long) }, kind: sandbox.KindInvalid},
		"metadata":     {mutate: func(sb *Sandbox) { sb.Metadata = map[string]string{"k": string(long)} }, kind: sandbox.KindInvalid},
		"bad extra":    {mutate: func(sb *Sandbox) { sb.Name = ""; sb.Extra = json.RawMessage(`{`) }, kind: sandbox.KindInvalid},
		"id taken":     {mutate: func(sb *Sandbox) { sb.ID = a.ID }, kind: sandbox.KindExists},
		"name taken":   {mutate: func(sb *Sandbox) {}, kind: sandbox.KindExists},
		"instance":     {mutate: func(sb *Sandbox) { sb.Name = ""; sb.Instance = a.Instance }, kind: sandbox.KindExists},
		"tenant quota": {mutate: func(sb *Sandbox) { sb.Name = "" }, quota: Quota{Tenant: 1}, kind: sandbox.KindCapacity},
		"host quota":   {tenant: "other", mutate: func(sb *Sandbox) {}, quota: Quota{Host: 1}, kind: sandbox.KindCapacity},
		"huge":         {mutate: func(sb *Sandbox) { sb.Name = ""; sb.Detail = strings.Repeat("x", maxBody) }, kind: sandbox.KindTooLarge},
		"other tenant": {tenant: "other", mutate: func(sb *Sandbox) {}, quota: Quota{Tenant: 1}},
		"dead is free": {mutate: func(sb *Sandbox) { sb.State = Ended }, quota: Quota{Tenant: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			sb := full()
			if c.mutate != nil {
				c.mutate(&sb)
			}
			tn := tn
			if c.tenant != "" {
				tn = s.Tenant(c.tenant)
			}
			_, err := tn.CreateSandbox(ctx, sb, c.quota)
			wantKind(t, err, c.kind)
		})
	}
}

// A quota holds however many creates race for the last place.
func TestQuotaUnderConcurrency(t *testing.T) {
	s := openTemp(t)
	tn := s.Tenant("acme")
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 40 {
		wg.Go(func() {
			_, err := tn.CreateSandbox(context.Background(), Sandbox{ID: sandbox.NewID()}, Quota{Tenant: 7})
			if err == nil {
				mu.Lock()
				made++
				mu.Unlock()
			} else if sandbox.KindOf(err) != sandbox.KindCapacity {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, err := tn.CountSandboxes(context.Background(), Creating, Running, Stopping); made != 7 || n != 7 || err != nil {
		t.Fatalf("made %d, counted %d, %v", made, n, err)
	}
}

func TestTransitions(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	for i, from := range stateOrder {
		for j, to := range stateOrder {
			t.Run(fmt.Sprint(from, " to ", to), func(t *testing.T) {
				sb := mustCreate(t, tn, Sandbox{State: from})
				want := sandbox.Kind("")
				if j < i && !(from == Paused && to == Running) {
					want = sandbox.KindConflict
					if from == Ended {
						want = sandbox.KindGone
					}
				}
				got, err := tn.EditSandbox(ctx, sb.ID, func(sb *Sandbox) error { sb.State = to; return nil })
				wantKind(t, err, want)
				now, gerr := tn.Sandbox(ctx, sb.ID)
				if gerr != nil || (err == nil && !reflect.DeepEqual(now, got)) || (err != nil && !reflect.DeepEqual(now, sb)) {
					t.Fatalf("stored %+v, %v", now, gerr)
				}
			})
		}
	}
}

func TestUpdateIsOptimistic(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	a := mustCreate(t, tn, full())
	b := a
	b.Detail = "first"
	b.Principal, b.Created = "forged", time.Now()
	got, err := tn.UpdateSandbox(ctx, b)
	if err != nil || got.Version != 2 || got.Principal != a.Principal || !got.Created.Equal(a.Created) {
		t.Fatalf("%+v, %v", got, err)
	}
	_, err = tn.UpdateSandbox(ctx, b)
	wantKind(t, err, sandbox.KindConflict)

	stop := errors.New("changed my mind")
	if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.Detail = "x"; return stop }); err != stop {
		t.Fatal(err)
	}
	if now, _ := tn.Sandbox(ctx, a.ID); now.Detail != "first" {
		t.Fatal("a refused edit was written")
	}
	c := mustCreate(t, tn, Sandbox{})
	_, err = tn.EditSandbox(ctx, c.ID, func(sb *Sandbox) error { sb.Name = "web"; return nil })
	wantKind(t, err, sandbox.KindExists)
}

// Concurrent edits of one record lose none, and readers never see time go
// backwards.
func TestEditsAreAtomicAndReadsMonotonic(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	id := mustCreate(t, tn, Sandbox{}).ID
	const writers, each = 8, 25
	stop := make(chan struct{})
	var readers, wg sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			var last int64
			for {
				sb, err := tn.Sandbox(ctx, id)
				if err != nil || sb.Version < last || fmt.Sprint(sb.Version-1) != zero(sb.Metadata["n"]) {
					t.Errorf("version %d after %d, n=%q, %v", sb.Version, last, sb.Metadata["n"], err)
					return
				}
				last = sb.Version
				list, _, err := tn.ListSandboxes(ctx, Filter{}, Page{})
				if err != nil || list[0].Version < last {
					t.Errorf("list shows version %d after %d, %v", list[0].Version, last, err)
					return
				}
				last = list[0].Version
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range writers {
		wg.Go(func() {
			for range each {
				_, err := tn.EditSandbox(ctx, id, func(sb *Sandbox) error {
					var n int
					fmt.Sscan(sb.Metadata["n"], &n)
					sb.Metadata = map[string]string{"n": fmt.Sprint(n + 1)}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	if sb, _ := tn.Sandbox(ctx, id); sb.Metadata["n"] != fmt.Sprint(writers*each) {
		t.Fatalf("n=%s", sb.Metadata["n"])
	}
}

func zero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

// A caller may do what it likes with what it was given.
func TestReturnedRecordsAreTheCallersOwn(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	in := full()
	a := mustCreate(t, tn, in)
	in.Metadata["team"] = "changed"
	a.Metadata["team"] = "changed"
	for range 2 {
		b, err := tn.Sandbox(ctx, a.ID)
		if err != nil || b.Metadata["team"] != "red" {
			t.Fatal(b.Metadata, err)
		}
		b.Metadata["team"] = "changed"
		b.Extra[2] = 'z'
	}
}

func TestNamesAreFreedByDeath(t *testing.T) {
	ctx := context.Background()
	tn := openTemp(t).Tenant("acme")
	a := mustCreate(t, tn, Sandbox{Name: "web"})
	got, err := tn.SandboxByName(ctx, "web")
	if err != nil || got.ID != a.ID {
		t.Fatal(got, err)
	}
	if _, err := tn.EditSandbox(ctx, a.ID, func(sb *Sandbox) error { sb.State = Ended; return nil }); err != nil {
		t.Fatal(err)
	}
	_, err = tn.SandboxByName(ctx, "web")
	wantKind(t, err, sandbox.KindNotFound)
	_, err = tn.SandboxByName(ctx, "")
	wantKind(t, err, sandbox.KindNotFound)
	mustCreate(t, tn, Sandbox{Name: "web"})
}

func TestRuns(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	want := Run{ID: sandbox.NewRunID(), Spec: json.RawMessage(`{"code":"x"}`), Principal: "uid:0"}
	want, err := tn.CreateRun(ctx, want)
	if err != nil || want.State != RunPending {
		t.Fatal(want, err)
	}
	_, err = tn.CreateRun(ctx, Run{ID: want.ID})
	wantKind(t, err, sandbox.KindExists)
	if open, err := s.System().UnfinishedRuns(ctx); err != nil || len(open) != 1 {
		t.Fatal(open, err)
	}
	want, err = tn.EditRun(ctx, want.ID, func(r *Run) error {
		r.State, r.Sandbox, r.ExitCode, r.Reason = RunEnded, sandbox.NewID(), 3, sandbox.ReasonDone
		r.Result = json.RawMessage(`{"ok":1}`)
		r.Timings = map[string]time.Duration{"create": time.Second}
		r.Artifacts = []Artifact{{"out.txt", 3, "00"}}
		r.Detail, r.Extra = "d", json.RawMessage(`1`)
		return nil
	})
	if err != nil || want.Ended.IsZero() {
		t.Fatal(want, err)
	}
	got, err := tn.Run(ctx, want.ID)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
	}
	_, err = tn.EditRun(ctx, want.ID, func(r *Run) error { r.State = RunRunning; return nil })
	wantKind(t, err, sandbox.KindConflict)
	if open, err := s.System().UnfinishedRuns(ctx); err != nil || len(open) != 0 {
		t.Fatal(open, err)
	}
}

func TestKeys(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	want, err := tn.CreateKey(ctx, Key{ID: "k1", Name: "ci", Hash: [32]byte{1, 2}, Role: "admin",
		Scopes: []string{"exec", "files:read"}, Expires: now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	for _, get := range []func() (Key, error){
		func() (Key, error) { return tn.Key(ctx, "k1") },
		func() (Key, error) { return s.System().Key(ctx, "k1") },
		func() (Key, error) {
			l, err := tn.ListKeys(ctx)
			if len(l) != 1 {
				return Key{}, fmt.Errorf("%d keys, %v", len(l), err)
			}
			return l[0], err
		},
	} {
		if got, err := get(); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
		}
	}
	_, err = s.Tenant("other").CreateKey(ctx, Key{ID: "k1", Hash: [32]byte{1}, Role: "owner"})
	wantKind(t, err, sandbox.KindExists)
	_, err = tn.CreateKey(ctx, Key{ID: "k2", Role: "owner"})
	wantKind(t, err, sandbox.KindInvalid)

	later := now().Add(time.Minute)
	for _, at := range []time.Time{later, later.Add(-time.Hour)} {
		if err := tn.TouchKey(ctx, "k1", at); err != nil {
			t.Fatal(err)
		}
	}
	first, err := tn.RevokeKey(ctx, "k1")
	if err != nil || first.Revoked.IsZero() || !first.LastUsed.Equal(later) {
		t.Fatal(first, err)
	}
	again, err := tn.RevokeKey(ctx, "k1")
	if err != nil || !again.Revoked.Equal(first.Revoked) {
		t.Fatal(again, err)
	}
}

func TestSystem(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	y, at := s.System(), now()
	a := mustCreate(t, s.Tenant("a"), Sandbox{ExpiresAt: at.Add(-time.Second), Instance: sandbox.NewInstanceID()})
	mustCreate(t, s.Tenant("b"), Sandbox{ExpiresAt: at.Add(time.Hour)})
	c := mustCreate(t, s.Tenant("c"), Sandbox{State: Ended, Ended: at.Add(-time.Hour), ExpiresAt: at.Add(-time.Hour),
		Metadata: map[string]string{"k": "v"}})
	live, err := y.LiveSandboxes(ctx)
	if err != nil || len(live) != 2 || live[0].ID != a.ID {
		t.Fatal(live, err)
	}
	exp, err := y.ExpiredSandboxes(ctx, at, 10)
	if err != nil || len(exp) != 1 || exp[0].ID != a.ID || exp[0].Tenant != "a" {
		t.Fatal(exp, err)
	}
	got, err := y.SandboxByInstance(ctx, a.Instance)
	if err != nil || got.ID != a.ID {
		t.Fatal(got, err)
	}
	_, err = y.SandboxByInstance(ctx, "")
	wantKind(t, err, sandbox.KindNotFound)

	if _, err := s.Tenant("c").Sandbox(ctx, c.ID); err != nil { // now it is cached
		t.Fatal(err)
	}
	if n, _, err := y.Purge(ctx, at); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	_, err = s.Tenant("c").Sandbox(ctx, c.ID)
	wantKind(t, err, sandbox.KindNotFound)
	var n int
	if err := s.row(ctx, []any{&n}, `SELECT COUNT(*) FROM sandbox_metadata`); err != nil || n != 0 {
		t.Fatal(n, err)
	}
	for range purgeChunk + 50 {
		mustCreate(t, s.Tenant("c"), Sandbox{State: Ended, Ended: at.Add(-time.Hour)})
	}
	if n, _, err := y.Purge(ctx, at); n != purgeChunk+50 || err != nil {
		t.Fatal(n, err)
	}
}

func TestAfterClose(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	tn := s.Tenant("acme")
	a := mustCreate(t, tn, Sandbox{})
	if _, err := tn.Sandbox(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := tn.Sandbox(ctx, a.ID)
	wantKind(t, err, sandbox.KindUnavailable)
	_, err = tn.CreateSandbox(ctx, Sandbox{ID: sandbox.NewID()}, Quota{})
	wantKind(t, err, sandbox.KindUnavailable)
	_, _, err = tn.ListSandboxes(ctx, Filter{}, Page{})
	wantKind(t, err, sandbox.KindUnavailable)
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tn := openTemp(t).Tenant("acme")
	id := sandbox.NewID()
	_, err := tn.CreateSandbox(ctx, Sandbox{ID: id}, Quota{})
	wantKind(t, err, sandbox.KindCanceled)
	_, err = tn.Sandbox(ctx, id)
	wantKind(t, err, sandbox.KindCanceled)
	_, err = tn.Sandbox(context.Background(), id)
	wantKind(t, err, sandbox.KindNotFound)
}

// Kept adds up what is still on disk, and nothing else.
func TestKept(t *testing.T) {
	ctx := context.Background()
	s := openTemp(t)
	a, b := s.Tenant("acme"), s.Tenant("other")
	end := func(tn *Tenant, at time.Time, kept int64) {
		t.Helper()
		sb := mustCreate(t, tn, Sandbox{})
		if _, err := tn.EditSandbox(ctx, sb.ID, func(sb *Sandbox) error {
			sb.State, sb.Ended, sb.Kept = Ended, at, kept
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	end(a, now, 100)
	end(a, now.Add(-2*time.Hour), 1000) // its events are gone
	end(b, now, 7)
	run := func(tn *Tenant, kept int64, state RunState) {
		t.Helper()
		if _, err := tn.CreateRun(ctx, Run{ID: sandbox.NewRunID(), State: state, Kept: kept}); err != nil {
			t.Fatal(err)
		}
	}
	run(a, 20, RunEnded)
	run(a, 5000, RunRunning)
	got, err := s.System().Kept(ctx, now.Add(-time.Hour))
	if err != nil || len(got) != 2 || got["acme"] != 120 || got["other"] != 7 {
		t.Errorf("%v, %v", got, err)
	}
}
