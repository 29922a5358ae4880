package orchestrator

import (
	"context"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func wantQuota(t *testing.T, err error, resource string) {
	t.Helper()
	e := wantKind(t, err, sandbox.KindCapacity)
	if e.RetryAfter <= 0 || !strings.Contains(e.Message(), "quota of "+resource) || !strings.Contains(e.Hint, "tenant_"+resource) {
		t.Errorf("not about %s: %v, retry after %v", resource, e, e.RetryAfter)
	}
}

// Creates that come together do not exceed a quota together, a restart counts
// what lives, and the end of one makes room for one.
func TestTenantQuotas(t *testing.T) {
	for name, q := range map[string]TenantQuota{
		"sandboxes": {Sandboxes: 5},
		"memory":    {Memory: 5*64<<20 + 1},
		"disk":      {Disk: 6*100<<20 - 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cfg = func(c *Config) {
				c.Quota.Tenants = map[sandbox.TenantID]TenantQuota{alice.Tenant: q}
				c.DestroyOnClose = false
			}
			o := w.start()
			req := CreateRequest{Limits: sandbox.Limits{Memory: 64 << 20, Disk: 100 << 20}}
			var made atomic.Int64
			var some atomic.Value
			var wg sync.WaitGroup
			for range 30 {
				wg.Go(func() {
					sb, err := o.Create(t.Context(), alice, req)
					if err == nil {
						made.Add(1)
						some.Store(sb)
						return
					}
					wantQuota(t, err, name)
				})
			}
			wg.Wait()
			if made.Load() != 5 {
				t.Fatalf("%d made", made.Load())
			}
			mustCreate(t, o, bob, req) // has a quota of its own
			w.close(o)
			w.cfg = func(c *Config) { c.Quota.Tenant = q }
			o = w.start()
			_, err := o.Create(t.Context(), alice, req)
			wantQuota(t, err, name)
			if _, err := o.Destroy(t.Context(), alice, string(some.Load().(Sandbox).ID)); err != nil {
				t.Fatal(err)
			}
			mustCreate(t, o, alice, req)
			_, err = o.Create(t.Context(), alice, req)
			wantQuota(t, err, name)
			if _, refused := o.Load(); refused[name] < 2 {
				t.Errorf("refusals counted: %v", refused)
			}
		})
	}
}

func TestQuotaOfPrograms(t *testing.T) {
	w := newWorld(t)
	w.cfg = func(c *Config) { c.Quota.Tenant = TenantQuota{Execs: 2, Builds: 1} }
	o := w.start()
	sb := mustCreate(t, o, alice, CreateRequest{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			_, err := o.Exec(ctx, alice, string(sb.ID), sh("sleep 60"), &collect{})
			wantKind(t, err, sandbox.KindCanceled)
		})
	}
	eventually(t, "two programs run", func() bool { return o.ledger.of(alice.Tenant)["execs"] == 2 })
	_, err := o.Exec(t.Context(), alice, string(sb.ID), sh("true"), &collect{})
	wantQuota(t, err, "execs")
	// A run's own program was admitted with the run.
	if r := mustRun(t, o, RunRequest{Exec: sh("exit 3")}); r.ExitCode != 3 {
		t.Errorf("%+v", r)
	}
	cancel()
	wg.Wait()
	mustExec(t, o, alice, sb.ID, sh("true"))

	done, err := o.BeginBuild(alice.Tenant)
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.BeginBuild(alice.Tenant)
	wantQuota(t, err, "builds")
	if other, err := o.BeginBuild(bob.Tenant); err != nil {
		t.Error(err)
	} else {
		other()
	}
	done()
	if again, err := o.BeginBuild(alice.Tenant); err != nil {
		t.Error(err)
	} else {
		again()
	}
	if left := o.ledger.of(bob.Tenant); len(left) != 0 {
		t.Errorf("still counted: %v", left)
	}
}

// What runs leave behind counts until it is forgotten, also after a restart.
func TestQuotaOfKeptBytes(t *testing.T) {
	w := newWorld(t)
	w.cfg = func(c *Config) { c.Quota.Tenant.Kept = 350 << 10 }
	o := w.start()
	data := []byte(strings.Repeat("x", 100<<10))
	req := RunRequest{Exec: sh("true"), Artifacts: []string{"a", "b", "c", "d"},
		Inputs: []Input{{"a", data, 0o644}, {"b", data, 0o644}, {"c", data, 0o644}, {"d", data, 0o644}}}
	r := mustRun(t, o, req)
	collected := 0
	for _, a := range r.Report.Artifacts {
		if a.Error == "" {
			collected++
		}
	}
	used := o.ledger.of(alice.Tenant)["kept"]
	if r.ExitCode != 0 || collected == 0 || collected > 3 || used < int64(collected)*102400 || used >= 350<<10 {
		t.Fatalf("%d collected, %d bytes: %+v", collected, used, r.Report.Artifacts)
	}
	mustRun(t, o, RunRequest{Exec: sh("cat"), Stdin: data}) // output counts, too
	_, err := o.CreateRun(t.Context(), alice, req)
	wantQuota(t, err, "kept")
	if _, err = o.CreateRun(t.Context(), bob, RunRequest{Exec: sh("true")}); err != nil {
		t.Error(err)
	}
	eventually(t, "bob's run ends", func() bool { return o.ledger.of(bob.Tenant)["sandboxes"] == 0 })
	before := o.ledger.of(alice.Tenant)["kept"]
	w.close(o)
	o = w.start()
	if after := o.ledger.of(alice.Tenant)["kept"]; after != before {
		t.Errorf("%d bytes counted after a restart, %d before", after, before)
	}
	_, err = o.Create(t.Context(), alice, CreateRequest{})
	wantQuota(t, err, "kept")
	time.Sleep(10 * time.Millisecond)
	o.Retain = time.Millisecond
	if _, err := o.purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := o.ledger.of(alice.Tenant)["kept"]; left != 0 {
		t.Errorf("%d bytes counted of what is forgotten", left)
	}
	mustCreate(t, o, alice, CreateRequest{})
}

// A run for which there is no room is refused, not accepted and then failed;
// one that is accepted waits for its turn as long as it takes.
func TestRunIsAdmittedFirst(t *testing.T) {
	w := newWorld(t)
	w.sim = sim.New(sim.Config{Boot: 150 * time.Millisecond})
	w.cfg = func(c *Config) {
		c.Quota = Quota{Tenant: TenantQuota{Sandboxes: 6}, Creating: 1, Waiting: 8, Wait: 50 * time.Millisecond}
	}
	o := w.start()
	var accepted []Run
	for range 5 { // one boots, four wait: alice's half of the queue
		r, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("exit 9")})
		if err != nil {
			t.Fatal(err)
		}
		accepted = append(accepted, r)
	}
	_, err := o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("true")})
	if e := wantKind(t, err, sandbox.KindCapacity); e.RetryAfter <= 0 {
		t.Errorf("%+v", e)
	}
	if list, _, err := w.store.Tenant(alice.Tenant).ListRuns(t.Context(), store.Page{}); err != nil || len(list) != len(accepted) {
		t.Errorf("%d records, %v", len(list), err)
	}
	for _, r := range accepted {
		if r = finished(t, o, r.ID); r.ExitCode != 9 || r.Report.Error != nil {
			t.Errorf("%+v", r)
		}
	}
	eventually(t, "everything is given back", func() bool {
		return len(o.ledger.of(alice.Tenant)) <= 1 && o.ledger.of(alice.Tenant)["sandboxes"] == 0 && o.gate.places(alice.Tenant) == 0
	})
	o.ledger.mu.Lock()
	defer o.ledger.mu.Unlock()
	if o.ledger.committed != 0 || o.ledger.sandboxes != 0 {
		t.Errorf("%d bytes of %d sandboxes", o.ledger.committed, o.ledger.sandboxes)
	}
}

// A host that is nearly full says so before it begins anything.
func TestRoom(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	have := Room{}
	w.cfg = func(c *Config) {
		c.Room = func() Room { mu.Lock(); defer mu.Unlock(); return have }
	}
	plenty := Room{DiskFree: 50 << 30, DiskTotal: 100 << 30, Files: 1000, Tasks: 10000}
	o := w.start()
	for name, c := range map[string]struct {
		change func(*Room)
		kind   sandbox.Kind
		says   string
	}{
		"disk":    {func(r *Room) { r.DiskFree = 1<<30 - 1 }, sandbox.KindNoSpace, "disk_reserve"},
		"files":   {func(r *Room) { r.Files = 10 }, sandbox.KindCapacity, "ulimit"},
		"tasks":   {func(r *Room) { r.Tasks = 10 }, sandbox.KindCapacity, "TasksMax"},
		"unknown": {func(r *Room) { *r = Room{DiskFree: -1, Files: -1, Tasks: -1} }, "", ""},
		"small":   {func(r *Room) { r.DiskFree, r.DiskTotal = 600<<20, 10<<30 }, "", ""}, // a twentieth suffices
	} {
		r := plenty
		c.change(&r)
		mu.Lock()
		have = r
		mu.Unlock()
		o.room.at = time.Time{}
		sb, err := o.Create(t.Context(), alice, CreateRequest{})
		if c.kind == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if _, err := o.Destroy(t.Context(), alice, string(sb.ID)); err != nil {
				t.Error(err)
			}
			continue
		}
		if e := wantKind(t, err, c.kind); e.RetryAfter <= 0 || !strings.Contains(e.Hint, c.says) {
			t.Errorf("%s: %+v", name, e)
		}
		_, err = o.BeginBuild(alice.Tenant)
		wantKind(t, err, c.kind)
		_, err = o.CreateRun(t.Context(), alice, RunRequest{Exec: sh("true")})
		wantKind(t, err, c.kind)
	}
	for _, what := range []string{"host_disk", "host_files", "host_tasks"} {
		if _, refused := o.Load(); refused[what] != 3 {
			t.Errorf("refusals counted: %v", refused)
		}
	}
	real := hostRoom(w.dir)()
	if real.DiskFree <= 0 || real.DiskTotal < real.DiskFree || real.Files <= 0 || real.Tasks <= 0 {
		t.Errorf("this host: %+v", real)
	}
}

// One tenant floods, another's single create is served within a turn of each
// boot slot.
func TestFloodOfCreates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const boot, slots = 100 * time.Millisecond, 4
		w := newWorld(t)
		w.sim = sim.New(sim.Config{Boot: boot})
		w.cfg = func(c *Config) {
			c.Quota = Quota{Creating: slots, Wait: time.Minute, Tenant: TenantQuota{Sandboxes: 500}}
		}
		o := w.start()
		var wg sync.WaitGroup
		var made, refused atomic.Int64
		for range 200 {
			wg.Go(func() {
				switch _, err := o.Create(t.Context(), alice, CreateRequest{}); sandbox.KindOf(err) {
				case "":
					made.Add(1)
				case sandbox.KindCapacity:
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		time.Sleep(5*boot + boot/2)
		for range 3 {
			begun := time.Now()
			mustCreate(t, o, bob, CreateRequest{})
			if took := time.Since(begun); took > 2*boot {
				t.Errorf("bob waited %v, a boot takes %v", took, boot)
			}
		}
		if n, _ := o.gate.waiting(); n < 50 {
			t.Errorf("only %d wait: that was no flood", n)
		}
		wg.Wait()
		if made.Load()+refused.Load() != 200 || made.Load() < 128+slots {
			t.Errorf("%d made, %d refused", made.Load(), refused.Load())
		}
	})
}

// The same for programs: a tenant whose guests never answer a start does not
// keep those of others from starting.
func TestStartsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := &Orchestrator{Config: Config{Quota: Quota{Wait: 10 * time.Second}}}
		o.starts = newGate("exec", "start", 2, 20, 10*time.Second, nil)
		var wg sync.WaitGroup
		for range 8 { // none of these is ever started
			wg.Go(func() {
				started, err := o.startTurn(t.Context(), "hostile", false)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Hour)
				started()
			})
		}
		synctest.Wait()
		begun := time.Now()
		started, err := o.startTurn(t.Context(), "honest", false)
		if err != nil {
			t.Fatal(err)
		}
		started()
		started()
		if took := time.Since(begun); took > startHold {
			t.Errorf("waited %v", took)
		}
		wg.Wait()
		if o.starts.free != 2 || o.starts.queued != 0 {
			t.Errorf("%d free, %d queued", o.starts.free, o.starts.queued)
		}
	})
}

func TestQuotaDefaults(t *testing.T) {
	q := Quota{Tenant: TenantQuota{Sandboxes: 7, Kept: Unlimited}, Tenants: map[sandbox.TenantID]TenantQuota{"big": {Sandboxes: 70, Memory: 1 << 30}}}
	for tenant, want := range map[sandbox.TenantID]map[string]int64{
		"big":   {"sandboxes": 70, "memory": 1 << 30, "kept": Unlimited, "builds": 2},
		"other": {"sandboxes": 7, "memory": Unlimited, "kept": Unlimited, "builds": 2},
	} {
		got := q.Of(tenant)
		for name := range maps.Keys(want) {
			if v := *resource(name).Field(&got); v != want[name] {
				t.Errorf("%s of %s: %d, want %d", name, tenant, v, want[name])
			}
		}
	}
}
