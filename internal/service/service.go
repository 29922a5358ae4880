package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config joins a Service to the rest. All fields are needed but Version, Log,
// Tokens, Private, Broker and Evidence.
type Config struct {
	Orchestrator *orchestrator.Orchestrator
	Store        *store.Store
	Auth         Keys
	Events       *event.Hub
	Recorder     sandbox.Recorder
	// Evidence is what Recorder writes and EvidenceDir where, for reading; nil: it
	// cannot be read here.
	Evidence    Evidence
	EvidenceDir string
	Templates   Templates
	// Broker seals secrets and opens them; nil: there are none here.
	Broker *broker.Broker
	// Tokens makes the tokens that open one sandbox each; nil: there are none.
	Tokens *auth.Tokens
	// Private are the networks that are not public and that policies may open, for
	// warnings about those that may not.
	Private []netip.Prefix
	Version *v1.GetVersionResponse
	Log     *slog.Logger
}

// Templates builds, lists and removes what sandboxes start from;
// *template.Store is one.
type Templates interface {
	Build(ctx context.Context, name string, o template.BuildOptions) (template.Template, error)
	List(ctx context.Context) ([]template.Template, error)
	Remove(ctx context.Context, name string) error
	// Receive takes an archive for a Build by the same owner.
	Receive(ctx context.Context, owner string, r io.Reader) (id string, size int64, err error)
	Collect(ctx context.Context, o template.CollectOptions) (template.Collected, error)
}

// Keys makes and revokes API keys; *auth.Authenticator is one.
type Keys interface {
	CreateKey(ctx context.Context, p auth.Principal, req auth.NewKeyRequest) (token string, k store.Key, err error)
	RevokeKey(ctx context.Context, p auth.Principal, id string) (store.Key, error)
}

// Service is the operations. It is safe for concurrent use.
type Service struct {
	Config
	access    map[string]*v1.Access // by "Service.Method"
	refusals  *refusals
	readers   chan struct{} // holds as many as read the log
	compilers *compilers

	mu       sync.Mutex
	watchers map[sandbox.TenantID]int // guarded by mu; who follows the log
}

// New returns a Service. It fails if a method of the API declares nothing about
// who may call it.
func New(c Config) (*Service, error) {
	if c.Orchestrator == nil || c.Store == nil || c.Auth == nil || c.Events == nil || c.Recorder == nil || c.Templates == nil {
		return nil, errors.New("service: a part is missing")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	access, err := declaredAccess()
	if err != nil {
		return nil, err
	}
	return &Service{Config: c, access: access, refusals: newRefusals(c.Recorder, c.Log),
		readers: make(chan struct{}, entryReaders), compilers: newCompilers(), watchers: map[sandbox.TenantID]int{}}, nil
}

// Close records what is left to be recorded. Nobody calls the Service any more,
// and the Recorder is still open.
func (s *Service) Close() error {
	s.refusals.close()
	return nil
}

// declaredAccess reads what the proto says about each method.
func declaredAccess() (map[string]*v1.Access, error) {
	access := map[string]*v1.Access{}
	for _, file := range []protoreflect.FileDescriptor{v1.File_firebreak_v1_sandbox_proto, v1.File_firebreak_v1_file_proto,
		v1.File_firebreak_v1_run_proto, v1.File_firebreak_v1_process_proto, v1.File_firebreak_v1_context_proto, v1.File_firebreak_v1_system_proto, v1.File_firebreak_v1_audit_proto,
		v1.File_firebreak_v1_policy_proto, v1.File_firebreak_v1_secret_proto, v1.File_firebreak_v1_snapshot_proto} {
		for i := range file.Services().Len() {
			sv := file.Services().Get(i)
			for j := range sv.Methods().Len() {
				m := sv.Methods().Get(j)
				name := fmt.Sprintf("%s.%s", sv.Name(), m.Name())
				a, ok := proto.GetExtension(m.Options(), v1.E_Access).(*v1.Access)
				if !ok || a.GetScope() == "" {
					return nil, fmt.Errorf("service: method %s declares no scope", name)
				}
				access[name] = a
			}
		}
	}
	return access, nil
}

// allow returns the caller if it holds the scope the method declares. Surfaces
// have asked before, and told Refused; here it is told of those that have not.
func (s *Service) allow(ctx context.Context, method string) (orchestrator.Caller, auth.Principal, error) {
	a, ok := s.access[method]
	if !ok { // a misspelt name in this package; every test of the method finds it
		return orchestrator.Caller{}, auth.Principal{}, sandbox.Errorf(method, sandbox.KindInternal, "no such method")
	}
	p, err := auth.Require(ctx, auth.Scope(a.GetScope()))
	if err == nil {
		return orchestrator.Caller{Tenant: p.Tenant, Principal: p.ID}, p, nil
	}
	who, _ := auth.PrincipalFrom(ctx)
	s.Refused(ctx, Refusal{Method: method, Principal: who, Err: err})
	return orchestrator.Caller{}, auth.Principal{}, err
}

// record writes evidence of a mutation that concerns no sandbox.
func (s *Service) record(ctx context.Context, p auth.Principal, method, object string, outcome sandbox.Outcome, detail map[string]string) error {
	_, err := s.Recorder.Record(ctx, sandbox.Record{Tenant: p.Tenant, Principal: p.ID, Action: s.access[method].GetAction(),
		Outcome: outcome, Object: object, Detail: detail})
	return sandbox.Wrap("record", object, err)
}

// failed records that what was recorded as about to be done was not, and
// returns why.
func (s *Service) failed(ctx context.Context, p auth.Principal, method, object string, err error) error {
	_, e := s.Recorder.Record(context.WithoutCancel(ctx), sandbox.Record{Class: sandbox.Flow, Tenant: p.Tenant, Principal: p.ID,
		Action: s.access[method].GetAction(), Outcome: sandbox.OutcomeFailed, Object: object, Detail: map[string]string{"kind": string(sandbox.KindOf(err))}})
	if e != nil {
		return errors.Join(err, sandbox.Wrap("record", object, e))
	}
	return err
}

type idempotencyKey struct{}

// WithIdempotencyKey returns a context whose create calls are idempotent under
// key: a repeated request returns what the first one made, the same key with
// another request is KindConflict. An empty key changes nothing.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	return context.WithValue(ctx, idempotencyKey{}, key)
}

func keyFrom(ctx context.Context) string {
	key, _ := ctx.Value(idempotencyKey{}).(string)
	return key
}

// maxMillis is the longest time a request may name, ten years.
const maxMillis = 10 * 365 * 24 * int64(time.Hour/time.Millisecond)

// millis converts a time in a request. Errors: KindInvalid.
func millis(op, field string, ms int64) (time.Duration, error) {
	if ms < 0 || ms > maxMillis {
		return 0, sandbox.Errorf(op, sandbox.KindInvalid, "%s %d is out of range", field, ms).WithHint("between 0 and ten years, in milliseconds")
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func optionalMillis(op, field string, ms *int64) (*time.Duration, error) {
	if ms == nil {
		return nil, nil
	}
	d, err := millis(op, field, *ms)
	return &d, err
}

// needs rejects a request without what it is about.
func needs(op string, fields ...string) error {
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] == "" {
			return sandbox.Errorf(op, sandbox.KindInvalid, "%s is missing", fields[i])
		}
	}
	return nil
}
