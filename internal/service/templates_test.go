package service

import (
	"context"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestBringing: what machines boot is brought by whoever has the scope for it, in the
// operator's tenant, however it is brought; nobody else's gets as far as a build.
func TestBringing(t *testing.T) {
	r := newRig(t)
	ignore := func(*v1.BuildTemplateEvent) error { return nil }
	admin := as(t.Context(), "default", auth.Admin)
	narrow := auth.WithPrincipal(t.Context(), auth.Principal{Tenant: "default", ID: "narrow", Role: auth.Owner, Scopes: []auth.Scope{auth.TemplateWrite}})
	for what, req := range map[string]*v1.BuildTemplateRequest{
		"a kernel of the server's":           {Name: "mine", Pack: "python", KernelImagePath: "/srv/vmlinux"},
		"an uploaded one":                    {Name: "mine", Pack: "python", KernelUpload: "up"},
		"a root file system of the server's": {RootfsImagePath: "/srv/rootfs"},
		"an uploaded root file system":       {RootfsUpload: "up"},
	} {
		for who, ctx := range map[string]context.Context{"another tenant's owner": as(t.Context(), "other", auth.Owner), "a developer": as(t.Context(), "default", auth.Developer), "without the scope": narrow} {
			if err := r.BuildTemplate(ctx, req, ignore); sandbox.KindOf(err) != sandbox.KindDenied {
				t.Errorf("%s, %s: %v", what, who, err)
			}
		}
		if len(r.templates.built) > 0 {
			t.Fatalf("%s was built", what)
		}
		if err := r.BuildTemplate(admin, req, ignore); err != nil {
			t.Errorf("%s, an admin: %v", what, err)
		}
		r.templates.built = nil
	}
	if err := r.BuildTemplate(narrow, &v1.BuildTemplateRequest{Name: "python"}, ignore); err != nil {
		t.Errorf("a pack needs the one scope: %v", err)
	}
	if err := r.BuildTemplate(admin, &v1.BuildTemplateRequest{KernelImagePath: "/srv/vmlinux"}, ignore); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("a kernel alone, without a name: %v", err)
	}
}
