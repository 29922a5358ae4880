package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
)

const secretCanary = "canary-90aa-typed"

// secretServer answers on a socket, and keeps what it was asked.
type secretServer struct {
	firebreakv1connect.UnimplementedSecretServiceHandler
	mu    sync.Mutex
	asked []any // guarded by mu
}

func (s *secretServer) keep(m any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, m)
}

func (s *secretServer) last() any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked) == 0 {
		return nil
	}
	return s.asked[len(s.asked)-1]
}

func (s *secretServer) SetSecret(_ context.Context, r *connect.Request[v1.SetSecretRequest]) (*connect.Response[v1.Secret], error) {
	s.keep(r.Msg)
	return connect.NewResponse(&v1.Secret{Name: r.Msg.GetName(), Version: 1, Reference: r.Msg.GetReference()}), nil
}

func (s *secretServer) ListSecrets(context.Context, *connect.Request[v1.ListSecretsRequest]) (*connect.Response[v1.ListSecretsResponse], error) {
	return connect.NewResponse(&v1.ListSecretsResponse{Secrets: []*v1.Secret{{Name: "openai", Version: 2, Principal: "k1"}, {Name: "vault", Version: 1, Reference: "file:/run/vault"}}}), nil
}

func (s *secretServer) AddBinding(_ context.Context, r *connect.Request[v1.AddBindingRequest]) (*connect.Response[v1.Binding], error) {
	s.keep(r.Msg)
	return connect.NewResponse(&v1.Binding{Name: r.Msg.GetName(), Version: 1, Host: "api.example.com", Port: 443, Path: "/v1"}), nil
}

func (s *secretServer) ListBindings(context.Context, *connect.Request[v1.ListBindingsRequest]) (*connect.Response[v1.ListBindingsResponse], error) {
	return connect.NewResponse(&v1.ListBindingsResponse{Bindings: []*v1.Binding{{Name: "openai", Secret: "s", Host: "api.example.com", Port: 8443, Path: "/", As: "header", Field: "X-Key", Methods: []string{"GET"}}}}), nil
}

// runCLI runs a command against a secretServer.
func runCLI(t *testing.T, s *secretServer, stdin string, env map[string]string, args ...string) (code int, out, errs string) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(firebreakv1connect.NewSecretServiceHandler(s))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok\n")) })
	srv := &http.Server{Handler: mux}
	var over sync.WaitGroup
	over.Go(func() { srv.Serve(l) })
	defer over.Wait()
	defer srv.Close()
	var o, e bytes.Buffer
	app := &App{In: strings.NewReader(stdin), Out: &o, Err: &e, Lookup: func(k string) (string, bool) {
		if k == "FIREBREAK_SOCKET" {
			return sock, true
		}
		v, ok := env[k]
		return v, ok
	}}
	code = app.Execute(t.Context(), args)
	return code, o.String(), e.String()
}

// TestSecretSet: the value comes from standard input, a file or a variable, without
// its line's end, and is shown nowhere.
func TestSecretSet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secretCanary+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"TOKEN": secretCanary}
	s := &secretServer{}
	for name, c := range map[string]struct {
		stdin string
		args  []string
		value string
		ref   string
		code  int
	}{
		"stdin":        {secretCanary + "\n", nil, secretCanary, "", 0},
		"without end":  {secretCanary, nil, secretCanary, "", 0},
		"inner line":   {secretCanary + "\n\n", nil, secretCanary + "\n", "", 0}, // the server refuses it
		"file":         {"", []string{"--from-file", file}, secretCanary, "", 0},
		"variable":     {"", []string{"--from-env", "TOKEN"}, secretCanary, "", 0},
		"reference":    {secretCanary, []string{"--ref", "env:TOKEN"}, "", "env:TOKEN", 0},
		"nothing":      {"", nil, "", "", exitUsage},
		"not text":     {secretCanary + "\xff", nil, "", "", exitUsage},
		"no file":      {"", []string{"--from-file", file + "x"}, "", "", exitUsage},
		"no variable":  {"", []string{"--from-env", "NONE"}, "", "", exitUsage},
		"two sources":  {"", []string{"--from-env", "TOKEN", "--from-file", file}, "", "", exitUsage},
		"as argument":  {"", []string{secretCanary}, "", "", exitUsage},
		"ref and file": {"", []string{"--ref", "env:A", "--from-file", file}, "", "", exitUsage},
	} {
		s.asked = nil
		code, out, errs := runCLI(t, s, c.stdin, env, append([]string{"secret", "set", "openai"}, c.args...)...)
		if code != c.code || strings.Contains(out+errs, secretCanary) {
			t.Errorf("%s: %d %q %q", name, code, out, errs)
		}
		req, _ := s.last().(*v1.SetSecretRequest)
		if c.code != 0 {
			if req != nil {
				t.Errorf("%s was sent", name)
			}
			continue
		}
		if req.GetValue() != c.value || req.GetReference() != c.ref || req.GetName() != "openai" || !strings.HasPrefix(out, "openai version 1") {
			t.Errorf("%s: %q, %q, %q", name, req.GetValue(), req.GetReference(), out)
		}
	}
}

func TestSecretAndBindingTables(t *testing.T) {
	s := &secretServer{}
	if code, out, errs := runCLI(t, s, "", nil, "secret", "ls"); code != 0 || !strings.Contains(out, "file:/run/vault") || !strings.Contains(out, "openai") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	if code, out, errs := runCLI(t, s, "", nil, "binding", "ls"); code != 0 || !strings.Contains(out, "https://api.example.com:8443 ") || !strings.Contains(out, "header X-Key") || !strings.Contains(out, "any") {
		t.Errorf("%d %q %q", code, out, errs)
	}
	code, out, errs := runCLI(t, s, "", nil, "binding", "add", "api", "--secret", "s", "--host", "api.example.com", "--path", "/v1", "--method", "GET", "--method", "post", "--as", "query", "--field", "key",
		"--tier", "user-kernel", "--port", "444", "--plain")
	req, _ := s.last().(*v1.AddBindingRequest)
	if code != 0 || out != "api version 1: http://api.binding.internal is https://api.example.com/v1\n" || req.GetPort() != 444 || !req.GetPlain() || strings.Join(req.GetMethods(), " ") != "GET post" ||
		req.GetAs() != "query" || req.GetField() != "key" || req.GetTier() != "user-kernel" || req.GetSecret() != "s" {
		t.Errorf("%d %q %q %v", code, out, errs, req)
	}
	for _, args := range [][]string{{"binding", "add", "api", "--secret", "s"}, {"binding", "add", "api", "--host", "h"}, {"binding", "add", "--secret", "s", "--host", "h"},
		{"binding", "add", "api", "--secret", "s", "--host", "h", "--port", "70000"}, {"binding", "rm"}, {"secret", "rm"}, {"secret", "set"}} {
		if code, _, errs := runCLI(t, s, "", nil, args...); code != exitUsage {
			t.Errorf("%q: %d %q", args, code, errs)
		}
	}
}

// TestNoOutputCarriesASecret: what commands print as JSON are the types below and what
// the API shows; none of them has a field for the value of a secret, and no type of
// this package holds a request that has one.
func TestNoOutputCarriesASecret(t *testing.T) {
	types := 0
	pkgs, err := parser.ParseDir(token.NewFileSet(), ".", func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
	if err != nil {
		t.Fatal(err)
	}
	for file, f := range pkgs["cli"].Files {
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "SetSecretRequest" {
				t.Errorf("%s names the request: client sends it", file)
			}
			st, ok := n.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range st.Fields.List {
				if field.Tag == nil {
					continue
				}
				types++
				tag := reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("json")
				if name, _, _ := strings.Cut(tag, ","); strings.Contains(name, "secret") {
					t.Errorf("%s prints a field %q", file, name)
				}
			}
			return true
		})
	}
	if types < 20 {
		t.Errorf("%d fields were looked at", types)
	}
	for _, m := range []any{&v1.Secret{}, &v1.Binding{}, &v1.ListSecretsResponse{}, &v1.ListBindingsResponse{}} {
		text, err := json.Marshal(m)
		if err != nil || strings.Contains(string(text), "value") {
			t.Errorf("%T: %s, %v", m, text, err)
		}
	}
}
