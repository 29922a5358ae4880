package e2b

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// API is the operations; *service.Service is one.
type API interface {
	Sandboxes
	Holders
	Streams
	Processes
	Files
	Contents
	Watches
	Contexts
	Ports
	Secrets
	Snapshots
}

// Snapshots is what is kept of sandboxes.
type Snapshots interface {
	PauseSandbox(context.Context, *v1.PauseSandboxRequest) (*v1.Sandbox, error)
	ResumeSandbox(context.Context, *v1.ResumeSandboxRequest) (*v1.Sandbox, error)
	ForkSandbox(context.Context, *v1.ForkSandboxRequest) (*v1.ForkSandboxResponse, error)
	CreateSnapshot(context.Context, *v1.CreateSnapshotRequest) (*v1.Snapshot, error)
	ListSnapshots(context.Context, *v1.ListSnapshotsRequest) (*v1.ListSnapshotsResponse, error)
	RemoveSnapshot(context.Context, *v1.RemoveSnapshotRequest) (*v1.RemoveSnapshotResponse, error)
}

// Secrets is the tenant's secrets, whose values are nowhere in what is answered.
type Secrets interface {
	SetSecret(context.Context, *v1.SetSecretRequest) (*v1.Secret, error)
	ListSecrets(context.Context, *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error)
	RemoveSecret(context.Context, *v1.RemoveSecretRequest) (*v1.RemoveSecretResponse, error)
}

// Sandboxes is their life.
type Sandboxes interface {
	CreateSandbox(context.Context, *v1.CreateSandboxRequest) (*v1.Sandbox, error)
	GetSandbox(context.Context, *v1.GetSandboxRequest) (*v1.Sandbox, error)
	ListSandboxes(context.Context, *v1.ListSandboxesRequest) (*v1.ListSandboxesResponse, error)
	DestroySandbox(context.Context, *v1.DestroySandboxRequest) (*v1.DestroySandboxResponse, error)
	SetTimeout(context.Context, *v1.SetTimeoutRequest) (*v1.Sandbox, error)
	UpdateNetwork(context.Context, *v1.UpdateNetworkRequest) (*v1.UpdateNetworkResponse, error)
}

// Holders is who acts with a sandbox's own token.
type Holders interface {
	SandboxTokens(ctx context.Context, id string) (service.SandboxTokens, error)
	Holder(ctx context.Context, use auth.Use, id, token string) (auth.Principal, error)
	Asleep(id string) (paused, wakes bool)
	HolderBy(ctx context.Context, use auth.Use, match func(token string) bool) (string, auth.Principal, error)
}

// Streams is what goes on in a sandbox, and what it used.
type Streams interface {
	RunProcess(context.Context, *v1.StartProcessRequest, func(*v1.ExecEvent) error) error
	FollowProcess(context.Context, *v1.StreamProcessRequest, func(*v1.Event) error) error
	WatchEvents(context.Context, *v1.WatchEventsRequest, func(*v1.Event) error) error
	GetMetrics(context.Context, *v1.GetMetricsRequest) (*v1.SandboxMetrics, error)
}

// Processes is the programs of a sandbox.
type Processes interface {
	ListProcesses(context.Context, *v1.ListProcessesRequest) (*v1.ListProcessesResponse, error)
	SignalProcess(context.Context, *v1.SignalProcessRequest) (*v1.Process, error)
	WriteStdin(context.Context, *v1.WriteStdinRequest) (*v1.Process, error)
	ResizeProcess(context.Context, *v1.ResizeProcessRequest) (*v1.Process, error)
}

// Files is the files of a sandbox.
type Files interface {
	StatFile(context.Context, *v1.StatFileRequest) (*v1.FileInfo, error)
	ListFiles(context.Context, *v1.ListFilesRequest) (*v1.ListFilesResponse, error)
	MakeDirectory(context.Context, *v1.MakeDirectoryRequest) (*v1.FileInfo, error)
	MoveFile(context.Context, *v1.MoveFileRequest) (*v1.FileInfo, error)
	RemoveFile(context.Context, *v1.RemoveFileRequest) (*v1.RemoveFileResponse, error)
}

// Contents is what is in them.
type Contents interface {
	OpenFile(ctx context.Context, id, path, user string, offset, length int64) (io.ReadCloser, *v1.FileInfo, error)
	WriteFile(ctx context.Context, req *v1.WriteFileRequest, r io.Reader) (*v1.FileInfo, error)
}

// Watches is what happens to files.
type Watches interface {
	WatchFiles(context.Context, *v1.WatchFilesRequest, func(*v1.FileEvent) error) error
	CreateWatcher(context.Context, *v1.CreateWatcherRequest) (*v1.Watcher, error)
	GetWatcherEvents(context.Context, *v1.GetWatcherEventsRequest) (*v1.GetWatcherEventsResponse, error)
	RemoveWatcher(context.Context, *v1.RemoveWatcherRequest) (*v1.RemoveWatcherResponse, error)
}

// Contexts is the warm interpreters of a sandbox.
type Contexts interface {
	CreateContext(context.Context, *v1.CreateContextRequest) (*v1.Context, error)
	ListContexts(context.Context, *v1.ListContextsRequest) (*v1.ListContextsResponse, error)
	DeleteContext(context.Context, *v1.DeleteContextRequest) (*v1.Context, error)
	RestartContext(context.Context, *v1.RestartContextRequest) (*v1.Context, error)
	Eval(context.Context, *v1.EvalRequest, func(*v1.EvalEvent) error) error
}

// Ports is the servers inside a sandbox.
type Ports interface {
	DialPort(ctx context.Context, id string, port int) (net.Conn, error)
}

// Keys tells who a key belongs to; *auth.Authenticator does.
type Keys interface {
	Bearer(ctx context.Context, token string) (auth.Principal, error)
}

// Door bounds how often whoever calls may call, and knows when the server stops;
// *server.Server is one.
type Door interface {
	Known(context.Context, auth.Principal) error
	Unknown(context.Context, error) error
	Draining() <-chan struct{}
}

// Config joins a Server to the rest. All fields but Domain and Hosts are needed.
type Config struct {
	API  API
	Auth Keys
	Door Door
	Log  *slog.Logger
	// Domain is what the operator's wildcard DNS resolves to this listener:
	// PORT-ID.Domain is that port of that sandbox. Empty: headers alone tell.
	Domain string
	// Template is what sandboxes start from by default, which clients know as base;
	// empty: host.
	Template string
	// Hosts are names callers may use besides loopback ones and those in Domain.
	Hosts []string
}

// Server is E2B's wire. It is safe for concurrent use.
type Server struct {
	api      API
	auth     Keys
	door     Door
	log      *slog.Logger
	domain   string // without its port, for telling hosts; empty: none
	shown    string // as clients are told it
	hosts    map[string]bool
	template string
	rules    *service.Rules
	control  http.Handler
	inside   map[string]http.Handler // by port

	making sync.Mutex // held while a secret is made
}

// New returns a Server.
func New(c Config) (*Server, error) {
	if c.API == nil || c.Auth == nil || c.Door == nil || c.Log == nil {
		return nil, errors.New("e2b: Config needs API, Auth, Door and Log")
	}
	rules, err := service.NewRules()
	if err != nil {
		return nil, err
	}
	s := &Server{rules: rules, api: c.API, auth: c.Auth, door: c.Door, log: c.Log, shown: c.Domain, template: cmp.Or(c.Template, "host"), domain: strings.ToLower(hostOnly(c.Domain)), hosts: map[string]bool{}}
	for _, h := range c.Hosts {
		s.hosts[strings.ToLower(h)] = true
	}
	s.control, s.inside = s.controlRoutes(), map[string]http.Handler{portInside: s.insideRoutes(), portInterpreter: s.interpreterRoutes()}
	return s, nil
}

// The headers E2B's clients name a sandbox's port with, and its tokens.
const (
	headerSandbox = "E2b-Sandbox-Id"
	headerPort    = "E2b-Sandbox-Port"
	headerKey     = "X-Api-Key"
	headerToken   = "X-Access-Token"
	headerTraffic = "E2b-Traffic-Access-Token"
)

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, ok, err := s.target(r)
	switch {
	case err != nil:
		s.fail(w, r, s.door.Unknown(r.Context(), err))
	case ok:
		s.serveSandbox(w, r, to)
	case r.URL.Path == "/files" && r.URL.Query().Has("signature"):
		s.serveSigned(w, r, "")
	default:
		s.control.ServeHTTP(w, r)
	}
}

// target is a port of a sandbox.
type target struct {
	id   string
	port string
}

// portInside is where E2B's agent listens: what a request for it wants is done
// by this server.
const portInside = "49983"

// target tells which sandbox a request is for, by its headers or by its host
// name; ok is false for none. It refuses a host that is not this server's: a
// browser may have been tricked into calling a loopback listener.
func (s *Server) target(r *http.Request) (to target, ok bool, err error) {
	host := strings.ToLower(hostOnly(r.Host))
	if label, rest, found := strings.Cut(host, "."); found && s.domain != "" && rest == s.domain {
		port, id, both := strings.Cut(label, "-")
		if both {
			return target{id, port}, true, nil
		}
	}
	if !s.ours(r, host) {
		return target{}, false, sandbox.Errorf("route", sandbox.KindDenied, "this server is not %.100q", host).
			WithHint("call it as localhost, by its address, or by a name in e2b_domain")
	}
	if id := r.Header.Get(headerSandbox); id != "" {
		port := r.Header.Get(headerPort)
		if port == "" {
			port = portInside
		}
		return target{id, port}, true, nil
	}
	return target{}, false, nil
}

// ours reports whether host may name this server.
func (s *Server) ours(r *http.Request, host string) bool {
	if host == "localhost" || s.hosts[host] || s.domain != "" && (host == s.domain || strings.HasSuffix(host, "."+s.domain)) {
		return true
	}
	addr, err := netip.ParseAddr(host)
	if err == nil && addr.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && !local.IP.IsLoopback() && (err == nil || len(s.hosts) == 0 && s.domain == "")
}

func hostOnly(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.Trim(host, "[]")
}

// keyed is a route of the control API: with a key, and an error for an answer.
func (s *Server) keyed(serve func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get(headerKey)
		if key == "" { // the CLI, signed in with an access token
			key, _ = strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		}
		p, err := s.auth.Bearer(r.Context(), key)
		if err != nil {
			s.fail(w, r, s.door.Unknown(r.Context(), err))
			return
		}
		if err = s.door.Known(r.Context(), p); err == nil {
			err = serve(w, r.WithContext(auth.WithPrincipal(r.Context(), p)))
		}
		if err != nil {
			s.fail(w, r, err)
		}
	}
}

// serveSandbox answers what is sent to a port of a sandbox.
func (s *Server) serveSandbox(w http.ResponseWriter, r *http.Request, to target) {
	token, use := r.Header.Get(headerToken), auth.UseInside
	switch to.port {
	case portInside:
		if token == "" && r.URL.Path == "/files" && r.URL.Query().Has("signature") {
			s.serveSigned(w, r, to.id)
			return
		}
	case portInterpreter:
		// E2B's clients manage contexts with the other token. It may be known to
		// whoever looks at a page a sandbox serves, so it runs no code.
		if token == "" && r.URL.Path != "/execute" {
			token, use = r.Header.Get(headerTraffic), auth.UseTraffic
		}
	default:
		s.servePort(w, r, to)
		return
	}
	p, err := s.api.Holder(r.Context(), use, to.id, token)
	if err != nil {
		if err = s.door.Unknown(r.Context(), err); sandbox.KindOf(err) == sandbox.KindNotFound {
			gone(w, to.id)
			return
		}
		s.fail(w, r, err)
		return
	}
	s.enter(w, r, to, p)
}

// enter answers a request for the inside of a sandbox by who may make it.
func (s *Server) enter(w http.ResponseWriter, r *http.Request, to target, p auth.Principal) {
	if err := s.door.Known(r.Context(), p); err != nil {
		s.fail(w, r, err)
		return
	}
	if s.sleeps(w, to.id, r.URL.Path) {
		return
	}
	ctx := context.WithValue(auth.WithPrincipal(r.Context(), p), visitKey{}, visit{id: to.id, user: userOf(r)})
	s.inside[to.port].ServeHTTP(w, r.WithContext(ctx))
}

// visit is what a request for the inside of a sandbox is about.
type visit struct {
	id   string
	user string // of the guest; empty: the default
}

type visitKey struct{}

// visitOf returns it. Every handler of the inside is reached by enter.
func visitOf(ctx context.Context) visit {
	v, _ := ctx.Value(visitKey{}).(visit)
	return v
}

// userOf is the user a request names: the one of its basic credentials, which
// have no password.
func userOf(r *http.Request) string {
	user, _, _ := r.BasicAuth()
	return user
}

// insideRoutes are those of E2B's agent.
func (s *Server) insideRoutes() http.Handler {
	mux := http.NewServeMux()
	s.registerProcess(mux)
	s.registerFilesystem(mux)
	mux.HandleFunc("GET /files", s.download)
	mux.HandleFunc("POST /files", s.upload)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for pattern, what := range map[string]string{"POST /files/compose": "composing files", "GET /metrics": "metrics from the inside", "GET /envs": "asking for the environment"} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { s.fail(w, r, notYet(what)) })
	}
	mux.HandleFunc("/", s.noRoute)
	return mux
}

func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, sandbox.Errorf("route", sandbox.KindNotFound, "there is no route %s %.200q", r.Method, r.URL.Path))
}
