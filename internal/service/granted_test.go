package service

import (
	"context"
	"slices"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/backend/sim"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// stored are the bindings of a store, for any sandbox.
type stored struct{ *store.Store }

func (s stored) Needs(ctx context.Context, tenant sandbox.TenantID, name string) (orchestrator.BindingNeeds, error) {
	_, err := s.Tenant(tenant).Binding(ctx, name)
	return orchestrator.BindingNeeds{}, err
}

// TestGrantedBindings: a sandbox has its tenant's bindings and nobody else's, and as
// long as it lives they are not removed.
func TestGrantedBindings(t *testing.T) {
	b := sim.New(sim.Config{})
	r := newRigWith(t, b, func(c *orchestrator.Config) {
		c.Network, c.Backends, c.Bindings = &switchboard{tables: map[sandbox.InstanceID]*policy.Table{}}, []sandbox.Backend{socketed{b}}, stored{c.Store}
	})
	ctx, other := as(t.Context(), "default", auth.Owner), as(t.Context(), "other", auth.Owner)
	if _, err := r.SetSecret(ctx, &v1.SetSecretRequest{Name: "key", Value: "s3cret-value"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddBinding(ctx, &v1.AddBindingRequest{Name: "vault", Secret: "key", Host: "api.example.com"}); err != nil {
		t.Fatal(err)
	}
	want := []string{"vault"}
	if _, err := r.CreateSandbox(other, &v1.CreateSandboxRequest{Bindings: want}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("another tenant's: %v", err)
	}
	sb, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Bindings: want})
	if err != nil || !slices.Equal(sb.GetBindings(), want) || sb.GetNetwork() == nil || len(sb.GetNetwork().GetDocuments()) != 0 {
		t.Fatalf("%v, %v", sb, err)
	}
	list, err := r.ListSandboxes(ctx, &v1.ListSandboxesRequest{})
	if err != nil || len(list.GetSandboxes()) != 1 || !slices.Equal(list.GetSandboxes()[0].GetBindings(), want) {
		t.Errorf("%v, %v", list, err)
	}
	remove := func() error {
		_, err := r.RemoveBinding(ctx, &v1.RemoveBindingRequest{Name: "vault"})
		return err
	}
	if err := remove(); sandbox.KindOf(err) != sandbox.KindConflict || !strings.Contains(err.Error(), sb.GetId()) {
		t.Errorf("a binding in use: %v", err)
	}
	if got, err := r.GetBinding(ctx, &v1.GetBindingRequest{Name: "vault"}); err != nil || got.GetName() != "vault" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := r.DestroySandbox(ctx, &v1.DestroySandboxRequest{Id: sb.GetId()}); err != nil {
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Errorf("of a sandbox that has ended: %v", err)
	}
	if err := remove(); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("again: %v", err)
	}
}
