// Package node wires a complete Firebreak: backends, state, evidence, events,
// templates, orchestrator, operations and the API over them. Nothing here
// decides anything; every part is made by its own constructor.
//
//	w := node.Wiring{Build: build}
//	local, err := w.Local(ctx, cli.LocalOptions{Config: cfg})   // for one command
//	err = w.Serve(ctx, cli.ServeOptions{Config: cfg, …})        // for good
//
// # The data directory
//
//	lock state.db secrets/ events/ runs/ processes/ instances/ wires/ api-key   the server's own, one owner at a time
//	audit/server/                                     its evidence
//	templates/ libexec/                               shared by all processes
//	run/<id>/                                         one in-process run, laid out like the server's own
//	audit/run-<id>/                                   its evidence, which stays when run/<id> is gone
//
// A run/<id> whose lock is free belonged to a process that died. The next run
// or server opens it once more, which destroys what the dead process left and
// records that, and removes it.
package node

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/cli"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/internal/server"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Wiring is what all nodes of this program have in common.
type Wiring struct{ Build cli.Build }

// options says what a node is made of.
type options struct {
	dir     string // state, events, runs, instances; locked by the caller
	audit   string // evidence
	config  *config.Config
	destroy bool // whether its sandboxes end with it
	local   bool // nobody but this process's own user calls it
	serves  bool // it is a server, which records its beginning and end
	dead    bool // the process they belonged to has died: they end at once, lost
	log     *slog.Logger
	// progress, if not nil, is told about work that takes long.
	progress func(string)
	hosts    []string
	stock    func(context.Context, pool.Shape) (pool.Stock, error) // set by open
	look     func()                                                // ditto
	// authenticate wraps the authenticator, if not nil.
	authenticate func(*auth.Authenticator) server.Authenticator
}

// quota is what the configuration allows.
func (o *options) quota() orchestrator.Quota {
	q := o.config.Quota
	q.Host = o.config.MaxSandboxes
	return q
}

// tokens opens the sandboxes' tokens, where somebody may be handed one.
func (o *options) tokens() (*auth.Tokens, error) {
	if !o.serves {
		return nil, nil
	}
	return auth.OpenTokens(o.dir)
}

// broker opens the tenants' secrets, which only a server keeps.
func (o *options) broker(st *store.Store) *broker.Broker {
	if !o.serves {
		return nil
	}
	return broker.New(filepath.Join(o.dir, "secrets"), service.FindSecret(st))
}

// node is a running Firebreak without listeners.
type node struct {
	server   *server.Server
	service  *service.Service
	auth     *auth.Authenticator
	orch     *orchestrator.Orchestrator
	backends []sandbox.Backend
	closers  []func() error // in the order they were opened
	evidence *audit.Log
	store    *store.Store
	stopping func() error // the last thing that is recorded; nil: nothing is
}

// open makes a node and recovers what an earlier one in its directory left. On
// error, what was opened is closed again.
func (w Wiring) open(ctx context.Context, o options) (n *node, err error) {
	n = &node{}
	o.stock = func(ctx context.Context, s pool.Shape) (pool.Stock, error) { return n.orch.Stock(ctx, s) }
	o.look = func() { n.orch.Look() }
	defer func() {
		if err != nil {
			err = errors.Join(err, n.closeParts())
			n = nil
		}
	}()
	bs, release, err := backends(o)
	if err != nil {
		return n, err
	}
	n.backends, n.closers = bs, append(n.closers, release)
	for _, b := range n.backends {
		n.closers = append(n.closers, b.Close)
	}
	st, err := store.Open(ctx, filepath.Join(o.dir, "state.db"), o.log)
	if err != nil {
		return n, err
	}
	n.closers = append(n.closers, st.Close)
	n.store = st
	record, err := n.openAudit(o)
	if err != nil {
		return n, err
	}
	n.evidence = record
	n.closers = append(n.closers, func() error { // the last act, before the log is closed
		if n.stopping == nil {
			return nil
		}
		return n.stopping()
	})
	if o.serves {
		if err := w.recordStart(ctx, n, o.config); err != nil {
			return n, err
		}
	}
	events, err := event.Open(filepath.Join(o.dir, "events"), event.Options{Retain: o.config.Retain}, o.log)
	if err != nil {
		return n, err
	}
	n.closers = append(n.closers, events.Close)
	templates, err := openTemplates(o)
	if err != nil {
		return n, err
	}
	n.auth = auth.New(st, auth.Options{})
	n.closers = append(n.closers, n.auth.Close)
	secrets := o.broker(st)
	bound := newBindings(st, secrets)
	network, stopNetwork := newNetwork(o, secrets, bound, func(id sandbox.InstanceID, e orchestrator.EgressEvent) error { return n.orch.RecordEgress(id, e) })
	n.closers = append(n.closers, stopNetwork)
	c := orchestrator.Config{
		Network:  network,
		Backends: n.backends, Store: st, Recorder: record, Events: events, Templates: templates, Log: o.log,
		Runs:           filepath.Join(o.dir, "runs"),
		Snapshots:      filepath.Join(o.dir, "snapshots"),
		Defaults:       orchestrator.Defaults{Backend: o.config.Backend, Template: o.config.Template, MinIsolation: o.config.MinIsolation},
		Quota:          o.quota(),
		AllowRoot:      o.config.AllowRoot,
		Retain:         o.config.Retain,
		DestroyOnClose: o.destroy,
		Alone:          !o.serves,
		Abandoned:      o.dead,
	}
	if bound != nil {
		c.Bindings = bound
	}
	if n.orch, err = orchestrator.New(c); err != nil {
		return n, err
	}
	tokens, err := o.tokens()
	if err != nil {
		return n, err
	}
	svc, err := service.New(service.Config{
		Orchestrator: n.orch, Store: st, Auth: n.auth, Events: events, Recorder: record, Evidence: record, EvidenceDir: o.audit, Templates: templates,
		Tokens:  tokens,
		Broker:  secrets,
		Private: o.config.EgressPrivate,
		Version: w.version(ctx, n.backends), Log: o.log,
	})
	if err != nil {
		return n, err
	}
	n.service = svc
	n.closers = append(n.closers, svc.Close)
	var a server.Authenticator = n.auth
	if o.authenticate != nil {
		a = o.authenticate(n.auth)
	}
	n.server, err = server.New(server.Config{API: svc, Auth: a, Log: o.log, Hosts: o.hosts, States: states(st),
		Rates: n.rates, Load: n.orch.Load, Egress: n.orch.Egress, Ready: n.ready})
	if err != nil {
		return n, err
	}
	if err := n.orch.Start(ctx); err != nil {
		return n, err
	}
	return n, n.prewarm(ctx)
}

// ready says what keeps the node from its work. It cannot do without evidence.
func (n *node) ready(context.Context) error { return n.orch.Recording() }

// openTemplates opens the store all nodes of a data directory share.
func openTemplates(o options) (*template.Store, error) {
	c := o.config
	return template.Open(filepath.Join(c.Data, "templates"), template.Options{
		Registries: template.Registries{AuthFile: c.RegistryAuthFile, Private: c.RegistryPrivate, Insecure: c.RegistryInsecure,
			// Whoever has this process to himself reaches every address without it.
			AnyAddress: o.local},
		GivenDirs: c.ImageDirs,
		Instances: []string{filepath.Join(c.Data, "instances", "*"), filepath.Join(c.Data, "run", "*", "instances", "*"),
			filepath.Join(c.Data, "machines", "*"), filepath.Join(c.Data, "run", "*", "machines", "*")},
	}, o.log)
}

// openAudit opens the evidence. That of a run which was refused before it did
// anything proves nothing, and goes again.
func (n *node) openAudit(o options) (*audit.Log, error) {
	record, err := audit.Open(o.audit, audit.Options{}, o.log)
	if err != nil {
		return nil, err
	}
	n.closers = append(n.closers, func() error {
		empty := record.Head().Position == 0
		err := record.Close()
		if err == nil && empty && o.destroy {
			err = sandbox.Wrap("clean up", o.audit, os.RemoveAll(o.audit))
		}
		return err
	})
	return record, nil
}

// version is what the API says about this program.
func (w Wiring) version(ctx context.Context, bs []sandbox.Backend) *v1.GetVersionResponse {
	v := &v1.GetVersionResponse{Version: w.Build.Version, Revision: w.Build.Revision, GoVersion: w.Build.Go}
	for _, b := range bs {
		if info, err := b.Info(ctx); err == nil && info.Name == "gvisor" {
			v.RunscVersion = info.Version
		}
	}
	return v
}

// rates is how fast a tenant may call.
func (n *node) rates(tenant sandbox.TenantID) server.Rates {
	q := n.orch.Quota.Of(tenant)
	return server.Rates{Tenant: q.Requests, Key: q.KeyRequests, Burst: q.Burst}
}

// handler is the node's API.
func (n *node) handler() http.Handler { return n.server }

// close ends the node: its sandboxes live on or are destroyed, as it was opened
// with. Nobody may be using its API any more.
func (n *node) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := n.orch.Close(ctx)
	return errors.Join(err, n.closeParts())
}

func (n *node) closeParts() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

// states counts live sandboxes for /metrics.
func states(st *store.Store) func(context.Context) (map[string]int, error) {
	return func(ctx context.Context) (map[string]int, error) {
		live, err := st.System().LiveSandboxes(ctx)
		if err != nil {
			return nil, err
		}
		m := map[string]int{}
		for _, s := range []store.State{store.Creating, store.Running, store.Paused, store.Stopping} {
			m[string(s)] = 0
		}
		for _, sb := range live {
			m[string(sb.State)]++
		}
		return m, nil
	}
}

// auto names the backend that "auto" takes, for people.
func (n *node) auto(ctx context.Context) string {
	best := sandbox.Info{Name: "nothing: no backend isolates here, see `firebreak doctor`"}
	for _, b := range n.backends {
		info, err := b.Info(ctx)
		if err == nil && info.Available && !info.Emulated && info.Isolation > best.Isolation {
			best = info
		}
	}
	if best.Isolation == sandbox.IsolationNone {
		return best.Name
	}
	return best.Name + " (" + best.Isolation.String() + ")"
}

// absent stands for a backend that cannot work here, so that its name, and the
// reason, stay visible.
type absent struct{ info sandbox.Info }

// Info implements sandbox.Backend.
func (a absent) Info(context.Context) (sandbox.Info, error) { return a.info, nil }

// Create implements sandbox.Backend.
func (a absent) Create(_ context.Context, spec sandbox.Spec) (sandbox.Instance, error) {
	return nil, a.info.Check(spec)
}

// Attach implements sandbox.Backend.
func (a absent) Attach(_ context.Context, id sandbox.InstanceID) (sandbox.Instance, error) {
	return nil, sandbox.Errorf("attach", sandbox.KindNotFound, "backend %s does not work here: %s", a.info.Name, a.info.Reason).WithID(string(id))
}

// List implements sandbox.Backend: it cannot look.
func (a absent) List(context.Context) ([]sandbox.Status, error) {
	return nil, sandbox.Errorf("list", sandbox.KindUnavailable, "backend %s does not work here: %s", a.info.Name, a.info.Reason).WithHint("%s", a.info.Hint)
}

// Close implements sandbox.Backend.
func (a absent) Close() error { return nil }

var _ sandbox.Backend = absent{}
