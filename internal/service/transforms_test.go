package service

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/broker"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestTransforms: headers that name secrets take the scope that bindings take, and a
// secret that is there; no answer and nothing that is stored has a value.
func TestTransforms(t *testing.T) {
	r, n := newWiredRig(t)
	r.Broker = broker.New(filepath.Join(t.TempDir(), "secrets"), FindSecret(r.Store))
	admin, developer := as(t.Context(), "default", auth.Admin), as(t.Context(), "default", auth.Developer)
	if _, err := r.SetSecret(admin, &v1.SetSecretRequest{Name: "openai", Value: "s3cret-value"}); err != nil {
		t.Fatal(err)
	}
	rules := func(host string, headers ...string) *v1.NetworkRules {
		h := map[string]string{}
		for i := 0; i < len(headers); i += 2 {
			h[headers[i]] = headers[i+1]
		}
		return &v1.NetworkRules{Allow: []string{"api.example.com"}, Transforms: []*v1.HeaderTransform{{Host: host, Headers: h}}}
	}
	const literal = "a-literal-t0ken"
	good := rules("API.example.com", "authorization", "Bearer ${e2b.secrets.OpenAI}", "X-Literal", literal)
	sb, err := r.CreateSandbox(admin, &v1.CreateSandboxRequest{Network: good})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"Authorization": "Bearer ${e2b.secrets.openai}", "X-Literal": "[redacted]"}
	if tr := sb.GetNetwork().GetTransforms(); len(tr) != 1 || tr[0].GetHost() != "api.example.com" || !maps.Equal(tr[0].GetHeaders(), want) {
		t.Errorf("%v", tr)
	}
	row, err := r.Store.Tenant("default").Sandbox(t.Context(), sandbox.ID(sb.GetId()))
	if err != nil || strings.Contains(string(row.Extra), literal) || strings.Contains(string(row.Extra), "s3cret") || !strings.Contains(string(row.Extra), "${e2b.secrets.openai}") {
		t.Errorf("%s, %v", row.Extra, err)
	}
	var details orchestrator.Details
	if err := json.Unmarshal(row.Extra, &details); err != nil {
		t.Fatal(err)
	}
	headers := details.Network.Transforms[0].Headers
	i := slices.IndexFunc(headers, func(h orchestrator.TransformHeader) bool { return h.Name == "X-Literal" })
	opened, err := r.Broker.Open("default", orchestrator.SealedName, headers[i].Sealed)
	if err != nil {
		t.Fatal(err)
	}
	opened.Use(func(b []byte) {
		if string(b) != literal {
			t.Errorf("what was sealed opens as %q", b)
		}
	})
	for what, c := range map[string]struct {
		rules *v1.NetworkRules
		who   auth.Role
		kind  sandbox.Kind
	}{
		"no such secret":   {rules("api.example.com", "X-A", "${e2b.secrets.none}"), auth.Admin, sandbox.KindNotFound},
		"a developer's":    {rules("api.example.com", "X-A", "${e2b.secrets.openai}"), auth.Developer, sandbox.KindDenied},
		"identity":         {rules("api.example.com", "X-A", "${e2b.identity.tokens.aws}"), auth.Admin, sandbox.KindUnsupported},
		"a framing header": {rules("api.example.com", "Content-Length", "1"), auth.Admin, sandbox.KindInvalid},
		"an address":       {rules("10.0.0.1", "X-A", "1"), auth.Admin, sandbox.KindInvalid},
		"a port":           {rules("api.example.com:8443", "X-A", "1"), auth.Admin, sandbox.KindInvalid},
		"anybody's":        {rules("*.com", "X-A", "1"), auth.Admin, sandbox.KindInvalid},
		"two stars":        {rules("**.example.com", "X-A", "1"), auth.Admin, sandbox.KindInvalid},
		"a header twice":   {rules("api.example.com", "X-A", "1", "x-a", "2"), auth.Admin, sandbox.KindInvalid},
		"what is shown":    {rules("api.example.com", "X-A", "[redacted]"), auth.Admin, sandbox.KindInvalid},
		"a space":          {rules("api.example.com", "X-A", " a"), auth.Admin, sandbox.KindInvalid},
		"a host twice": {&v1.NetworkRules{Transforms: []*v1.HeaderTransform{{Host: "a.example.com", Headers: map[string]string{"X-A": "1"}}, {Host: "A.example.com", Headers: map[string]string{"X-A": "1"}}}},
			auth.Admin, sandbox.KindInvalid},
	} {
		ctx := as(t.Context(), "default", c.who)
		_, err := r.CreateSandbox(ctx, &v1.CreateSandboxRequest{Network: c.rules})
		if e := wantKind(t, err, c.kind); strings.Contains(e.Error(), "s3cret") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := r.UpdateNetwork(ctx, &v1.UpdateNetworkRequest{Id: sb.GetId(), Transforms: c.rules.GetTransforms()}); sandbox.KindOf(err) != c.kind {
			t.Errorf("%s, of an update: %v", what, err)
		}
	}
	many := map[string]string{}
	for i := range maxSetHeaders + 1 {
		many[fmt.Sprint("X-", i)] = "x"
	}
	_, err = r.CreateSandbox(developer, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{Transforms: []*v1.HeaderTransform{{Host: "a.example.com", Headers: many}}}})
	wantKind(t, err, sandbox.KindTooLarge)
	plain, err := r.CreateSandbox(developer, &v1.CreateSandboxRequest{Network: rules("*.example.com", "X-Env", "test")})
	if err != nil || plain.GetNetwork().GetTransforms()[0].GetHost() != "*.example.com" {
		t.Errorf("what names no secret is anybody's: %v, %v", plain, err)
	}
	alone, err := r.CreateSandbox(admin, &v1.CreateSandboxRequest{Network: &v1.NetworkRules{Transforms: good.GetTransforms()}})
	if err != nil || len(alone.GetNetwork().GetDocuments()) != 0 || alone.GetNetwork().GetMode() != "enforce" {
		t.Errorf("headers open nothing: %v, %v", alone, err)
	}
	up, err := r.UpdateNetwork(developer, &v1.UpdateNetworkRequest{Id: sb.GetId(), Allow: []string{"api.example.com"}})
	if err != nil || len(up.GetNetwork().GetTransforms()) != 0 {
		t.Errorf("an update that sets none: %v, %v", up, err)
	}
	_ = n
}
