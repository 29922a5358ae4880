package orchestrator

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestLifecycle(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Name: "web", Metadata: map[string]string{"k": "v"}, Env: map[string]string{"A": "1"}, Tier: "L2"})
	if sb.State != store.Running || sb.Backend != "sim" || sb.Limits.Memory != 256<<20 || sb.Explicit != 0 || sb.Enforced == 0 ||
		sb.MaxLife != time.Hour || sb.ExpiresAt.IsZero() || sb.Started.IsZero() || sb.Details.Boot <= 0 || sb.Details.Pack != "python" {
		t.Errorf("created: %+v", sb)
	}
	exit, c := mustExec(t, o, alice, sb.ID, sh("echo $A $LANG; echo err >&2; exit 3"))
	if c.out.String() != "1 C.UTF-8\n" || c.err.String() != "err\n" || exit.Code != 3 || exit.Reason != sandbox.ReasonDone || c.pid == 0 {
		t.Errorf("exec: %+v, stdout %q, stderr %q", exit, c.out.String(), c.err.String())
	}
	for _, ref := range []string{string(sb.ID), "web"} {
		if got, err := o.Get(t.Context(), alice.Tenant, ref); err != nil || got.ID != sb.ID || got.State != store.Running || got.Details.Env != nil {
			t.Errorf("get %s: %+v, %v", ref, got, err)
		}
	}
	dead, err := o.Destroy(t.Context(), alice, "web")
	if err != nil || dead.State != store.Ended || dead.Reason != sandbox.ReasonOperator || dead.Receipt == nil || !dead.Receipt.Clean || len(dead.Receipt.Objects) == 0 {
		t.Fatalf("destroy: %+v, %v", dead, err)
	}
	again, err := o.Destroy(t.Context(), alice, string(sb.ID))
	if err != nil || again.Receipt == nil || !again.Receipt.Time.Equal(dead.Receipt.Time) || again.Ended.IsZero() {
		t.Errorf("destroy again: %+v, %v", again, err)
	}
	_, err = o.Exec(t.Context(), alice, string(sb.ID), sh("true"), &collect{})
	if e := wantKind(t, err, sandbox.KindGone); e.Hint == "" || !strings.Contains(e.Message(), "operator") {
		t.Errorf("after the end: %v", err)
	}
	_, err = o.Get(t.Context(), alice.Tenant, "web") // the name is free again
	wantKind(t, err, sandbox.KindNotFound)
	want := []string{"sandbox.create allowed", "sandbox.create done", "process.exec allowed", "process.exit done", "sandbox.destroy allowed", "sandbox.receipt done"}
	if got := w.audit.actions(sb.ID); !slices.Equal(got, want) {
		t.Errorf("evidence %q, want %q", got, want)
	}
	var types []string
	evs := w.told.of(sb.ID)
	for _, e := range evs {
		types = append(types, string(e.Type))
	}
	if got := strings.Join(types, " "); !strings.HasPrefix(got, "state state started ") || !strings.HasSuffix(got, " exit state receipt state") || !evs[len(evs)-1].Final {
		t.Errorf("events %q", got)
	}
	rec, err := w.store.Tenant(alice.Tenant).Sandbox(t.Context(), sb.ID)
	if err != nil || strings.Contains(string(rec.Extra), `"A"`) {
		t.Errorf("the environment outlived the sandbox: %s, %v", rec.Extra, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	neg, huge := -time.Second, 100*365*24*time.Hour
	mustCreate(t, o, alice, CreateRequest{Name: "taken"})
	for name, c := range map[string]struct {
		req  CreateRequest
		kind sandbox.Kind
	}{
		"tiny memory":       {CreateRequest{Limits: sandbox.Limits{Memory: 1}}, sandbox.KindInvalid},
		"absurd cpus":       {CreateRequest{Limits: sandbox.Limits{CPUs: 1e9}}, sandbox.KindInvalid},
		"negative timeout":  {CreateRequest{Timeout: &neg}, sandbox.KindInvalid},
		"endless idle":      {CreateRequest{IdleTimeout: &huge}, sandbox.KindInvalid},
		"unknown backend":   {CreateRequest{Backend: "chroot"}, sandbox.KindInvalid},
		"missing template":  {CreateRequest{Template: "nope"}, sandbox.KindNotFound},
		"unknown pack":      {CreateRequest{Pack: "cobol", Template: "host"}, sandbox.KindInvalid},
		"pack not there":    {CreateRequest{Pack: "node", Template: "host"}, sandbox.KindInvalid},
		"pack nowhere":      {CreateRequest{Pack: "node"}, sandbox.KindNotFound},
		"too weak":          {CreateRequest{MinIsolation: sandbox.IsolationUserKernel}, sandbox.KindUnsupported},
		"auto never sim":    {CreateRequest{Backend: Auto}, sandbox.KindUnavailable},
		"name taken":        {CreateRequest{Name: "taken"}, sandbox.KindExists},
		"name like an id":   {CreateRequest{Name: string(sandbox.NewID())}, sandbox.KindInvalid},
		"malformed id":      {CreateRequest{ID: "../../etc"}, sandbox.KindInvalid},
		"environment name":  {CreateRequest{Env: map[string]string{"A=B": "x"}}, sandbox.KindInvalid},
		"environment value": {CreateRequest{Env: map[string]string{"A": "x\x00"}}, sandbox.KindInvalid},
	} {
		_, err := o.Create(t.Context(), alice, c.req)
		var e *sandbox.Error
		if sandbox.KindOf(err) != c.kind || !errors.As(err, &e) || (e.Hint == "" && c.kind != sandbox.KindInvalid) {
			t.Errorf("%s: %v (%s), want %s", name, err, sandbox.KindOf(err), c.kind)
		}
	}
	list, _, err := o.List(t.Context(), alice.Tenant, store.Filter{}, store.Page{})
	if err != nil || len(list) != 1 {
		t.Errorf("records: %d, %v", len(list), err)
	}
}

func TestUnenforcedLimits(t *testing.T) {
	w := newWorld(t)
	w.sim = simWithout(sandbox.LimitPIDs)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	if sb.Enforced&sandbox.LimitPIDs != 0 || !strings.Contains(strings.Join(sb.Details.Notes, "\n"), "the pids limit is not enforced here") {
		t.Errorf("a default that cannot be kept: %+v", sb.Details.Notes)
	}
	_, err := o.Create(t.Context(), alice, CreateRequest{Limits: sandbox.Limits{PIDs: 8}})
	wantKind(t, err, sandbox.KindUnsupported)
	sb = mustCreate(t, o, alice, CreateRequest{Limits: sandbox.Limits{PIDs: 8}, AcceptWeaker: true})
	if !sb.AcceptWeaker || sb.Explicit != sandbox.LimitPIDs {
		t.Errorf("accepted: %+v", sb)
	}
	w.audit.mu.Lock()
	defer w.audit.mu.Unlock()
	if !slices.ContainsFunc(w.audit.records, func(r sandbox.Record) bool { return r.Sandbox == sb.ID && r.Detail["accept_weaker"] == "true" }) {
		t.Error("accept_weaker left no evidence")
	}
}

// TestCommitIsEvidence: of all labels, the one that is a commit is recorded.
func TestCommitIsEvidence(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	commit := strings.Repeat("0a", 20)
	for label, recorded := range map[string]bool{commit: true, strings.Repeat("0a", 32): true, "a secret": false, commit + "\n": false, commit[1:]: false, strings.Repeat("0A", 20): false} {
		sb := mustCreate(t, o, alice, CreateRequest{Metadata: map[string]string{"git.commit": label, "git.repo": "a secret"}})
		w.audit.mu.Lock()
		i := slices.IndexFunc(w.audit.records, func(r sandbox.Record) bool { return r.Sandbox == sb.ID && r.Action == "sandbox.create" })
		if i < 0 {
			t.Fatal("no record of the create")
		}
		d := w.audit.records[i].Detail
		if got, ok := d["git_commit"]; ok != recorded || ok && got != label || strings.Contains(strings.Join(slices.Collect(maps.Values(d)), " "), "a secret") {
			t.Errorf("%q: %v", label, d)
		}
		w.audit.mu.Unlock()
	}
}

func TestTenantsDoNotSeeEachOther(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{Name: "web"})
	run, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("echo hi > a"), Artifacts: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if run, err = o.GetRun(t.Context(), alice.Tenant, string(run.ID), 10*time.Second); err != nil || run.State != store.RunEnded {
		t.Fatalf("run: %+v, %v", run, err)
	}
	going, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: verb("sleep", "60s")})
	if err != nil {
		t.Fatal(err)
	}
	never := sandbox.NewID()
	for _, ref := range []string{string(sb.ID), "web", string(run.Sandbox), string(run.ID), string(going.Sandbox), string(going.ID)} {
		same := func(op string, err, unknown error) {
			t.Helper()
			got, want := strings.ReplaceAll(err.Error(), ref, "X"), strings.ReplaceAll(unknown.Error(), string(never), "X")
			if sandbox.KindOf(err) != sandbox.KindNotFound || got != want {
				t.Errorf("%s %s: %q, want %q", op, ref, got, want)
			}
		}
		_, err := o.Get(t.Context(), bob.Tenant, ref)
		_, unknown := o.Get(t.Context(), bob.Tenant, string(never))
		same("get", err, unknown)
		_, err = o.Destroy(t.Context(), bob, ref)
		_, unknown = o.Destroy(t.Context(), bob, string(never))
		same("destroy", err, unknown)
		_, err = o.Exec(t.Context(), bob, ref, sh("true"), &collect{})
		_, unknown = o.Exec(t.Context(), bob, string(never), sh("true"), &collect{})
		same("exec", err, unknown)
		_, err = o.StatFile(t.Context(), bob, ref, "/", "")
		_, unknown = o.StatFile(t.Context(), bob, string(never), "/", "")
		same("stat", err, unknown)
		_, err = o.SetTimeout(t.Context(), bob, ref, time.Second, false)
		_, unknown = o.SetTimeout(t.Context(), bob, string(never), time.Second, false)
		same("timeout", err, unknown)
		_, err = o.GetRun(t.Context(), bob.Tenant, ref, 0)
		_, unknown = o.GetRun(t.Context(), bob.Tenant, string(never), 0)
		same("get run", err, unknown)
		_, err = o.CancelRun(t.Context(), bob, ref)
		_, unknown = o.CancelRun(t.Context(), bob, string(never))
		same("cancel", err, unknown)
		_, err = o.StartRun(t.Context(), bob, ref)
		_, unknown = o.StartRun(t.Context(), bob, string(never))
		same("start", err, unknown)
		_, _, err = o.OpenArtifact(t.Context(), bob, ref, "a")
		_, _, unknown = o.OpenArtifact(t.Context(), bob, string(never), "a")
		same("artifact", err, unknown)
	}
	if r, err := o.GetRun(t.Context(), alice.Tenant, string(going.ID), 0); err != nil || r.State == store.RunEnded {
		t.Errorf("alice's own run: %+v, %v", r, err)
	}
	if sb, err := o.Get(t.Context(), alice.Tenant, "web"); err != nil || sb.State != store.Running {
		t.Errorf("alice's own: %+v, %v", sb, err)
	}
	mustCreate(t, o, bob, CreateRequest{Name: "web"}) // names are per tenant
}

func TestDestroyIsSharedAndNeverWaitsForCallers(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	times := map[time.Time]int{}
	for range 8 {
		wg.Go(func() {
			dead, err := o.Destroy(t.Context(), alice, string(sb.ID))
			if err != nil || dead.Receipt == nil {
				t.Errorf("destroy: %v", err)
				return
			}
			mu.Lock()
			times[dead.Receipt.Time.UTC()]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(times) != 1 {
		t.Errorf("receipts: %v", times)
	}
	n := 0
	for _, a := range w.audit.actions(sb.ID) {
		if a == "sandbox.receipt done" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d receipts in the evidence", n)
	}
	other := mustCreate(t, o, alice, CreateRequest{})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := o.Destroy(gone, alice, string(other.ID)); err != nil {
		wantKind(t, err, sandbox.KindCanceled)
	}
	eventually(t, "the teardown goes on without its caller", func() bool {
		sb, err := o.Get(t.Context(), alice.Tenant, string(other.ID))
		return err == nil && sb.State == store.Ended && sb.Receipt.Clean
	})
}

func TestWithoutEvidenceNothingIsDoneButEnds(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	w.audit.set(errors.New("disk full"))
	if _, err := o.Create(t.Context(), alice, CreateRequest{}); err == nil {
		t.Error("created without evidence")
	}
	if list, _, err := o.List(t.Context(), alice.Tenant, store.Filter{}, store.Page{}); err != nil || len(list) != 1 {
		t.Errorf("records: %d, %v", len(list), err)
	}
	if _, err := o.Exec(t.Context(), alice, string(sb.ID), sh("true"), &collect{}); err == nil {
		t.Error("executed without evidence")
	}
	if _, err := o.WriteFile(t.Context(), alice, string(sb.ID), "f", guest.WriteOptions{}, strings.NewReader("x")); err == nil {
		t.Error("wrote without evidence")
	}
	if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err == nil {
		t.Error("the missing evidence went unnoticed")
	}
	w.audit.set(nil)
	dead, err := o.Get(t.Context(), alice.Tenant, string(sb.ID))
	if err != nil || dead.State != store.Ended || dead.Receipt == nil || !dead.Receipt.Clean || !strings.Contains(strings.Join(dead.Details.Notes, "\n"), "evidence") {
		t.Errorf("destroyed anyway: %+v, %v", dead, err)
	}
	if list, _ := w.sim.List(t.Context()); len(list) != 0 {
		t.Errorf("still there: %v", list)
	}
}

func TestFiles(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	id := string(sb.ID)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	if info, err := o.WriteFile(t.Context(), alice, id, "dir/f", guest.WriteOptions{Mode: 0o600}, strings.NewReader(big)); err != nil || info.Size != 1<<20 || info.Mode.Perm() != 0o600 {
		t.Fatalf("write: %+v, %v", info, err)
	}
	f, err := o.OpenFile(t.Context(), alice, id, "dir/f", guest.ReadOptions{Offset: 16, Length: 4})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	f.Close()
	f.Close()
	if err != nil || string(b) != "0123" || f.Info.Size != 1<<20 {
		t.Errorf("read: %q, %v, %+v", b, err, f.Info)
	}
	if info, err := o.MakeDirectory(t.Context(), alice, id, "x/y", ""); err != nil || !info.IsDir() {
		t.Errorf("mkdir: %+v, %v", info, err)
	}
	if info, err := o.MoveFile(t.Context(), alice, id, "dir/f", "x/g", ""); err != nil || info.Name() != "g" {
		t.Errorf("move: %+v, %v", info, err)
	}
	list, more, err := o.ListFiles(t.Context(), alice, id, "", guest.ListOptions{Depth: 3})
	var names []string
	for _, e := range list {
		names = append(names, e.Path)
	}
	if err != nil || more || !slices.Contains(names, "x/g") || !slices.Contains(names, "x/y") {
		t.Errorf("list: %q, %v, %v", names, more, err)
	}
	if err := o.RemoveFile(t.Context(), alice, id, "x", "", true); err != nil {
		t.Errorf("remove: %v", err)
	}
	_, err = o.StatFile(t.Context(), alice, id, "x", "")
	if e := wantKind(t, err, sandbox.KindNotFound); e.Hint == "" {
		t.Errorf("no hint: %v", err)
	}
	_, err = o.OpenFile(t.Context(), alice, id, "dir", guest.ReadOptions{})
	wantKind(t, err, sandbox.KindIsDirectory)
	_, err = o.StatFile(t.Context(), alice, id, "/etc", "root")
	wantKind(t, err, sandbox.KindDenied)
	_, err = o.StatFile(t.Context(), alice, id, "/etc", "00")
	wantKind(t, err, sandbox.KindDenied)
	_, err = o.StatFile(t.Context(), alice, id, "/etc", "../x")
	wantKind(t, err, sandbox.KindInvalid)
}

// TestDamagedTemplate: nothing runs from a template whose files are not what was
// built; what the boot made meanwhile is destroyed, and there is evidence.
func TestDamagedTemplate(t *testing.T) {
	w := newWorld(t)
	o := w.start()
	w.roots.damaged = sandbox.Errorf("template check", sandbox.KindUnavailable, "template is damaged: /usr/x was changed").WithHint("run `firebreak template rm x`")
	id := sandbox.NewID()
	_, err := o.Create(t.Context(), alice, CreateRequest{ID: id})
	if sandbox.KindOf(err) != sandbox.KindUnavailable || !strings.Contains(err.Error(), "/usr/x was changed") {
		t.Errorf("%v", err)
	}
	if list, err := w.sim.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	sb, err := o.Get(t.Context(), alice.Tenant, string(id))
	if err != nil || sb.State != store.Ended || !strings.Contains(sb.Detail, "damaged") {
		t.Errorf("%+v, %v", sb, err)
	}
	if got := w.audit.actions(id); len(got) == 0 || got[0] != "sandbox.create allowed" {
		t.Errorf("%q", got)
	}
	w.roots.mu.Lock()
	w.roots.damaged = nil
	w.roots.mu.Unlock()
	mustCreate(t, o, alice, CreateRequest{})
}
