package e2b

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// envdVersion is what clients are told of the agent: it decides what they try.
// This one closes standard inputs, takes files as raw bodies and watches with
// entries.
const envdVersion = "0.6.4"

// clientID fills a field that E2B has given up and its clients still demand.
const clientID = "firebreak"

// defaultTimeout is a sandbox's time where a create says nothing.
const defaultTimeout = 300 * time.Second

// maxKey is how long an Idempotency-Key may be.
const maxKey = 255

// maxBody bounds a request of the control API.
const maxBody = 1 << 20

// defaultTemplates are the names under which E2B's clients ask for its own
// templates. They mean the server's default here.
var defaultTemplates = map[string]bool{"": true, "base": true, "code-interpreter-v1": true, "code-interpreter": true}

// controlRoutes is the control API, as old and new clients call it.
func (s *Server) controlRoutes() http.Handler {
	mux := http.NewServeMux()
	for _, version := range []string{"", "/v2"} {
		mux.HandleFunc("POST "+version+"/sandboxes", s.keyed(s.create))
		mux.HandleFunc("GET "+version+"/sandboxes", s.keyed(s.list))
		mux.HandleFunc("GET "+version+"/sandboxes/{id}/logs", s.keyed(s.logs))
	}
	mux.HandleFunc("GET /sandboxes/{id}", s.keyed(s.info))
	mux.HandleFunc("DELETE /sandboxes/{id}", s.keyed(s.kill))
	mux.HandleFunc("POST /sandboxes/{id}/timeout", s.keyed(s.setTimeout))
	mux.HandleFunc("POST /sandboxes/{id}/refreshes", s.keyed(s.refresh))
	mux.HandleFunc("PUT /sandboxes/{id}/network", s.keyed(s.updateNetwork))
	mux.HandleFunc("GET /sandboxes/{id}/metrics", s.keyed(s.metrics))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	s.lifecycleRoutes(mux)
	s.snapshotRoutes(mux)
	s.secretRoutes(mux)
	s.registerNotYet(mux)
	mux.HandleFunc("/", s.keyed(func(w http.ResponseWriter, r *http.Request) error {
		return sandbox.Errorf("route", sandbox.KindNotFound, "there is no route %s %.200q", r.Method, r.URL.Path)
	}))
	return mux
}

// createRequest is the body of a create. A field that is not here is one that
// this server has never heard of, and is refused.
type createRequest struct {
	TemplateID          string            `json:"templateID"`
	Timeout             *int64            `json:"timeout"` // seconds
	Metadata            map[string]string `json:"metadata"`
	EnvVars             map[string]string `json:"envVars"`
	Secure              *bool             `json:"secure"` // false: what is asked for less than is given
	AllowInternetAccess *bool             `json:"allow_internet_access"`
	Network             *networkRequest   `json:"network"`
	AutoPause           bool              `json:"autoPause"`
	AutoPauseMemory     *bool             `json:"autoPauseMemory"`
	AutoResume          *struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	IAM          json.RawMessage `json:"iam"`
	VolumeMounts json.RawMessage `json:"volumeMounts"`
	MCP          json.RawMessage `json:"mcp"`
}

type networkRequest struct {
	AllowOut           []string              `json:"allowOut"`
	DenyOut            []string              `json:"denyOut"`
	Rules              map[string][]hostRule `json:"rules"`
	EgressProxy        json.RawMessage       `json:"egressProxy"`
	AllowPublicTraffic *bool                 `json:"allowPublicTraffic"`
	MaskRequestHost    string                `json:"maskRequestHost"`
	HTTPSPorts         []int                 `json:"httpsPorts"`

	closed bool // allow_internet_access is false
}

// given reports whether a field that is not understood asks for something.
func given(raw json.RawMessage) bool {
	switch strings.TrimSpace(string(raw)) {
	case "", "null", "{}", "[]", "false":
		return false
	}
	return true
}

// read decodes a body of the control API; an empty one is {}.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	return readUpTo(w, r, into, maxBody)
}

func readUpTo(w http.ResponseWriter, r *http.Request, into any, limit int64) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return sandbox.Errorf("read request", sandbox.KindTooLarge, "the body has more than %d bytes", limit)
	}
	if err != nil {
		return sandbox.Errorf("read request", sandbox.KindInvalid, "the body cannot be read")
	}
	if len(body) == 0 {
		return nil
	}
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return sandbox.Errorf("read request", sandbox.KindInvalid, "the body is not understood: %.200s", err.Error()).
			WithHint("a field this server does not know is refused, not ignored; docs/guides/e2b.md lists those it knows")
	}
	return nil
}

// handle is how clients reach a sandbox.
type handle struct {
	TemplateID         string  `json:"templateID"`
	SandboxID          string  `json:"sandboxID"`
	ClientID           string  `json:"clientID"`
	EnvdVersion        string  `json:"envdVersion"`
	EnvdAccessToken    string  `json:"envdAccessToken"`
	TrafficAccessToken string  `json:"trafficAccessToken"`
	Domain             *string `json:"domain"`
}

// handle makes the answer of create and connect.
func (s *Server) handle(r *http.Request, sb *v1.Sandbox) (handle, error) {
	t, err := s.api.SandboxTokens(r.Context(), sb.GetId())
	return handle{TemplateID: s.templateID(sb), SandboxID: sb.GetId(), ClientID: clientID, EnvdVersion: envdVersion,
		EnvdAccessToken: t.Inside, TrafficAccessToken: t.Traffic, Domain: s.toldDomain()}, err
}

// toldDomain is the domain clients are told, or nil.
func (s *Server) toldDomain() *string {
	if s.shown == "" {
		return nil
	}
	return &s.shown
}

// templateID is a template's name to E2B's clients. A snapshot is one, too.
func (s *Server) templateID(sb *v1.Sandbox) string {
	if sb.GetSnapshot() != "" {
		return sb.GetSnapshot()
	}
	if sb.GetTemplate() == s.template {
		return "base"
	}
	return sb.GetTemplate()
}

func (s *Server) create(w http.ResponseWriter, r *http.Request) error {
	var c createRequest
	if err := read(w, r, &c); err != nil {
		return err
	}
	if err := c.notYetFields(); err != nil {
		return err
	}
	timeout, err := inTime(c.Timeout)
	if err != nil {
		return err
	}
	req := &v1.CreateSandboxRequest{Env: c.EnvVars, Metadata: c.Metadata, TimeoutMs: proto.Int64(timeout.Milliseconds()), IdleTimeoutMs: proto.Int64(0)}
	c.atEnd(req)
	if c.Network != nil {
		c.Network.closed = c.AllowInternetAccess != nil && !*c.AllowInternetAccess
		if req.Network, err = c.Network.rules(); err != nil {
			return err
		}
	}
	if err := s.origin(r.Context(), req, c.TemplateID); err != nil {
		return err
	}
	key := r.Header.Get("Idempotency-Key")
	if len(key) > maxKey {
		return invalid("Idempotency-Key has more than %d characters", maxKey)
	}
	sb, err := checked(service.WithIdempotencyKey(r.Context(), key), s, s.api.CreateSandbox, req)
	if err != nil {
		return err
	}
	return s.handOut(w, r, sb, http.StatusCreated)
}

// alive returns a sandbox that has not ended. E2B's API knows no other.
func (s *Server) alive(r *http.Request) (*v1.Sandbox, error) {
	id := r.PathValue("id")
	sb, err := checked(r.Context(), s, s.api.GetSandbox, &v1.GetSandboxRequest{Id: id})
	if err == nil && (sb.GetState() == "ended" || sb.GetState() == "stopping") {
		err = sandbox.Errorf("find", sandbox.KindNotFound, "the sandbox has ended: %s", sb.GetReason()).WithID(id)
	}
	return sb, err
}

// extend moves a sandbox's end to seconds from now.
func (s *Server) extend(r *http.Request, seconds int64, extendOnly bool) (*v1.Sandbox, error) {
	if seconds < 0 || seconds > math.MaxInt32 {
		return nil, invalid("timeout %d is out of range", seconds).WithHint("seconds, at least 0")
	}
	ms := max(1, seconds*1000) // 0 ends it now; to the service it would be never
	return s.api.SetTimeout(r.Context(), &v1.SetTimeoutRequest{Id: r.PathValue("id"), TimeoutMs: &ms, ExtendOnly: extendOnly})
}

func (s *Server) setTimeout(w http.ResponseWriter, r *http.Request) error {
	var c struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := read(w, r, &c); err != nil {
		return err
	}
	if c.Timeout == nil {
		return invalid("timeout is missing")
	}
	return s.moved(w, r, *c.Timeout, false)
}

// refresh is setTimeout as old clients call it: it only adds.
func (s *Server) refresh(w http.ResponseWriter, r *http.Request) error {
	c := struct {
		Duration int64 `json:"duration"`
	}{15}
	if err := read(w, r, &c); err != nil {
		return err
	}
	return s.moved(w, r, c.Duration, true)
}

func (s *Server) moved(w http.ResponseWriter, r *http.Request, seconds int64, extendOnly bool) error {
	sb, err := s.alive(r)
	if err != nil {
		return err
	}
	if sb.GetState() == "paused" { // E2B looks for it among those that run, and its clients expect no other answer
		return sandbox.Errorf("timeout", sandbox.KindNotFound, "the sandbox does not run: it is paused, and its time stands still").WithID(sb.GetId()).
			WithHint("connect resumes it and takes a timeout")
	}
	if _, err := s.extend(r, seconds, extendOnly); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) kill(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.alive(r); err != nil {
		return err
	}
	if _, err := s.api.DestroySandbox(r.Context(), &v1.DestroySandboxRequest{Id: r.PathValue("id")}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
