package auth

import (
	"context"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
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
	// TemplateBoot is to have machines boot a kernel or file system that one brings,
	// also from the server's own files where its operator lets them be read.
	TemplateBoot Scope = "template:boot"
	PolicyRead   Scope = "policy:read"
	PolicyWrite  Scope = "policy:write"
	SecretRead   Scope = "secret:read"
	SecretWrite  Scope = "secret:write"
	// SecretReference is to let the server read its own environment and files.
	SecretReference Scope = "secret:reference"
	BindingRead     Scope = "binding:read"
	BindingWrite    Scope = "binding:write"
	KeyRead         Scope = "key:read"
	KeyWrite        Scope = "key:write"
	AuditRead       Scope = "audit:read"
	SystemRead      Scope = "system:read" // backends, metrics: facts about the host
)

// Scopes lists all scopes.
func Scopes() []Scope {
	return []Scope{SandboxRead, SandboxWrite, Exec, FilesRead, FilesWrite, TemplateRead, TemplateWrite, TemplateBoot,
		PolicyRead, PolicyWrite, SecretRead, SecretWrite, SecretReference, BindingRead, BindingWrite, KeyRead, KeyWrite, AuditRead, SystemRead}
}

// Role is a named set of scopes. A role that is not one of the constants has
// none.
type Role string

// The roles, strongest first. Each has all that the next one has.
const (
	Owner     Role = "owner"     // everything
	Admin     Role = "admin"     // everything, but it cannot make or revoke an owner's keys
	Developer Role = "developer" // sandboxes, code, files, templates
	Viewer    Role = "viewer"    // look, never touch
)

var roleOrder = []Role{Owner, Admin, Developer, Viewer}

// Valid reports whether r is one of the roles.
func (r Role) Valid() bool { return slices.Contains(roleOrder, r) }

// atLeast reports whether r is o or stronger.
func (r Role) atLeast(o Role) bool {
	i, j := slices.Index(roleOrder, r), slices.Index(roleOrder, o)
	return i >= 0 && j >= 0 && i <= j
}

// Has reports whether r includes s.
func (r Role) Has(s Scope) bool {
	switch s {
	case SandboxRead, FilesRead, TemplateRead, PolicyRead, SecretRead, BindingRead, SystemRead:
		return r.atLeast(Viewer)
	case SandboxWrite, Exec, FilesWrite, TemplateWrite:
		return r.atLeast(Developer)
	// A stored policy is what others' sandboxes may reach, a binding what they may use.
	// What a machine boots is read by a monitor that still has the host's rights.
	case TemplateBoot, PolicyWrite, SecretWrite, SecretReference, BindingWrite, KeyRead, KeyWrite, AuditRead:
		return r.atLeast(Admin)
	}
	return false
}

// matches reports whether a granted scope, which may end in ":*", covers want.
func (s Scope) matches(want Scope) bool {
	if noun, ok := strings.CutSuffix(string(s), "*"); ok && strings.HasSuffix(noun, ":") {
		return strings.HasPrefix(string(want), noun)
	}
	return s == want
}

// valid reports whether s is a scope or the "noun:*" of some.
func (s Scope) valid() bool { return slices.ContainsFunc(Scopes(), s.matches) }

// Principal is an authenticated caller. The zero Principal may do nothing.
type Principal struct {
	Tenant sandbox.TenantID
	ID     string // a key id, "uid:1000", "system": as audit records name it
	Role   Role
	Scopes []Scope // narrows the role; empty: all the role has
}

// Can reports whether p holds s.
func (p Principal) Can(s Scope) bool {
	return p.Tenant.Valid() && p.Role.Has(s) &&
		(len(p.Scopes) == 0 || slices.ContainsFunc(p.Scopes, func(g Scope) bool { return g.matches(s) }))
}

// covers reports whether p may do all that o may.
func (p Principal) covers(o Principal) bool {
	return p.Role.atLeast(o.Role) && !slices.ContainsFunc(Scopes(), func(s Scope) bool { return o.Can(s) && !p.Can(s) })
}

type contextKey struct{}

// WithPrincipal returns a context that carries p.
func WithPrincipal(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, contextKey{}, p)
}

// PrincipalFrom returns the context's principal.
func PrincipalFrom(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(contextKey{}).(Principal)
	return p, ok
}

// Require returns the context's principal if it holds s. Errors:
// KindUnauthenticated without a principal, KindDenied without the scope.
func Require(ctx context.Context, s Scope) (Principal, error) {
	p, ok := PrincipalFrom(ctx)
	if !ok {
		return Principal{}, sandbox.Errorf("authorize", sandbox.KindUnauthenticated, "no credential")
	}
	if !p.Can(s) {
		return Principal{}, sandbox.Errorf("authorize", sandbox.KindDenied, "%s, a %s, lacks the scope %s", p.ID, p.Role, s).
			WithHint("use a key whose role and scopes include %s", s)
	}
	return p, nil
}
