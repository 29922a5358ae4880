package client

import (
	"context"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// SetSecret stores a secret under a name, in place of what was there. Nothing gives
// it back. Errors: KindInvalid, KindTooLarge, KindCapacity.
func (c *Client) SetSecret(ctx context.Context, name, value string) (*v1.Secret, error) {
	return message(c.secrets.SetSecret(ctx, connect.NewRequest(&v1.SetSecretRequest{Name: name, Value: value})))
}

// ReferSecret stores where the server finds a secret each time it is used: env:NAME
// or file:/PATH. Errors: KindInvalid; KindDenied for all but the operator's admins.
func (c *Client) ReferSecret(ctx context.Context, name, reference string) (*v1.Secret, error) {
	return message(c.secrets.SetSecret(ctx, connect.NewRequest(&v1.SetSecretRequest{Name: name, Reference: reference})))
}

// Secrets lists what is known of the tenant's secrets: never their values.
func (c *Client) Secrets(ctx context.Context) ([]*v1.Secret, error) {
	res, err := message(c.secrets.ListSecrets(ctx, connect.NewRequest(&v1.ListSecretsRequest{})))
	return res.GetSecrets(), err
}

// RemoveSecret forgets a secret. Errors: KindNotFound; KindConflict while a binding
// uses it.
func (c *Client) RemoveSecret(ctx context.Context, name string) error {
	_, err := message(c.secrets.RemoveSecret(ctx, connect.NewRequest(&v1.RemoveSecretRequest{Name: name})))
	return err
}

// Binding is a secret and the only use that may be made of it. What is left out is
// the usual: port 443, or 80 where Plain, path "/", as a bearer token.
type Binding struct {
	Name   string // a DNS label
	Secret string // the name of one of the tenant's secrets
	Host   string
	Port   int
	Plain  bool // without TLS
	// Methods that may be used; none: GET, HEAD, POST, PUT, PATCH, DELETE.
	Methods []string
	Path    string // a prefix of whole segments
	As      string // bearer, basic, header, query
	Field   string // the header or the parameter; for basic the user
	Tier    string // the weakest isolation class of a sandbox that may use it
	// Git is the one repository that it is for, OWNER/NAME, by git's smart protocol;
	// path and methods are left out then, and the secret is a password. GitPush is
	// the refs that may be pushed to: in full, or all below one as refs/heads/agent/*.
	Git     string
	GitPush []string
	// Placeholder is the variable in which a sandbox's programs find what stands for
	// the secret in requests to https://HOST itself; empty: none.
	Placeholder string
}

// AddBinding stores a binding under its name, in place of what was there. Errors:
// KindInvalid with what to write instead; KindNotFound for its secret; KindCapacity.
func (c *Client) AddBinding(ctx context.Context, b Binding) (*v1.Binding, error) {
	return message(c.secrets.AddBinding(ctx, connect.NewRequest(&v1.AddBindingRequest{Name: b.Name, Secret: b.Secret, Host: b.Host, Port: int32(b.Port),
		Plain: b.Plain, Methods: b.Methods, Path: b.Path, As: b.As, Field: b.Field, Tier: b.Tier, Git: b.Git, GitPush: b.GitPush, Placeholder: b.Placeholder})))
}

// Bindings lists the tenant's bindings, by name.
func (c *Client) Bindings(ctx context.Context) ([]*v1.Binding, error) {
	res, err := message(c.secrets.ListBindings(ctx, connect.NewRequest(&v1.ListBindingsRequest{})))
	return res.GetBindings(), err
}

// Binding returns one binding. Errors: KindNotFound.
func (c *Client) Binding(ctx context.Context, name string) (*v1.Binding, error) {
	return message(c.secrets.GetBinding(ctx, connect.NewRequest(&v1.GetBindingRequest{Name: name})))
}

// RemoveBinding forgets a binding. Errors: KindNotFound.
func (c *Client) RemoveBinding(ctx context.Context, name string) error {
	_, err := message(c.secrets.RemoveBinding(ctx, connect.NewRequest(&v1.RemoveBindingRequest{Name: name})))
	return err
}
