package model

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/client"
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

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// tenants of every history.
var tenants = []string{"default", "other"}

// templates is one template, which the model backend does not read.
type templates struct{}

var hostTemplate = template.Template{Name: "host", Digest: "sha256:" + strings.Repeat("a", 64), Packs: []string{"shell"}, Default: "shell",
	Root: sandbox.Root{Mutable: true}}

func (templates) Resolve(context.Context, string) (template.Template, error) {
	return hostTemplate, nil
}
func (templates) Choose(context.Context, string) (template.Template, error) { return hostTemplate, nil }
func (templates) Check(context.Context, string) error                       { return nil }

func (templates) Acquire(string) (func(), error)                    { return func() {}, nil }
func (templates) List(context.Context) ([]template.Template, error) { return nil, nil }
func (templates) Remove(context.Context, string) error              { return nil }
func (templates) Receive(context.Context, string, io.Reader) (string, int64, error) {
	return "", 0, errors.ErrUnsupported
}
func (templates) Collect(context.Context, template.CollectOptions) (template.Collected, error) {
	return template.Collected{}, nil
}
func (templates) Build(context.Context, string, template.BuildOptions) (template.Template, error) {
	return template.Template{}, errors.New("not here")
}

// node is a whole server in this process, over the model backend.
type node struct {
	t    *testing.T
	url  string
	keys map[string]string
}

// newNode starts one whose tenants may have limit living sandboxes each. With
// between, that stands before the API.
func newNode(t *testing.T, limit int, between func(http.Handler) http.Handler) *node {
	t.Helper()
	dir, quiet := t.TempDir(), slog.New(slog.DiscardHandler)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	closing := func(what string, f func() error) {
		t.Cleanup(func() {
			if err := f(); err != nil {
				t.Errorf("close %s: %v", what, err)
			}
		})
	}
	st, err := store.Open(t.Context(), filepath.Join(dir, "state.db"), quiet)
	must(err)
	closing("store", st.Close)
	log, err := audit.Open(filepath.Join(dir, "audit"), audit.Options{}, quiet)
	must(err)
	closing("audit", log.Close)
	hub, err := event.Open(filepath.Join(dir, "events"), event.Options{}, quiet)
	must(err)
	closing("events", hub.Close)
	keys := auth.New(st, auth.Options{})
	closing("auth", keys.Close)
	backend := sim.New(sim.Config{})
	o, err := orchestrator.New(orchestrator.Config{Backends: []sandbox.Backend{backend}, Store: st, Recorder: log, Events: hub, Templates: templates{},
		Runs: filepath.Join(dir, "runs"), Defaults: orchestrator.Defaults{Backend: "sim"}, DestroyOnClose: true, Log: quiet,
		Quota:  orchestrator.Quota{Tenant: orchestrator.TenantQuota{Sandboxes: int64(limit)}, Creating: 8, Waiting: 1000, Wait: time.Minute},
		Memory: func() (int64, int64) { return 1 << 40, 1 << 40 }})
	must(err)
	must(o.Start(t.Context()))
	closing("backend", backend.Close)
	closing("orchestrator", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return o.Close(ctx)
	})
	svc, err := service.New(service.Config{Orchestrator: o, Store: st, Auth: keys, Events: hub, Recorder: log, Templates: templates{}, Version: &v1.GetVersionResponse{}})
	must(err)
	srv, err := server.New(server.Config{API: svc, Auth: keys, Log: quiet, Drain: time.Second})
	must(err)
	n := &node{t: t, keys: map[string]string{}}
	for _, tenant := range tenants {
		n.keys[tenant], _, err = keys.CreateKey(t.Context(), auth.Principal{Tenant: sandbox.TenantID(tenant), ID: "test", Role: auth.Owner}, auth.NewKeyRequest{Name: tenant, Role: auth.Owner})
		must(err)
	}
	n.listen(srv, between)
	return n
}

// listen serves: as the program does or, with between, behind that.
func (n *node) listen(srv *server.Server, between func(http.Handler) http.Handler) {
	if between != nil {
		h := httptest.NewServer(between(srv))
		n.t.Cleanup(h.Close)
		n.url = h.URL
		return
	}
	l, err := server.ListenTCP(n.t.Context(), "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	n.url = "http://" + l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := srv.Serve(ctx, l); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(func() { cancel(); serving.Wait() })
}

// clients makes connections for each tenant.
func (n *node) clients() map[string]func() *client.Client {
	m := map[string]func() *client.Client{}
	for tenant, key := range n.keys {
		m[tenant] = func() *client.Client {
			c, err := client.New(client.Options{URL: n.url, APIKey: key})
			if err != nil {
				panic(err) // the URL is ours
			}
			return c
		}
	}
	return m
}

// TestHistories: thousands of concurrent calls of two tenants over HTTP, some of
// which do not wait for their answer, have an order that the model allows.
func TestHistories(t *testing.T) {
	rounds, calls := 3, 100
	if testing.Short() {
		rounds, calls = 1, 60
	}
	total := 0
	for round := range rounds {
		n := newNode(t, 6, nil)
		h := newRecorder(t, load{tenants: n.clients(), clients: 8, calls: calls, limit: 6, alive: 7, patient: 20 * time.Second,
			cancel: 0.04, short: 150 * time.Millisecond, seed: uint64(time.Now().UnixNano())}).run()
		total += len(h.calls)
		t.Logf("round %d: %d calls: %s", round, len(h.calls), h.words())
		h.mustBeLegal(t)
	}
	t.Logf("%d calls", total)
}
