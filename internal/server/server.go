package server

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/api"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config joins a Server to the rest. API, Auth and Log are needed.
type Config struct {
	API  API
	Auth Authenticator
	Log  *slog.Logger

	// Ready says whether the server can do its work; nil means it always can.
	Ready func(context.Context) error
	// States counts sandboxes by state, for /metrics; nil leaves that out.
	States func(context.Context) (map[string]int, error)
	// Rates says how fast a tenant's keys may call; nil bounds nothing.
	Rates func(sandbox.TenantID) Rates
	// Load reports, for /metrics, how many wait by what they wait for, and how
	// many were refused by what was used up; nil leaves that out.
	Load func() (waiting, refused map[string]int64)
	// Egress reports, for /metrics, what sandboxes wanted to reach; nil leaves that
	// out.
	Egress func() orchestrator.EgressStats
	// Hosts are names callers may use besides loopback ones, such as the one a
	// reverse proxy is reached by.
	Hosts []string
	// Drain is how long a shutdown waits for requests to end; default 10 s.
	Drain time.Duration
}

// Server is the API on the wire. It is safe for concurrent use.
type Server struct {
	cfg      Config
	log      *slog.Logger
	registry *registry
	metrics  *metrics
	hosts    map[string]bool
	errors   *connect.ErrorWriter

	callers   *buckets // of keys and tenants
	strangers *buckets // of source addresses

	output      budget
	heartbeat   time.Duration // between signs of life on a silent stream
	bodyTimeout time.Duration // these two: see limits.go
	stall       time.Duration

	// draining ends when a shutdown begins. It is a signal to the streams that
	// never end by themselves, not anybody's context.
	draining context.Context
	drain    context.CancelFunc
}

// New returns a Server. It refuses a Config without authentication, and an API
// that does not match the proto.
func New(cfg Config) (*Server, error) {
	if cfg.API == nil || cfg.Auth == nil || cfg.Log == nil {
		return nil, errors.New("server: Config needs API, Auth and Log")
	}
	if cfg.Drain == 0 {
		cfg.Drain = 10 * time.Second
	}
	g, err := newRegistry()
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: cfg.Log, registry: g, hosts: map[string]bool{}, errors: connect.NewErrorWriter(),
		callers: newBuckets(), strangers: newBuckets(), heartbeat: heartbeat, bodyTimeout: bodyTimeout, stall: stallTimeout}
	s.output.left.Store(maxOutput)
	for _, h := range cfg.Hosts {
		s.hosts[strings.ToLower(h)] = true
	}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.metrics = newMetrics(cfg.States, cfg.Load, cfg.Egress)
	s.builtins()
	if err := g.build(cfg.API); err != nil {
		return nil, err
	}
	for _, o := range g.order {
		s.metrics.prepare(o)
	}
	return s, nil
}

// builtins enters the routes that are about the server, not of the API.
func (s *Server) builtins() {
	open := func(name string) *operation { return &operation{name: name, success: http.StatusOK, quiet: true} }
	s.registry.builtin("/healthz", open("healthz"), func(x *exchange) error {
		writeJSON(x, http.StatusOK, []byte(`{"status":"ok"}`+"\n"))
		return nil
	})
	s.registry.builtin("/readyz", open("readyz"), func(x *exchange) error {
		err := s.draining.Err()
		if err != nil {
			err = errShutdown
		} else if s.cfg.Ready != nil {
			err = s.cfg.Ready(x.r.Context())
		}
		if err != nil {
			e := typed(x.r.Context(), "ready", err)
			return &sandbox.Error{Op: "ready", Kind: sandbox.KindUnavailable, Hint: e.Hint, Err: errors.New(e.Message())}
		}
		writeJSON(x, http.StatusOK, []byte(`{"status":"ready"}`+"\n"))
		return nil
	})
	s.registry.builtin("/openapi.json", open("openapi"), func(x *exchange) error {
		writeJSON(x, http.StatusOK, api.OpenAPI)
		return nil
	})
	metrics := &operation{name: "metrics", success: http.StatusOK, quiet: true, scope: auth.SystemRead}
	s.registry.builtin("/metrics", metrics, func(x *exchange) error {
		s.metrics.handler.ServeHTTP(x, x.r)
		return nil
	})
}

// ServeHTTP implements http.Handler: any surface, told apart by the path.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, s: s, r: r, plainBody: r.Body, start: time.Now(), id: requestID(r.Header["X-Request-Id"])}
	h := w.Header()
	h["X-Request-Id"] = []string{x.id}
	h["X-Content-Type-Options"] = noSniff
	defer x.finish()
	if r.ContentLength != 0 {
		// For whatever route: net/http reads the body's rest even where we do not.
		x.extendRead(s.bodyTimeout)
	}
	if err := s.checkHost(r); err != nil {
		x.failed(err)
		return
	}
	if o := s.registry.procedures[r.URL.Path]; o != nil {
		s.serveConnect(x, o)
		return
	}
	if err := s.serveREST(x); err != nil {
		x.failed(err)
	}
}

func (s *Server) serveREST(x *exchange) error {
	path := x.r.URL.EscapedPath()
	rt, values, allow := s.registry.router.match(x.r.Method, path, x.buf[:0])
	switch {
	case rt == nil && allow == nil:
		return sandbox.Errorf("route", sandbox.KindNotFound, "there is no route %s", clip(valid(path), 200)).
			WithHint("GET /openapi.json lists the routes")
	case rt == nil:
		x.Header().Set("Allow", strings.Join(allow, ", "))
		return &httpError{sandbox.Errorf("route", sandbox.KindInvalid, "%s is not possible on %s", clip(valid(x.r.Method), 20), clip(valid(path), 200)).
			WithHint("this route takes %s", strings.Join(allow, ", ")), http.StatusMethodNotAllowed}
	}
	x.route, x.op, x.values = rt, rt.op, values
	if err := s.admit(x); err != nil {
		return err
	}
	switch {
	case rt.op.method == nil:
		x.extendWrite(writeTimeout)
	case rt.op.raw:
		x.r.Body = bodyOf(x)
	}
	return rt.serve(x)
}

func (s *Server) serveConnect(x *exchange, o *operation) {
	x.op = o
	if err := s.admit(x); err != nil {
		if !s.errors.IsSupported(x.r) {
			x.failed(err)
			return
		}
		x.err, x.outcome = err, statusOf(err)
		x.extendRead(time.Second)
		x.extendWrite(writeTimeout)
		s.errors.Write(x, x.r, connectError(typed(x.r.Context(), o.name, err)))
		return
	}
	x.r.Body = bodyOf(x)
	o.connect.ServeHTTP(x, x.r)
}

// admit decides whether the caller may do what the request asks, before a byte
// of its body is read, and prepares the context of the operation.
func (s *Server) admit(x *exchange) error {
	ctx := x.r.Context()
	if x.op.scope != "" {
		p, err := s.identify(x)
		if err != nil {
			kind := sandbox.KindOf(err)
			x.stranger = kind == sandbox.KindUnauthenticated || kind == sandbox.KindDenied
			return s.failedAttempt(x, err)
		}
		if err := s.throttle(x, p); err != nil {
			return err
		}
		x.principal = p
		if !p.Can(x.op.scope) {
			return sandbox.Errorf(x.op.name, sandbox.KindDenied, "scope %s is needed", x.op.scope).
				WithHint("the caller's role is %q; an owner can make a key that may: firebreak key create", p.Role)
		}
		ctx = auth.WithPrincipal(ctx, p)
	}
	if key := x.r.Header["Idempotency-Key"]; len(key) > 0 && key[0] != "" {
		if len(key[0]) > 255 || !printable(key[0]) {
			return invalidf("Idempotency-Key is not 1 to 255 printable ASCII characters")
		}
		ctx = service.WithIdempotencyKey(ctx, key[0])
	}
	x.r = x.r.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	return nil
}

// identify is authenticate, and for a file's content a signed URL is a credential,
// too: the only one then, for what it names and nothing else.
func (s *Server) identify(x *exchange) (auth.Principal, error) {
	if x.route == nil || !x.op.raw || x.route.template != filesTemplate || !strings.Contains(x.r.URL.RawQuery, "signature=") {
		return s.authenticate(x.r)
	}
	p, query, err := s.cfg.API.FileURLHolder(x.r.Context(), x.values[0], x.r.Method, x.r.URL.RawQuery)
	if err != nil {
		return p, err
	}
	x.r = x.r.Clone(x.r.Context())
	x.r.URL.RawQuery = query
	return p, nil
}

// authenticate finds out who calls.
func (s *Server) authenticate(r *http.Request) (auth.Principal, error) {
	peer := peerFrom(r.Context())
	header := r.Header["Authorization"]
	if len(header) == 0 {
		if peer != nil {
			if peer.err != nil {
				return auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "cannot tell who calls: %w", peer.err)
			}
			return s.cfg.Auth.Peer(peer.uid)
		}
		return auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "no API key").WithHint(keyHint)
	}
	scheme, token, ok := strings.Cut(header[0], " ")
	if !ok || len(header) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "the Authorization header is not a bearer token").WithHint(keyHint)
	}
	p, err := s.cfg.Auth.Bearer(r.Context(), strings.TrimSpace(token))
	var e *sandbox.Error
	if errors.As(err, &e) && e.Kind == sandbox.KindUnauthenticated {
		hinted := *e
		hinted.Hint = keyHint
		return auth.Principal{}, &hinted
	}
	return p, err
}

const keyHint = "send \"Authorization: Bearer fb_…\"; the first key is in the file api-key of the server's data directory (FIREBREAK_DATA), " +
	"`firebreak key create` makes more, and the local socket needs none"

// checkHost refuses requests a browser was tricked into sending to a loopback
// listener under a foreign name (DNS rebinding).
func (s *Server) checkHost(r *http.Request) error {
	if peerFrom(r.Context()) != nil {
		return nil // no browser speaks to a unix socket
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || s.hosts[strings.ToLower(host)] {
		return nil
	}
	addr, err := netip.ParseAddr(host)
	literal := err == nil
	if literal && addr.IsLoopback() {
		return nil
	}
	if !onLoopback(r) && (literal || len(s.hosts) == 0) {
		return nil
	}
	return &httpError{sandbox.Errorf("route", sandbox.KindDenied, "this server is not %s", clip(valid(host), 100)).
		WithHint("call it as localhost or by its address"), http.StatusMisdirectedRequest}
}

// onLoopback reports whether r came in over a loopback address. What cannot be
// told counts as loopback, the stricter case.
func onLoopback(r *http.Request) bool {
	a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return !ok || a.IP.IsLoopback()
}

// requestID takes over the caller's id if it is harmless, or makes one.
func requestID(header []string) string {
	if len(header) == 1 && len(header[0]) > 0 && len(header[0]) <= 64 {
		ok := true
		for _, c := range []byte(header[0]) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
		}
		if ok {
			return header[0]
		}
	}
	return rand.Text()[:20]
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// finish ends every exchange: panics, the metric, the log line.
func (x *exchange) finish() {
	p := recover()
	abort := p == http.ErrAbortHandler
	if p != nil && !abort {
		x.err = &panicError{value: p, stack: debug.Stack()}
		if abort = x.status != 0; !abort {
			writeError(x, typed(x.r.Context(), x.opName(), x.err), http.StatusInternalServerError)
		}
	}
	status := x.status
	if x.outcome != 0 {
		status = x.outcome
	}
	took := time.Since(x.start)
	x.s.metrics.observe(x.op, status, took)
	x.refused()
	x.log(status, took)
	if abort {
		panic(http.ErrAbortHandler) // cuts the connection: the answer is not whole
	}
}

// refused tells of a call that was refused because of who made it. The answer
// is on its way.
func (x *exchange) refused() {
	kind := sandbox.KindOf(x.err)
	if x.op == nil || !x.stranger && kind != sandbox.KindDenied && kind != sandbox.KindUnauthenticated {
		return
	}
	r := service.Refusal{Method: x.op.name, Principal: x.principal, Source: source(x.r.RemoteAddr), Err: x.err}
	if x.op.method != nil {
		r.Method = string(x.op.method.Parent().Name()) + "." + x.op.name
	}
	if peer := peerFrom(x.r.Context()); peer != nil {
		r.Source = "uid:" + strconv.Itoa(peer.uid)
	}
	if _, token, ok := strings.Cut(x.r.Header.Get("Authorization"), " "); ok && x.stranger {
		r.Key, _, _ = auth.Parse(strings.TrimSpace(token))
	}
	x.s.cfg.API.Refused(x.r.Context(), r)
}

func (x *exchange) log(status int, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case x.op != nil && x.op.quiet && status < 400, x.shed: // a flood must not fill the log
		level = slog.LevelDebug
	case status >= 500 && status != http.StatusServiceUnavailable:
		level = slog.LevelError
	}
	ctx := x.r.Context()
	if !x.s.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs, slog.String("request_id", x.id), slog.String("operation", x.opName()),
		slog.String("method", x.r.Method), slog.String("path", clip(x.r.URL.Path, 200)), slog.Int("status", status),
		slog.Duration("took", took), slog.Int64("bytes", x.sent), slog.String("principal", x.principal.ID),
		slog.String("tenant", string(x.principal.Tenant)), slog.String("remote", x.r.RemoteAddr))
	if x.err != nil {
		attrs = append(attrs, slog.String("error", x.err.Error()))
		var pe *panicError
		if errors.As(x.err, &pe) {
			attrs = append(attrs, slog.String("stack", string(pe.stack)))
		}
	}
	x.s.log.LogAttrs(ctx, level, "request", attrs...)
}
