package auth

import (
	"context"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Role is a named set of scopes.
type Role string

// The roles, strongest first.
const (
	Owner     Role = "owner"     // everything
	Admin     Role = "admin"     // everything but the owner's keys
	Developer Role = "developer" // run code, read and write files, build templates
	Viewer    Role = "viewer"    // look, never touch
)

// Scope is one permission, "noun:verb" or a bare noun.
type Scope string

// The scopes.
const (
	SandboxRead   Scope = "sandbox:read"
	SandboxWrite  Scope = "sandbox:write"
	Exec          Scope = "exec"
	FilesRead     Scope = "files:read"
	FilesWrite    Scope = "files:write"
	TemplateRead  Scope = "template:read"
	TemplateWrite Scope = "template:write"
	KeyRead       Scope = "key:read"
	KeyWrite      Scope = "key:write"
	AuditRead     Scope = "audit:read"
	SystemRead    Scope = "system:read"
)

// Principal is an authenticated caller.
type Principal struct {
	Tenant sandbox.TenantID
	ID     string // a key id, "uid:1000", "system": as audit records name it
	Role   Role
	Scopes []Scope // narrows the role; empty: all the role has
}

// Can reports whether p holds s.
func (p Principal) Can(s Scope) bool { return false }

// WithPrincipal returns a context that carries p.
func WithPrincipal(ctx context.Context, p Principal) context.Context { return ctx }

// PrincipalFrom returns the context's principal.
func PrincipalFrom(ctx context.Context) (Principal, bool) { return Principal{}, false }

// Require returns the context's principal if it holds s. Errors:
// KindUnauthenticated without a principal, KindDenied without the scope.
func Require(ctx context.Context, s Scope) (Principal, error) { return Principal{}, errSkeleton }

// Options tunes an Authenticator; zero values are the defaults.
type Options struct {
	CacheFor time.Duration // how long a verified key is believed; default 30 s
	UID      int           // the daemon's own uid; default os.Getuid()
}

// Authenticator turns credentials into principals.
type Authenticator struct{}

// New returns an Authenticator over st.
func New(st *store.Store, o Options) *Authenticator { return &Authenticator{} }

// Bearer authenticates an API key. Errors: KindUnauthenticated.
func (a *Authenticator) Bearer(ctx context.Context, token string) (Principal, error) {
	return Principal{}, errSkeleton
}

// Peer authenticates the caller of the local socket by uid. Errors: KindDenied.
func (a *Authenticator) Peer(uid int) (Principal, error) { return Principal{}, errSkeleton }

// NewKeyRequest says what key to make.
type NewKeyRequest struct {
	Name    string
	Role    Role
	Scopes  []Scope
	Expires time.Time // zero: never
}

// CreateKey makes and stores a key for p's tenant; the token is shown once. A
// principal cannot make a key stronger than itself: KindDenied.
func (a *Authenticator) CreateKey(ctx context.Context, p Principal, req NewKeyRequest) (token string, k store.Key, err error) {
	return "", store.Key{}, errSkeleton
}

// RevokeKey revokes a key of p's tenant; it is refused from then on.
func (a *Authenticator) RevokeKey(ctx context.Context, p Principal, id string) (store.Key, error) {
	return store.Key{}, errSkeleton
}

// Bootstrap makes the installation's first key and writes it to dir/api-key,
// mode 0600. It is idempotent.
func (a *Authenticator) Bootstrap(ctx context.Context, dir string) (path string, err error) {
	return "", errSkeleton
}

// Close writes pending last-used times.
func (a *Authenticator) Close() error { return errSkeleton }

var errSkeleton = sandbox.Errorf("auth", sandbox.KindUnsupported, "not written yet")
