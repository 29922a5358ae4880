package service

import (
	"context"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// FindSecret looks secrets up in st, for a Broker.
func FindSecret(st *store.Store) broker.Find {
	return func(ctx context.Context, tenant sandbox.TenantID, name string) (broker.Kept, error) {
		s, err := st.Tenant(tenant).Secret(ctx, name)
		if sandbox.KindOf(err) == sandbox.KindNotFound {
			err = noSecret(name)
		}
		return broker.Kept{Sealed: s.Sealed, Reference: s.Reference}, err
	}
}

func noSecret(name string) error {
	return sandbox.Errorf("secret", sandbox.KindNotFound, "there is no secret called %.80q", name).
		WithHint("`firebreak secret ls` lists those there are, `firebreak secret set` makes one")
}

// SetSecret stores a secret, or where it is. Sandboxes that live use it from their next
// request on. Errors: KindUnavailable where one of them does not, and the secret is set; KindInvalid and KindTooLarge,
// which say what is wrong with it and not what it is; KindDenied for a reference
// without the scope, or of a tenant that is not the operator's; KindCapacity;
// KindNoSpace; KindUnsupported where no secrets are kept.
func (s *Service) SetSecret(ctx context.Context, req *v1.SetSecretRequest) (*v1.Secret, error) {
	const method = "SecretService.SetSecret"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if s.Broker == nil {
		return nil, sandbox.Errorf("secret", sandbox.KindUnsupported, "no secrets are kept here").WithHint("a server keeps them: `firebreak serve`")
	}
	name := req.GetName()
	if err := broker.CheckSecretName(name); err != nil {
		return nil, err
	}
	row := store.Secret{Name: name, Principal: p.ID}
	detail := map[string]string{}
	var secret *broker.Secret
	switch {
	case (req.GetValue() == "") == (req.GetReference() == ""):
		return nil, sandbox.Errorf("secret", sandbox.KindInvalid, "a secret is a value or a reference: exactly one of them").
			WithHint("an empty secret is none; `firebreak secret set` reads the value from standard input")
	case req.GetReference() != "":
		if row.Reference, err = s.reference(ctx, p, method, req.GetReference()); err != nil {
			return nil, err
		}
		detail["reference"] = row.Reference
	default:
		value := []byte(req.GetValue())
		secret = broker.NewSecret(value)
		defer secret.Destroy()
		if err := broker.CheckSecret(value); err != nil {
			return nil, err
		}
	}
	if err := s.record(ctx, p, method, name, sandbox.OutcomeAllowed, detail); err != nil {
		return nil, err
	}
	if secret != nil {
		row.Sealed, err = s.Broker.Seal(p.Tenant, name, secret)
	}
	if err == nil {
		row, err = s.Store.Tenant(p.Tenant).SetSecret(ctx, row)
	}
	if err != nil {
		return nil, s.failed(ctx, p, method, name, err)
	}
	if err := s.Orchestrator.Renew(context.WithoutCancel(ctx), p.Tenant, name); err != nil {
		return nil, sandbox.Errorf("secret", sandbox.KindUnavailable, "the secret is set, and not every sandbox that lives uses it: %w", err).WithID(name).
			WithHint("set it again; sandboxes made from now on use it, and all do after the server's next start")
	}
	return toSecret(row), nil
}

// reference checks a reference and who gives it: it makes the server, which may be
// root, read what is its own.
func (s *Service) reference(ctx context.Context, p auth.Principal, method, text string) (string, error) {
	_, err := auth.Require(ctx, auth.SecretReference)
	if err == nil && p.Tenant != sandbox.DefaultTenant {
		err = sandbox.Errorf("secret", sandbox.KindDenied, "a reference is to what is the operator's").WithHint("give the value")
	}
	if err != nil {
		s.Refused(ctx, Refusal{Method: method, Principal: p, Err: err})
		return "", err
	}
	r, err := broker.ParseReference(text)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

func toSecret(s store.Secret) *v1.Secret {
	return &v1.Secret{Name: s.Name, Version: s.Version, CreatedAt: stamp(s.Created), UpdatedAt: stamp(s.Updated), Principal: s.Principal, Reference: s.Reference}
}

// ListSecrets lists what is known of the tenant's secrets.
func (s *Service) ListSecrets(ctx context.Context, _ *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error) {
	who, _, err := s.allow(ctx, "SecretService.ListSecrets")
	if err != nil {
		return nil, err
	}
	list, err := s.Store.Tenant(who.Tenant).ListSecrets(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListSecretsResponse{}
	for _, row := range list {
		resp.Secrets = append(resp.Secrets, toSecret(row))
	}
	return resp, nil
}

// RemoveSecret forgets a secret. Errors: KindNotFound; KindConflict while a binding
// uses it.
func (s *Service) RemoveSecret(ctx context.Context, req *v1.RemoveSecretRequest) (*v1.RemoveSecretResponse, error) {
	const method = "SecretService.RemoveSecret"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := broker.CheckSecretName(req.GetName()); err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	_, err = s.Store.Tenant(who.Tenant).RemoveSecret(ctx, req.GetName())
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		err = noSecret(req.GetName())
	}
	if err != nil {
		return nil, s.failed(ctx, p, method, req.GetName(), err)
	}
	return &v1.RemoveSecretResponse{}, nil
}
