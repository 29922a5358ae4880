package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// known is a sandbox as the model has it.
type known struct {
	sb      Sandbox
	ended   bool
	reason  sandbox.Reason // once it has ended
	unclean bool           // something of it resisted
	owed    bool           // its end could not be written yet
}

// machine drives an Orchestrator at random and knows what it must say.
type machine struct {
	dir     string
	store   *store.Store
	second  *sql.DB // another connection to the same file
	hub     *event.Hub
	audit   *evidence
	roots   *roots
	backend *unreliable
	o       *Orchestrator

	all     map[sandbox.ID]*known
	ids     []sandbox.ID                // of all, in order: what is drawn must not depend on random ids
	orphans map[sandbox.InstanceID]bool // that resisted
	full    bool                        // the store takes nothing
}

const (
	perTenant = 3
	mem       = 64 << 20
)

func newMachine(t *rapid.T) *machine {
	dir, err := os.MkdirTemp("", "fb")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{dir: dir, audit: &evidence{}, roots: &roots{}, backend: &unreliable{Backend: sim.New(sim.Config{})},
		all: map[sandbox.ID]*known{}, orphans: map[sandbox.InstanceID]bool{}}
	quiet := slog.New(slog.DiscardHandler)
	if m.store, err = store.Open(context.Background(), filepath.Join(dir, "state.db"), quiet); err != nil {
		t.Fatal(err)
	}
	if m.second, err = sql.Open("sqlite", filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	if m.hub, err = event.Open(filepath.Join(dir, "events"), event.Options{}, quiet); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	return m
}

func (m *machine) open(t *rapid.T) {
	var err error
	m.o, err = New(Config{Backends: []sandbox.Backend{m.backend}, Store: m.store, Recorder: m.audit, Events: m.hub, Templates: m.roots,
		Runs: filepath.Join(m.dir, "runs"), Defaults: Defaults{Backend: "sim", Limits: sandbox.Limits{Memory: mem}},
		Quota:  Quota{Tenant: TenantQuota{Sandboxes: perTenant}},
		Memory: func() (int64, int64) { return 64 << 30, 48 << 30 }, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = m.o.Start(context.Background())
	}
	if err != nil {
		t.Fatalf("start: %v", err)
	}
}

func (m *machine) closeOrchestrator(t *rapid.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := m.o.Close(ctx); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// close ends everything; nothing may be left.
func (m *machine) close(t *rapid.T) {
	m.setFull(t, false)
	m.audit.set(nil)
	m.closeOrchestrator(t)
	for what, err := range map[string]error{"backend": m.backend.Close(), "events": m.hub.Close(), "second": m.second.Close(), "store": m.store.Close(), "directory": os.RemoveAll(m.dir)} {
		if err != nil {
			t.Errorf("close %s: %v", what, err)
		}
	}
	if m.roots.users != 0 {
		t.Errorf("%d template leases are left", m.roots.users)
	}
}

// setFull makes every write of a sandbox's record fail, or not any more.
func (m *machine) setFull(t *rapid.T, full bool) {
	if m.full == full {
		return
	}
	m.full = full
	for _, on := range []string{"INSERT", "UPDATE"} {
		text := "DROP TRIGGER full_" + on
		if full {
			text = "CREATE TRIGGER full_" + on + " BEFORE " + on + " ON sandboxes BEGIN SELECT RAISE(ABORT, 'full'); END"
		}
		if _, err := m.second.Exec(text); err != nil {
			t.Fatal(err)
		}
	}
}

// live lists the model's living sandboxes of a tenant, or of all.
func (m *machine) live(tenant sandbox.TenantID) (list []*known) {
	for _, id := range m.ids {
		if k := m.all[id]; !k.ended && (tenant == "" || k.sb.Tenant == tenant) {
			list = append(list, k)
		}
	}
	return list
}

func caller(t *rapid.T) Caller { return rapid.SampledFrom([]Caller{alice, bob}).Draw(t, "caller") }

// some draws a sandbox, dead or alive; it skips when there is none.
func (m *machine) some(t *rapid.T) *known {
	if len(m.all) == 0 {
		t.Skip("none yet")
	}
	return m.all[m.ids[rapid.IntRange(0, len(m.ids)-1).Draw(t, "sandbox")]]
}

func (m *machine) create(t *rapid.T) {
	who := caller(t)
	name := rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "name")
	broken := rapid.IntRange(0, 4).Draw(t, "broken") == 0
	if broken {
		m.backend.creates = 1
	}
	sb, err := m.o.Create(context.Background(), who, CreateRequest{Name: name})
	// One whose end could not be written is dead and yet on record.
	onRecord, taken := 0, false
	for _, k := range m.all {
		if k.sb.Tenant == who.Tenant && (!k.ended || k.owed) {
			onRecord++
			taken = taken || name != "" && k.sb.Name == name
		}
	}
	want := sandbox.Kind("")
	switch {
	case len(m.live(who.Tenant)) >= perTenant:
		want = sandbox.KindCapacity
	case m.audit.refuse != nil:
		want = sandbox.KindInternal
	case onRecord >= perTenant:
		want = sandbox.KindCapacity
	case taken:
		want = sandbox.KindExists
	case m.full, broken:
		want = sandbox.KindInternal
	}
	m.backend.creates = 0
	if sandbox.KindOf(err) != want && (want != "" || err != nil) {
		t.Fatalf("create %q: %v, want %q", name, err, want)
	}
	var e *sandbox.Error
	switch {
	case err == nil:
		m.all[sb.ID] = &known{sb: sb}
		m.ids = append(m.ids, sb.ID)
	case want == sandbox.KindInternal && m.audit.refuse == nil && !m.full && errors.As(err, &e) && sandbox.ID(e.ID).Valid():
		k := &known{sb: Sandbox{Sandbox: store.Sandbox{ID: sandbox.ID(e.ID), Tenant: who.Tenant, Name: name}}, ended: true, reason: sandbox.ReasonCrashed}
		m.all[k.sb.ID] = k
		m.ids = append(m.ids, k.sb.ID)
	}
}

func (m *machine) destroy(t *rapid.T) {
	k, who := m.some(t), caller(t)
	ref := string(k.sb.ID)
	if k.sb.Name != "" && !k.ended && rapid.Bool().Draw(t, "by name") {
		ref = k.sb.Name
		if who.Tenant != k.sb.Tenant {
			who = Caller{k.sb.Tenant, "owner"} // the other tenant may have one of that name
		}
	}
	resists := !k.ended && rapid.IntRange(0, 4).Draw(t, "resists") == 0
	if resists {
		m.backend.removes = 1
	}
	sb, err := m.o.Destroy(context.Background(), who, ref)
	m.backend.removes = 0
	if who.Tenant != k.sb.Tenant {
		if sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Fatalf("destroy of another tenant's: %+v, %v", sb, err)
		}
		return
	}
	refused := m.full || m.audit.refuse != nil
	switch {
	case k.ended && !k.owed:
		if err != nil || sb.State != store.Ended || sb.Reason != k.reason {
			t.Fatalf("destroy again: %+v, %v", sb, err)
		}
	case refused || resists || k.unclean:
		if err == nil && !k.owed {
			t.Fatalf("destroy: %+v, and no error", sb)
		}
	case err != nil:
		t.Fatalf("destroy: %v", err)
	}
	if !k.ended {
		k.ended, k.reason, k.unclean = true, sandbox.ReasonOperator, resists
		if resists {
			m.orphans[k.sb.Instance] = true
		}
	}
	m.settle()
}

// settle notes whose end is still to be written: trying again is up to the
// orchestrator, and may succeed for one and not for another.
func (m *machine) settle() {
	for id, k := range m.all {
		k.owed = k.ended && m.owes(id)
	}
}

// owes reports whether an end is over and could not be written.
func (m *machine) owes(id sandbox.ID) bool {
	m.o.mu.Lock()
	defer m.o.mu.Unlock()
	l := m.o.lives[id]
	return l != nil && l.over()
}

func (m *machine) exec(t *rapid.T) {
	k, who := m.some(t), caller(t)
	c := &collect{}
	exit, err := m.o.Exec(context.Background(), who, string(k.sb.ID), sh("echo hi"), c)
	switch {
	case who.Tenant != k.sb.Tenant:
		if sandbox.KindOf(err) != sandbox.KindNotFound {
			t.Fatalf("another tenant's exec: %v", err)
		}
	case k.ended:
		if sandbox.KindOf(err) != sandbox.KindGone {
			t.Fatalf("exec after the end: %v", err)
		}
	case m.audit.refuse != nil:
		if err == nil {
			t.Fatal("an exec without evidence")
		}
	case err != nil || exit.Code != 0 || c.out.String() != "hi\n":
		t.Fatalf("exec: %+v %q %v", exit, c.out.String(), err)
	}
}

func (m *machine) timeout(t *rapid.T) {
	k := m.some(t)
	d := time.Duration(rapid.IntRange(0, 48).Draw(t, "hours")) * time.Hour
	sb, err := m.o.SetTimeout(context.Background(), Caller{k.sb.Tenant, "x"}, string(k.sb.ID), d, false)
	switch {
	case k.ended:
		if sandbox.KindOf(err) != sandbox.KindGone {
			t.Fatalf("timeout after the end: %v", err)
		}
	case m.full || m.audit.refuse != nil:
		if err == nil {
			t.Fatal("a timeout that nobody could write down")
		}
	case err != nil || sb.ExpiresAt.IsZero() != (d == 0):
		t.Fatalf("%+v, %v", sb.ExpiresAt, err)
	}
}

// dies kills a boundary from outside.
func (m *machine) dies(t *rapid.T) {
	k := m.some(t)
	if k.ended {
		t.Skip("it has ended")
	}
	l := m.o.find(k.sb.Tenant, string(k.sb.ID))
	if err := m.backend.Crash(k.sb.Instance); err != nil {
		t.Fatal(err)
	}
	<-l.dying
	<-l.ending.done
	k.ended, k.reason = true, sandbox.ReasonCrashed
	m.settle()
}

// restart is a server that stops and starts: what lives is adopted.
func (m *machine) restart(t *rapid.T) {
	if m.full || m.audit.refuse != nil {
		t.Skip("an operator makes room first")
	}
	m.sweep(t)
	m.closeOrchestrator(t)
	m.open(t)
	clear(m.orphans) // destroyed at start
}

// sweep is what the reaper does every minute.
func (m *machine) sweep(t *rapid.T) {
	err := m.o.sweep(context.Background())
	clear(m.orphans) // whatever can be written about them
	unclean := slices.ContainsFunc(m.ids, func(id sandbox.ID) bool { return m.all[id].owed && m.all[id].unclean })
	m.settle()
	if m.full || m.audit.refuse != nil {
		return
	}
	for id, k := range m.all {
		if k.owed {
			t.Fatalf("the end of %s is still not written: %v", id, err)
		}
	}
	if err != nil && !unclean {
		t.Fatalf("sweep: %v", err)
	}
}

// check compares what is with what must be, after every step.
func (m *machine) check(t *rapid.T) {
	m.checkMaps(t)
	m.checkRecords(t)
	list, err := m.backend.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range list {
		if !m.orphans[st.Instance] && !slices.ContainsFunc(m.live(""), func(k *known) bool { return k.sb.Instance == st.Instance }) {
			t.Fatalf("instance %s is nobody's", st.Instance)
		}
	}
	if want := len(m.live("")) + len(m.orphans); len(list) != want {
		t.Fatalf("%d instances, want %d", len(list), want)
	}
}

// checkMaps: the ledger, the maps and the leases agree with what lives.
func (m *machine) checkMaps(t *rapid.T) {
	live := m.live("")
	for _, who := range []Caller{alice, bob} {
		n := int64(len(m.live(who.Tenant)))
		if c := m.o.ledger.of(who.Tenant); c["sandboxes"] != n || c["memory"] != n*mem || c["execs"] != 0 {
			t.Fatalf("the ledger of %s is %v, %d live", who.Tenant, c, n)
		}
	}
	m.o.mu.Lock()
	defer m.o.mu.Unlock()
	for _, k := range live {
		l := m.o.lives[k.sb.ID]
		if l == nil || k.sb.Name != "" && m.o.names[nameKey{k.sb.Tenant, k.sb.Name}] != l {
			t.Fatalf("%s (%q) is not known", k.sb.ID, k.sb.Name)
		}
	}
	for id, l := range m.o.lives {
		if k := m.all[id]; k == nil || k.ended && !k.owed {
			t.Fatalf("%s is still known: %+v", id, l.sb.State)
		}
	}
	for key, l := range m.o.names {
		if m.o.lives[l.id] != l || l.name != key.name {
			t.Fatalf("the name %v leads to %s", key, l.id)
		}
	}
	m.roots.mu.Lock()
	defer m.roots.mu.Unlock()
	if m.roots.users != len(live) {
		t.Fatalf("%d template leases, %d live", m.roots.users, len(live))
	}
}

var order = []string{"creating", "running", "stopping", "ended"}

// checkRecords: every record says what happened, and was told in order.
func (m *machine) checkRecords(t *rapid.T) {
	for id, k := range m.all {
		sb, err := m.o.Get(context.Background(), k.sb.Tenant, string(id))
		switch {
		case err != nil:
			t.Fatal(err)
		case k.owed: // it is tried again; until then the record is as it was
		case !k.ended && sb.State != store.Running:
			t.Fatalf("%s is %s, want running", id, sb.State)
		case k.ended && (sb.State != store.Ended || sb.Reason != k.reason || sb.Receipt == nil || sb.Receipt.Clean == k.unclean):
			t.Fatalf("%s ended as %s %s %+v, want %s, unclean %v", id, sb.State, sb.Reason, sb.Receipt, k.reason, k.unclean)
		}
		sub, err := m.hub.Subscribe(context.Background(), id, 0)
		if err != nil {
			t.Fatal(err)
		}
		events, err := sub.Ready()
		sub.Close()
		if err != nil {
			t.Fatal(err)
		}
		at := -1
		for i, e := range events {
			if e.ID != uint64(i+1) {
				t.Fatalf("event %d of %s has id %d", i, id, e.ID)
			}
			if e.Type == event.StateChange {
				next := slices.IndexFunc(order, func(s string) bool { return string(e.Data[:len(`{"state":"`)+len(s)+1]) == `{"state":"`+s+`"` })
				if next <= at {
					t.Fatalf("%s went from %d to %s", id, at, e.Data)
				}
				at = next
			}
		}
	}
}

// TestRandomLives drives the orchestrator through random commands and faults.
// What fails is shrunk to the shortest sequence that does.
func TestRandomLives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		leak := goleak.IgnoreCurrent()
		m := newMachine(t)
		defer func() {
			m.close(t)
			if err := goleak.Find(leak); err != nil {
				t.Error(err)
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"create": m.create, "create more": m.create, "destroy": m.destroy, "exec": m.exec, "timeout": m.timeout,
			"agent dies": m.dies, "restart": m.restart, "sweep": m.sweep,
			"evidence is refused": func(*rapid.T) { m.audit.set(errors.New("the disk of the log is full")) },
			"evidence is taken":   func(*rapid.T) { m.audit.set(nil) },
			"store is full":       func(t *rapid.T) { m.setFull(t, true) },
			"store has room":      func(t *rapid.T) { m.setFull(t, false) },
			"":                    m.check,
		})
	})
}
