package service

import (
	"context"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// tokenScopes is what the holder of a sandbox's token may do, in that sandbox.
var tokenScopes = []auth.Scope{auth.Exec, auth.FilesRead, auth.FilesWrite, auth.SandboxRead}

// SandboxTokens are what opens one sandbox for whoever is handed them, without a
// key: Inside its processes and files, Traffic the ports its programs listen on.
type SandboxTokens struct{ Inside, Traffic string }

// SandboxTokens returns those of a live sandbox of the caller's tenant, who must
// hold every scope they give. Errors: KindDenied, KindNotFound, KindUnsupported
// where there are none.
func (s *Service) SandboxTokens(ctx context.Context, id string) (SandboxTokens, error) {
	var p auth.Principal
	for _, scope := range tokenScopes {
		var err error
		if p, err = auth.Require(ctx, scope); err != nil {
			s.Refused(ctx, Refusal{Method: "SandboxTokens", Principal: p, Err: err})
			return SandboxTokens{}, err
		}
	}
	if s.Tokens == nil {
		return SandboxTokens{}, sandbox.Errorf("tokens", sandbox.KindUnsupported, "this server hands out no tokens")
	}
	h, ok := s.Orchestrator.Whose(sandbox.ID(id))
	if !ok || h.Tenant != p.Tenant {
		return SandboxTokens{}, errNoSandbox(id)
	}
	return SandboxTokens{Inside: s.Tokens.Token(auth.UseInside, h.Tenant, h.ID), Traffic: s.Tokens.Token(auth.UseTraffic, h.Tenant, h.ID)}, nil
}

func errNoSandbox(id string) error {
	return sandbox.Errorf("find", sandbox.KindNotFound, "the sandbox was not found").WithID(clip(id)).WithHint("it has ended, or never was")
}

// Holder returns on whose behalf somebody acts who shows a token for one use of a
// live sandbox: on its tenant's, and as a principal of its own. The surface lets
// them act on that sandbox alone. Errors: KindNotFound when no such sandbox
// lives, KindUnauthenticated for a token that is not its.
func (s *Service) Holder(_ context.Context, use auth.Use, id, token string) (auth.Principal, error) {
	h, ok := s.Orchestrator.Whose(sandbox.ID(id))
	if !ok || s.Tokens == nil {
		return auth.Principal{}, errNoSandbox(id)
	}
	if !s.Tokens.Valid(use, h.Tenant, h.ID, token) {
		return auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "the token is not this sandbox's").WithID(id).
			WithHint("create and connect answer with the sandbox's tokens")
	}
	return holder(h.Tenant, h.ID), nil
}

// Asleep reports whether a sandbox that Holder knows is paused, and whether using it
// would resume it.
func (s *Service) Asleep(id string) (paused, wakes bool) {
	return s.Orchestrator.Asleep(sandbox.ID(id))
}

// HolderBy is Holder for a proof that names no sandbox: the one whose token match
// accepts. It asks about every sandbox that lives. Errors: KindUnauthenticated.
func (s *Service) HolderBy(_ context.Context, use auth.Use, match func(token string) bool) (string, auth.Principal, error) {
	if s.Tokens != nil {
		for _, h := range s.Orchestrator.Holdings() {
			if match(s.Tokens.Token(use, h.Tenant, h.ID)) {
				return string(h.ID), holder(h.Tenant, h.ID), nil
			}
		}
	}
	return "", auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "the signature fits no sandbox that lives").
		WithHint("it may have ended, or the signature's time is over")
}

func holder(tenant sandbox.TenantID, id sandbox.ID) auth.Principal {
	return auth.Principal{Tenant: tenant, ID: "token:" + string(id), Role: auth.Developer, Scopes: tokenScopes}
}
