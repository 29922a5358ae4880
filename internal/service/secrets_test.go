package service

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const canary = "canary-77aa01-value"

func secretText(t *testing.T, b *broker.Broker, tenant sandbox.TenantID, name string) string {
	t.Helper()
	s, err := b.Get(t.Context(), tenant, name)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Destroy()
	var text string
	s.Use(func(b []byte) { text = string(b) })
	return text
}

func TestSecrets(t *testing.T) {
	r := newRig(t)
	owner, admin, viewer, developer := as(t.Context(), "default", auth.Owner), as(t.Context(), "default", auth.Admin), as(t.Context(), "default", auth.Viewer), as(t.Context(), "default", auth.Developer)
	other := as(t.Context(), "other", auth.Owner)
	set, err := r.SetSecret(admin, &v1.SetSecretRequest{Name: "token", Value: canary})
	if err != nil || set.Version != 1 || set.Principal != "key-admin" || set.Reference != "" {
		t.Fatalf("%+v, %v", set, err)
	}
	if got := secretText(t, r.Broker, "default", "token"); got != canary {
		t.Errorf("%q", got)
	}
	for _, ctx := range []context.Context{viewer, developer} {
		_, err := r.SetSecret(ctx, &v1.SetSecretRequest{Name: "token", Value: "x"})
		wantKind(t, err, sandbox.KindDenied)
		_, err = r.RemoveSecret(ctx, &v1.RemoveSecretRequest{Name: "token"})
		wantKind(t, err, sandbox.KindDenied)
		if list, err := r.ListSecrets(ctx, &v1.ListSecretsRequest{}); err != nil || len(list.Secrets) != 1 || !proto.Equal(list.Secrets[0], set) {
			t.Errorf("%v, %v", list, err)
		}
	}
	if set, err = r.SetSecret(owner, &v1.SetSecretRequest{Name: "token", Value: canary + "2"}); err != nil || set.Version != 2 {
		t.Errorf("%+v, %v", set, err)
	}
	// Another tenant's is not there, and what is sealed of it opens nothing.
	if list, err := r.ListSecrets(other, &v1.ListSecretsRequest{}); err != nil || len(list.Secrets) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	_, err = r.RemoveSecret(other, &v1.RemoveSecretRequest{Name: "token"})
	wantKind(t, err, sandbox.KindNotFound)
	_, err = r.Broker.Get(t.Context(), "other", "token")
	wantKind(t, err, sandbox.KindNotFound)
	row, err := r.Store.Tenant("default").Secret(t.Context(), "token")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Store.Tenant("other").SetSecret(t.Context(), row); err != nil { // with the database in hand
		t.Fatal(err)
	}
	_, err = r.Broker.Get(t.Context(), "other", "token")
	wantKind(t, err, sandbox.KindUnavailable)

	for name, c := range map[string]struct {
		req  *v1.SetSecretRequest
		kind sandbox.Kind
	}{
		"empty":        {&v1.SetSecretRequest{Name: "a"}, sandbox.KindInvalid},
		"no name":      {&v1.SetSecretRequest{Name: "../a", Value: canary}, sandbox.KindInvalid},
		"both":         {&v1.SetSecretRequest{Name: "a", Value: canary, Reference: "env:A"}, sandbox.KindInvalid},
		"two lines":    {&v1.SetSecretRequest{Name: "a", Value: canary + "\n" + canary}, sandbox.KindInvalid},
		"NUL":          {&v1.SetSecretRequest{Name: "a", Value: canary + "\x00"}, sandbox.KindInvalid},
		"space":        {&v1.SetSecretRequest{Name: "a", Value: canary + " "}, sandbox.KindInvalid},
		"too long":     {&v1.SetSecretRequest{Name: "a", Value: strings.Repeat(canary, 4000)}, sandbox.KindTooLarge},
		"no reference": {&v1.SetSecretRequest{Name: "a", Reference: "file:" + canary}, sandbox.KindInvalid},
	} {
		_, err := r.SetSecret(owner, c.req)
		if e := wantKind(t, err, c.kind); e.Hint == "" || strings.Contains(err.Error(), canary[:12]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.RemoveSecret(owner, &v1.RemoveSecretRequest{Name: "token"}); err != nil {
		t.Error(err)
	}
	_, err = r.RemoveSecret(owner, &v1.RemoveSecretRequest{Name: "token"})
	wantKind(t, err, sandbox.KindNotFound)
	r.secretRecords("secret.set allowed token ", "secret.set allowed token ", "secret.remove allowed token ", "secret.remove allowed token ")
}

// secretRecords compares what is recorded of secrets and bindings, refusals and
// failures left out, and looks for the canary and its digest in the whole log.
func (r *rig) secretRecords(want ...string) {
	r.t.Helper()
	check(r.t, r.log.Close())
	var got []string
	for e, err := range audit.Scan(filepath.Join(r.dir, "audit"), 1) {
		if err != nil {
			r.t.Fatal(err)
		}
		rec := e.Record
		noun, _, _ := strings.Cut(rec.Action, ".")
		if noun != "secret" && noun != "binding" || rec.Outcome != sandbox.OutcomeAllowed || rec.Tenant != "default" {
			continue
		}
		if rec.Class != sandbox.Gate || noun == "secret" && rec.Digest != "" {
			r.t.Errorf("%+v", rec)
		}
		got = append(got, fmt.Sprintf("%s %s %s %s", rec.Action, rec.Outcome, rec.Object, rec.Detail["reference"]+rec.Detail["host"]))
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		r.t.Errorf("recorded\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.nowhere(canary[:12], digest([]byte(canary)))
}

// nowhere looks for texts in every file below the data directory.
func (r *rig) nowhere(texts ...string) {
	r.t.Helper()
	files := 0
	err := filepath.WalkDir(r.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		for _, s := range texts {
			if strings.Contains(string(b), s) {
				r.t.Errorf("%s holds %q", path, s)
			}
		}
		return err
	})
	if err != nil || files < 3 {
		r.t.Errorf("%d files, %v", files, err)
	}
}

// TestReferences: only whoever may let the server read what is its own, in the
// operator's tenant.
func TestReferences(t *testing.T) {
	r := newRig(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	req := &v1.SetSecretRequest{Name: "vault", Reference: "file:" + file}
	narrow := auth.WithPrincipal(t.Context(), auth.Principal{Tenant: "default", ID: "narrow", Role: auth.Owner, Scopes: []auth.Scope{auth.SecretWrite}})
	for name, ctx := range map[string]context.Context{"another tenant's owner": as(t.Context(), "other", auth.Owner), "a developer": as(t.Context(), "default", auth.Developer), "without the scope": narrow} {
		if _, err := r.SetSecret(ctx, req); sandbox.KindOf(err) != sandbox.KindDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.SetSecret(narrow, &v1.SetSecretRequest{Name: "token", Value: "x"}); err != nil {
		t.Errorf("a value needs the one scope: %v", err)
	}
	admin := as(t.Context(), "default", auth.Admin)
	set, err := r.SetSecret(admin, req)
	if err != nil || set.Reference != req.Reference {
		t.Fatalf("%v, %v", set, err)
	}
	if list, err := r.ListSecrets(admin, &v1.ListSecretsRequest{}); err != nil || len(list.Secrets) != 2 || list.Secrets[1].Reference != req.Reference {
		t.Errorf("%v, %v", list, err)
	}
	if got := secretText(t, r.Broker, "default", "vault"); got != canary {
		t.Errorf("%q", got)
	}
	// A value in its place is no reference any more.
	if set, err := r.SetSecret(admin, &v1.SetSecretRequest{Name: "vault", Value: "x"}); err != nil || set.Reference != "" || set.Version != 2 {
		t.Errorf("%v, %v", set, err)
	}
	if got := secretText(t, r.Broker, "default", "vault"); got != "x" {
		t.Errorf("%q", got)
	}
	r.secretRecords("secret.set allowed token ", "secret.set allowed vault "+req.Reference, "secret.set allowed vault ")
}

func TestBindings(t *testing.T) {
	r := newRig(t)
	admin, viewer, developer, other := as(t.Context(), "default", auth.Admin), as(t.Context(), "default", auth.Viewer), as(t.Context(), "default", auth.Developer), as(t.Context(), "other", auth.Owner)
	req := &v1.AddBindingRequest{Name: "openai", Secret: "token", Host: "API.example.com.", Path: "/v1/", Methods: []string{"post"}, Tier: "user-kernel"}
	_, err := r.AddBinding(admin, req)
	wantKind(t, err, sandbox.KindNotFound)
	if _, err := r.SetSecret(admin, &v1.SetSecretRequest{Name: "token", Value: canary}); err != nil {
		t.Fatal(err)
	}
	set, err := r.AddBinding(admin, req)
	if err != nil || set.Host != "api.example.com" || set.Port != 443 || set.Path != "/v1" || set.As != "bearer" || strings.Join(set.Methods, " ") != "POST" || set.Tier != "user-kernel" || set.Version != 1 {
		t.Fatalf("%v, %v", set, err)
	}
	_, err = r.AddBinding(other, req) // another tenant's secret is none
	wantKind(t, err, sandbox.KindNotFound)
	_, err = r.GetBinding(other, &v1.GetBindingRequest{Name: "openai"})
	wantKind(t, err, sandbox.KindNotFound)
	_, err = r.RemoveBinding(other, &v1.RemoveBindingRequest{Name: "openai"})
	wantKind(t, err, sandbox.KindNotFound)
	for _, ctx := range []context.Context{viewer, developer} {
		_, err := r.AddBinding(ctx, req)
		wantKind(t, err, sandbox.KindDenied)
		if got, err := r.GetBinding(ctx, &v1.GetBindingRequest{Name: "openai"}); err != nil || !proto.Equal(got, set) {
			t.Errorf("%v, %v", got, err)
		}
		if list, err := r.ListBindings(ctx, &v1.ListBindingsRequest{}); err != nil || len(list.Bindings) != 1 || !proto.Equal(list.Bindings[0], set) {
			t.Errorf("%v, %v", list, err)
		}
	}
	_, err = r.RemoveSecret(admin, &v1.RemoveSecretRequest{Name: "token"})
	if e := wantKind(t, err, sandbox.KindConflict); !strings.Contains(e.Message(), "openai") || e.Hint == "" {
		t.Error(err)
	}
	for name, change := range map[string]func(*v1.AddBindingRequest){
		"wildcard": func(b *v1.AddBindingRequest) { b.Host = "*.example.com" },
		"address":  func(b *v1.AddBindingRequest) { b.Host = "169.254.169.254" },
		"path":     func(b *v1.AddBindingRequest) { b.Path = "/../x" },
		"port":     func(b *v1.AddBindingRequest) { b.Port = 70000 },
		"header":   func(b *v1.AddBindingRequest) { b.As, b.Field = "header", "Host" },
		"tier":     func(b *v1.AddBindingRequest) { b.Tier = "L2" },
		"git":      func(b *v1.AddBindingRequest) { b.Git = "o/r" }, // with a path of its own
		"git-push": func(b *v1.AddBindingRequest) { b.GitPush = []string{"refs/heads/x"} },
	} {
		bad := proto.Clone(req).(*v1.AddBindingRequest)
		change(bad)
		_, err := r.AddBinding(admin, bad)
		if e := wantKind(t, err, sandbox.KindInvalid); e.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again, err := r.AddBinding(admin, &v1.AddBindingRequest{Name: "openai", Secret: "token", Host: "api.example.com", Plain: true, As: "header", Field: "x-key"}); err != nil ||
		again.Version != 2 || again.Port != 80 || again.Field != "X-Key" || again.Tier != "" {
		t.Errorf("%v, %v", again, err)
	}
	if _, err := r.AddBinding(admin, &v1.AddBindingRequest{Name: "gh", Secret: "token", Host: "github.com", Git: "o/r", GitPush: []string{"refs/heads/agent/*"}}); err != nil {
		t.Error(err)
	}
	if gh, err := r.GetBinding(viewer, &v1.GetBindingRequest{Name: "gh"}); err != nil || gh.Git != "o/r" || gh.Path != "/o/r" || strings.Join(gh.GitPush, " ") != "refs/heads/agent/*" || gh.As != "basic" || gh.Field != "x-access-token" {
		t.Errorf("%v, %v", gh, err)
	}
	if _, err := r.RemoveBinding(admin, &v1.RemoveBindingRequest{Name: "gh"}); err != nil {
		t.Error(err)
	}
	row, err := r.Store.Tenant("default").Binding(t.Context(), "openai")
	var b broker.Binding
	if err != nil || json.Unmarshal(row.Body, &b) != nil || b.Check() != nil || b.Secret != row.Secret {
		t.Errorf("%+v, %v", row, err)
	}
	if _, err := r.RemoveBinding(admin, &v1.RemoveBindingRequest{Name: "openai"}); err != nil {
		t.Error(err)
	}
	_, err = r.RemoveBinding(admin, &v1.RemoveBindingRequest{Name: "openai"})
	wantKind(t, err, sandbox.KindNotFound)
	if _, err := r.RemoveSecret(admin, &v1.RemoveSecretRequest{Name: "token"}); err != nil {
		t.Error(err)
	}
	r.secretRecords("binding.set allowed openai api.example.com", "secret.set allowed token ", "binding.set allowed openai api.example.com", "secret.remove allowed token ",
		"binding.set allowed openai api.example.com", "binding.set allowed gh github.com", "binding.remove allowed gh ", "binding.remove allowed openai ", "binding.remove allowed openai ", "secret.remove allowed token ")
}

// TestNoMessageCarriesASecret: of all messages of the API one has a field for a
// secret's value, and it is a request that nothing else holds; and one has a field
// for headers, of which answers show no value that may be one (TestTransforms).
func TestNoMessageCarriesASecret(t *testing.T) {
	const only = "firebreak.v1.SetSecretRequest.value"
	var hidden []string
	var answers []protoreflect.MessageDescriptor
	protoregistry.GlobalFiles.RangeFilesByPackage("firebreak.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Messages().Len() {
			fields := file.Messages().Get(i).Fields()
			for j := range fields.Len() {
				if o, ok := fields.Get(j).Options().(*descriptorpb.FieldOptions); ok && o.GetDebugRedact() {
					hidden = append(hidden, string(fields.Get(j).FullName()))
				}
				if m := fields.Get(j).Message(); m != nil && m.Name() == "SetSecretRequest" {
					t.Errorf("%s holds one", fields.Get(j).FullName())
				}
			}
		}
		for i := range file.Services().Len() {
			for j := range file.Services().Get(i).Methods().Len() {
				m := file.Services().Get(i).Methods().Get(j)
				if (m.Input().Name() == "SetSecretRequest") != (m.Name() == "SetSecret") {
					t.Errorf("%s takes %s", m.FullName(), m.Input().Name())
				}
				if file.Services().Get(i).Name() == "SecretService" {
					answers = append(answers, m.Output())
				}
			}
		}
		return true
	})
	if slices.Sort(hidden); !slices.Equal(hidden, []string{"firebreak.v1.HeaderTransform.headers", only}) {
		t.Errorf("fields that are not shown: %q", hidden)
	}
	// What answers of the service may say is listed: a field that is added has to be
	// thought about.
	known := map[string]bool{}
	for _, f := range strings.Fields(`Secret.name Secret.created_at Secret.updated_at Secret.principal Secret.version Secret.reference
		ListSecretsResponse.secrets Binding.name Binding.secret Binding.host Binding.port Binding.plain Binding.methods Binding.path Binding.as Binding.field
		Binding.tier Binding.git Binding.git_push Binding.placeholder Binding.version Binding.created_at Binding.updated_at Binding.principal ListBindingsResponse.bindings`) {
		known[f] = true
	}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(md protoreflect.MessageDescriptor) {
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if m := fd.Message(); m != nil && m.ParentFile().Package() == "firebreak.v1" {
				walk(m)
			}
			if name := string(md.Name()) + "." + string(fd.Name()); !known[name] {
				t.Errorf("an answer of the service has the field %s: can it hold a secret?", name)
			}
		}
	}
	for _, md := range answers {
		walk(md)
	}
}
