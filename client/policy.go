package client

import (
	"context"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// Network says where a sandbox may connect: to whatever one of its parts allows,
// unless one of them denies it.
type Network struct {
	// Allow is HOST[:PORT]: a name, *.NAME, an address or a network; port 443
	// unless given.
	Allow []string
	// Policies are names: those in Documents, built-in ones, the tenant's.
	Policies []string
	// Document is the text of a policy, YAML or JSON, and Documents are further
	// ones by name.
	Document  string
	Documents map[string]string
}

func (n *Network) rules() *v1.NetworkRules {
	if n == nil {
		return nil
	}
	return &v1.NetworkRules{Allow: n.Allow, Policy: n.Policies, Document: n.Document, Documents: n.Documents}
}

// UpdateNetwork replaces what the sandbox may reach, and closes the connections
// that the policy before had allowed. Errors: KindInvalid with the line,
// KindNotFound, KindGone, KindUnsupported for a sandbox that was made without a
// Network.
func (s *Sandbox) UpdateNetwork(ctx context.Context, n Network) (*v1.UpdateNetworkResponse, error) {
	return message(s.c.sandboxes.UpdateNetwork(ctx, connect.NewRequest(&v1.UpdateNetworkRequest{Id: s.id, Allow: n.Allow, Policy: n.Policies,
		Document: n.Document, Documents: n.Documents})))
}

// Policies lists the tenant's policies, then the built-in ones, without texts.
func (c *Client) Policies(ctx context.Context) ([]*v1.Policy, error) {
	res, err := message(c.policies.ListPolicies(ctx, connect.NewRequest(&v1.ListPoliciesRequest{})))
	return res.GetPolicies(), err
}

// Policy returns one policy with its text. Errors: KindNotFound.
func (c *Client) Policy(ctx context.Context, name string) (*v1.Policy, error) {
	return message(c.policies.GetPolicy(ctx, connect.NewRequest(&v1.GetPolicyRequest{Name: name})))
}

// SetPolicy stores a policy under a name. ifDigest, where not empty, is the digest
// of what must be there, or "none" if nothing may be. Errors: KindInvalid with the
// line, KindConflict.
func (c *Client) SetPolicy(ctx context.Context, name, text, ifDigest string) (*v1.Policy, error) {
	return message(c.policies.SetPolicy(ctx, connect.NewRequest(&v1.SetPolicyRequest{Name: name, Text: text, IfDigest: ifDigest})))
}

// RemovePolicy forgets a policy; sandboxes that began with it keep it. Errors:
// KindNotFound.
func (c *Client) RemovePolicy(ctx context.Context, name string) error {
	_, err := message(c.policies.RemovePolicy(ctx, connect.NewRequest(&v1.RemovePolicyRequest{Name: name})))
	return err
}
