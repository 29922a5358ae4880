package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// vault is an API that keeps secrets in memory.
type vault struct {
	API
	values map[string]string
}

func (v *vault) SetSecret(_ context.Context, r *v1.SetSecretRequest) (*v1.Secret, error) {
	v.values[r.GetName()] = r.GetValue()
	return &v1.Secret{Name: r.GetName(), Version: 1}, nil
}
func (v *vault) ListSecrets(context.Context, *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error) {
	out := &v1.ListSecretsResponse{}
	for name := range v.values {
		out.Secrets = append(out.Secrets, &v1.Secret{Name: name, Version: 1})
	}
	slices.SortFunc(out.Secrets, func(a, b *v1.Secret) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
func (v *vault) RemoveSecret(_ context.Context, r *v1.RemoveSecretRequest) (*v1.RemoveSecretResponse, error) {
	if r.GetName() == "bound" {
		return nil, sandbox.Errorf("secret", sandbox.KindConflict, "a binding uses it")
	}
	delete(v.values, r.GetName())
	return &v1.RemoveSecretResponse{}, nil
}

// TestSecretRoutes: E2B's calls about secrets, none of which answers with a value or
// quotes one in an error.
func TestSecretRoutes(t *testing.T) {
	const value = "s3cret-of-the-test"
	api := &vault{values: map[string]string{"GitHub": "x", "bound": "y"}}
	s, err := New(Config{API: api, Auth: openDoor{}, Door: openDoor{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	call := func(method, path, body string, want int) (string, http.Header) {
		t.Helper()
		r := httptest.NewRequest(method, "http://127.0.0.1"+path, strings.NewReader(body))
		r.Header.Set("X-Api-Key", "e2b_x")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want || strings.Contains(w.Body.String(), value) {
			t.Errorf("%s %s: %d %s, want %d", method, path, w.Code, w.Body, want)
		}
		return w.Body.String(), w.Header()
	}
	set := func(name string) string { return fmt.Sprintf(`{"name":%q,"value":%q}`, name, value) }
	out, _ := call("POST", "/secrets", set("OpenAI"), 201)
	var made secretInfo
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.SecretID != "sec_openai" || made.Name != "openai" || made.CurrentVersion != 1 || made.Metadata == nil || api.values["openai"] != value {
		t.Errorf("%s: %+v, %v", out, made, err)
	}
	call("POST", "/secrets", set("openai"), 409)
	call("POST", "/secrets", set("sec_x"), 400)
	call("POST", "/secrets", `{"name":"m","value":"`+value+`","metadata":{"a":"b"}}`, 501)
	call("POST", "/secrets", `{"name":"m","value":"`+value+`","more":1}`, 400)
	call("POST", "/secrets", `{"name":"m","value":["`+value+`"]}`, 400)
	call("POST", "/secrets", `{"name":"m","value":"`+value, 400)
	call("GET", "/secrets/sec_openai", "", 200)
	call("GET", "/secrets/OPENAI", "", 200)
	if out, _ := call("GET", "/secrets/GitHub", "", 200); !strings.Contains(out, `"sec_GitHub"`) {
		t.Error(out)
	}
	call("GET", "/secrets/other", "", 404)
	call("POST", "/secrets/openai", `{"value":"another"}`, 200)
	call("POST", "/secrets/openai", `{"name":"x","value":"another"}`, 400)
	call("POST", "/secrets/other", `{"value":"another"}`, 404)
	if api.values["openai"] != "another" {
		t.Errorf("%q", api.values)
	}
	var names []string
	for next := ""; ; {
		out, h := call("GET", "/secrets?limit=1&nextToken="+next, "", 200)
		var page []secretInfo
		if err := json.Unmarshal([]byte(out), &page); err != nil || len(page) != 1 {
			t.Fatalf("%s, %v", out, err)
		}
		names = append(names, page[0].Name)
		if next = h.Get("X-Next-Token"); next == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"GitHub", "bound", "openai"}) {
		t.Errorf("%q", names)
	}
	call("GET", "/secrets?limit=0", "", 400)
	call("DELETE", "/secrets/bound", "", 409)
	call("DELETE", "/secrets/sec_openai", "", 204)
	call("DELETE", "/secrets/sec_openai", "", 404)
}

// TestHostRules: rules set headers, and let pass no more than E2B would.
func TestHostRules(t *testing.T) {
	rule := func(headers ...string) []hostRule {
		var out []hostRule
		for i := 0; i < len(headers); i += 2 {
			out = append(out, hostRule{Transform: &transform{Headers: map[string]string{headers[i]: headers[i+1]}}})
		}
		return append(out, hostRule{})
	}
	rules := map[string][]hostRule{"API.example.com": rule("authorization", "Bearer ${e2b.secrets.a}", "x-env", "one", "X-Env", "two"), "*.b.example.com": rule("X-B", "b"), "none.example.com": rule()}
	for name, c := range map[string]struct {
		n    networkRequest
		open []string // rules of the document
	}{
		"alone":           {networkRequest{}, []string{"api.example.com", "*.b.example.com"}},
		"closed":          {networkRequest{closed: true}, nil},
		"denied":          {networkRequest{DenyOut: []string{"0.0.0.0/0"}}, nil},
		"denied in part":  {networkRequest{DenyOut: []string{"10.0.0.0/8"}}, []string{"api.example.com", "*.b.example.com"}},
		"others allowed":  {networkRequest{AllowOut: []string{"c.example.com"}}, []string{"c.example.com"}},
		"allowed as well": {networkRequest{AllowOut: []string{"api.example.com"}, closed: true}, []string{"api.example.com"}},
	} {
		c.n.Rules = rules
		got, err := c.n.rules()
		if err != nil || len(got.GetTransforms()) != 2 {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		for _, tr := range got.GetTransforms() {
			switch h := tr.GetHeaders(); tr.GetHost() {
			case "api.example.com":
				if len(h) != 2 || h["Authorization"] != "Bearer ${e2b.secrets.a}" || h["X-Env"] != "two" {
					t.Errorf("%s: %v", name, h)
				}
			case "*.b.example.com":
			default:
				t.Errorf("%s: %v", name, tr)
			}
		}
		for _, host := range []string{"api.example.com", "*.b.example.com", "c.example.com", "none.example.com"} {
			if slices.Contains(c.open, host) != strings.Contains(got.GetDocument(), `"`+host+`"`) {
				t.Errorf("%s: %s in %s", name, host, got.GetDocument())
			}
		}
	}
}
