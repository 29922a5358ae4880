// Package overload floods a whole server, with three tenants and many times what
// it can do, and looks at what everybody gets.
package overload

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/server"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// daemon is a server in this process, over a model of a backend.
type daemon struct {
	t     *testing.T
	url   string
	store *store.Store
	sim   *sim.Backend
	orch  *orchestrator.Orchestrator
	keys  map[sandbox.TenantID]string
}

func start(t *testing.T, q orchestrator.Quota, tenants ...sandbox.TenantID) *daemon {
	t.Helper()
	dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	d := &daemon{t: t, sim: sim.New(sim.Config{Boot: 20 * time.Millisecond}), keys: map[sandbox.TenantID]string{}}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	d.store, err = store.Open(t.Context(), filepath.Join(dir, "state.db"), quiet)
	check(err)
	record, err := audit.Open(filepath.Join(dir, "audit"), audit.Options{}, quiet)
	check(err)
	events, err := event.Open(filepath.Join(dir, "events"), event.Options{}, quiet)
	check(err)
	templates, err := template.New(filepath.Join(dir, "templates"), quiet)
	check(err)
	keys := auth.New(d.store, auth.Options{})
	d.orch, err = orchestrator.New(orchestrator.Config{Backends: []sandbox.Backend{d.sim}, Store: d.store, Recorder: record, Events: events,
		Templates: templates, Runs: filepath.Join(dir, "runs"), Defaults: orchestrator.Defaults{Backend: "sim"}, Quota: q, DestroyOnClose: true,
		Memory: func() (int64, int64) { return 1 << 40, 1 << 40 }})
	check(err)
	svc, err := service.New(service.Config{Orchestrator: d.orch, Store: d.store, Auth: keys, Events: events, Recorder: record, Templates: templates})
	check(err)
	srv, err := server.New(server.Config{API: svc, Auth: keys, Log: quiet, Load: d.orch.Load, Rates: func(tenant sandbox.TenantID) server.Rates {
		q := d.orch.Quota.Of(tenant)
		return server.Rates{Tenant: q.Requests, Key: q.KeyRequests, Burst: q.Burst}
	}})
	check(err)
	check(d.orch.Start(t.Context()))
	for _, tenant := range tenants {
		token, _, err := keys.CreateKey(t.Context(), auth.Principal{Tenant: tenant, ID: "test", Role: auth.Owner}, auth.NewKeyRequest{Name: "k", Role: auth.Developer})
		check(err)
		d.keys[tenant] = token
	}
	l, err := server.ListenTCP(t.Context(), "127.0.0.1:0")
	check(err)
	d.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, close := range []func() error{func() error { return d.orch.Close(ctx) }, keys.Close, events.Close, record.Close, d.store.Close, d.sim.Close} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
	})
	return d
}

// call sends one request and decodes the answer.
func (d *daemon) call(c *http.Client, tenant sandbox.TenantID, method, path string, in any) (status int, out map[string]any) {
	body, _ := json.Marshal(in)
	req, err := http.NewRequest(method, d.url+path, bytes.NewReader(body))
	if err != nil {
		d.t.Error(err)
		return 0, nil
	}
	if in == nil {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	req.Header.Set("Authorization", "Bearer "+d.keys[tenant])
	res, err := c.Do(req)
	if err != nil {
		d.t.Errorf("%s %s: %v", method, path, err)
		return 0, nil
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		d.t.Errorf("%s %s: %d %s: %v", method, path, res.StatusCode, b, err)
	}
	if res.StatusCode == http.StatusTooManyRequests && (res.Header.Get("Retry-After") == "" || kind(out) != "capacity") {
		d.t.Errorf("%s %s: %d without Retry-After or kind: %s", method, path, res.StatusCode, b)
	}
	return res.StatusCode, out
}

func kind(out map[string]any) any {
	e, _ := out["error"].(map[string]any)
	return e["kind"]
}

func client(t *testing.T) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// TestOverload: two tenants ask for ten times what there is, by creates, runs
// and execs. Whatever is refused says so and when to come back; what is accepted
// is done; nothing is lost; and the third tenant, who asks for little, gets it.
func TestOverload(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("flood", func(t *testing.T) { flood(t) })
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

func flood(t *testing.T) {
	const loud, louder, quiet = sandbox.TenantID("loud"), sandbox.TenantID("louder"), sandbox.TenantID("quiet")
	d := start(t, orchestrator.Quota{Creating: 4, Waiting: 32, Wait: 5 * time.Second, Host: 100,
		Tenant: orchestrator.TenantQuota{Sandboxes: 20, Execs: 10, Requests: 200, Burst: 100}}, loud, louder, quiet)
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[sandbox.TenantID]map[int]int{loud: {}, louder: {}, quiet: {}}
	alive := map[string]sandbox.TenantID{}
	var runs []string
	count := func(tenant sandbox.TenantID, what string, status int, out map[string]any) {
		mu.Lock()
		defer mu.Unlock()
		statuses[tenant][status]++
		if status >= 500 || status == 0 {
			t.Errorf("%s: %d %v", what, status, out)
		}
	}
	one := func(tenant sandbox.TenantID, c *http.Client, i int) {
		if i%3 == 0 {
			status, out := d.call(c, tenant, "POST", "/v1/runs", map[string]any{"program": map[string]any{"code": "exit 7", "language_pack": "shell"}})
			count(tenant, "run", status, out)
			if status == http.StatusCreated {
				mu.Lock()
				runs = append(runs, string(tenant)+" "+out["id"].(string))
				mu.Unlock()
			}
			return
		}
		status, out := d.call(c, tenant, "POST", "/v1/sandboxes", map[string]any{})
		count(tenant, "create", status, out)
		if status != http.StatusCreated {
			return
		}
		id := out["id"].(string)
		mu.Lock()
		alive[id] = tenant
		mu.Unlock()
		status, out = d.call(c, tenant, "POST", "/v1/sandboxes/"+id+"/exec", map[string]any{"code": "echo hello", "language_pack": "shell"})
		count(tenant, "exec", status, out)
		if status == http.StatusOK && out["stdout"] != "hello\n" {
			t.Errorf("exec: %v", out)
		}
		if i%2 == 0 {
			return // forgotten
		}
		status, out = d.call(c, tenant, "DELETE", "/v1/sandboxes/"+id, nil)
		count(tenant, "destroy", status, out)
		if status == http.StatusOK {
			mu.Lock()
			delete(alive, id)
			mu.Unlock()
		}
	}
	// What the machine takes for one when nobody else asks for anything.
	begun := time.Now()
	for range 3 {
		one(quiet, client(t), 1)
	}
	alone := time.Since(begun) / 3
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	for _, tenant := range []sandbox.TenantID{loud, louder} {
		c := client(t)
		for range 60 {
			wg.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					one(tenant, c, i)
				}
			})
		}
	}
	var took []time.Duration
	wg.Go(func() {
		c := client(t)
		for ctx.Err() == nil {
			begun := time.Now()
			one(quiet, c, 1) // create, exec, destroy
			took = append(took, time.Since(begun))
			time.Sleep(10 * time.Millisecond)
		}
	})
	wg.Wait()
	slices.Sort(took)
	t.Logf("answers: %v", statuses)
	t.Logf("the quiet tenant: %d times, median %v, slowest %v; alone %v", len(took), took[len(took)/2], took[len(took)-1], alone)
	if n := statuses[quiet][http.StatusTooManyRequests]; n > 0 {
		t.Errorf("the quiet tenant was refused %d of %d times", n, len(took))
	}
	// Its creates wait for one boot of each of the others at most; the disk and
	// the processors are everybody's.
	if p := took[len(took)*99/100]; p > max(5*time.Second, 30*alone) {
		t.Errorf("the quiet tenant waited %v", p)
	}
	for _, tenant := range []sandbox.TenantID{loud, louder} {
		if s := statuses[tenant]; s[http.StatusTooManyRequests] < s[http.StatusCreated] {
			t.Errorf("that was no flood: %v", s)
		}
	}
	d.settled(runs, alive)
}

// settled checks that every accepted run was carried out, that what should live
// lives and is counted, and nothing else.
func (d *daemon) settled(runs []string, alive map[string]sandbox.TenantID) {
	ctx := context.Background()
	for _, r := range runs {
		var tenant, id string
		for i := range r {
			if r[i] == ' ' {
				tenant, id = r[:i], r[i+1:]
			}
		}
		run, err := d.orch.GetRun(ctx, sandbox.TenantID(tenant), id, 30*time.Second)
		if err != nil || run.State != store.RunEnded || run.ExitCode != 7 || run.Report.Error != nil {
			d.t.Errorf("an accepted run: %+v, %v", run, err)
		}
	}
	live, err := d.store.System().LiveSandboxes(ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	used := map[sandbox.TenantID]int64{}
	for _, sb := range live {
		used[sb.Tenant]++
		if alive[string(sb.ID)] != sb.Tenant {
			d.t.Errorf("%s of %s lives and nobody was told, or told that it ended", sb.ID, sb.Tenant)
		}
		delete(alive, string(sb.ID))
	}
	if len(alive) > 0 {
		d.t.Errorf("lost: %v", alive)
	}
	if list, err := d.sim.List(ctx); err != nil || len(list) != len(live) {
		d.t.Errorf("%d instances of %d sandboxes, %v", len(list), len(live), err)
	}
	for tenant := range d.keys {
		for _, u := range d.orch.Quotas(tenant) {
			want := int64(0)
			if u.Name == "sandboxes" {
				want = used[tenant]
			}
			if (u.Name == "sandboxes" || u.Name == "execs" || u.Name == "boots") && u.Used != want {
				d.t.Errorf("%s: %d %s counted, %d there", tenant, u.Used, u.Name, want)
			}
		}
	}
}
