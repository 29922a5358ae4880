//go:build linux

package control

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/egress"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const theSecret = "sk-the-secret-of-the-binding"

// ask makes a request through a binding and returns the answer's body.
func (p *place) ask(name string) (string, error) {
	c, err := p.connect(name+".binding.internal", "80", 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /v1/x HTTP/1.1\r\nHost: %s.binding.internal\r\nConnection: close\r\n\r\n", name)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(resp.Body)
	return fmt.Sprint(resp.StatusCode, " ", string(b)), err
}

// TestBindings: a router in its cage serves bindings, and trusts whom its keeper
// does; so does the one that follows it. After the wire no secret is left here.
func TestBindings(t *testing.T) {
	host := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, " ", r.Header.Get("Authorization") == "Bearer "+theSecret, " ", r.Header.Get("Authorization"))
	}))
	host.EnableHTTP2 = true
	host.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	host.StartTLS()
	defer host.Close()
	defer host.CloseClientConnections()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw}), 0o600)) // not readable for the router
	t.Setenv("SSL_CERT_FILE", ca)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	p := newPlace(t)
	k, j := startKeeper(t, func(o *Options) { o.Hosts = hostsFile(t, "127.0.0.1 example.com\n") })
	port := uint16(host.Listener.Addr().(*net.TCPAddr).Port)
	mine := []egress.Binding{{Name: "api", Host: "example.com", Port: port, Path: "/v1", As: "bearer", Secret: egress.Hidden(theSecret)}}
	must(t, k.Attach(t.Context(), Wire{ID: "in1", Policies: Policies{Documents: [][]byte{[]byte("allow: []\n")}}, Bindings: mine}, p.tap))
	clear(mine[0].Secret) // the caller's again
	want := fmt.Sprintf("200 example.com:%d true Bearer %s", port, strings.Repeat("*", len(theSecret)))
	if got, err := p.ask("api"); err != nil || got != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
	eventually(t, "the request is recorded", func() bool {
		return j.count(func(e egress.Event) bool {
			return e.Wire == "in1" && e.Kind == egress.KindRequest && e.Decision == egress.Allow && e.Binding == "api" && e.Method == "GET" && e.Host == "example.com"
		}) == 1
	})
	was := router(t, k)
	must(t, syscall.Kill(was, syscall.SIGKILL))
	eventually(t, "the next router serves the binding", func() bool {
		got, err := p.ask("api")
		return err == nil && got == want
	})
	if _, _, err := k.Update(t.Context(), "in1", Policies{Documents: [][]byte{[]byte("allow: []\ndeny: [example.com]\n")}}); err != nil {
		t.Error(err)
	}
	if got, err := p.ask("api"); err != nil || !strings.HasPrefix(got, "403 ") {
		t.Errorf("%q, %v", got, err)
	}
	k.mu.Lock()
	kept := k.wires["in1"].bindings
	k.mu.Unlock()
	must(t, k.Detach(t.Context(), "in1"))
	if len(kept) != 1 || strings.Trim(string(kept[0].Secret), "\x00") != "" {
		t.Error("the keeper still has the secret")
	}
}

// TestBindingsAreBounded: bindings that are too many, too long or none are refused
// by who asks for them first.
func TestBindingsAreBounded(t *testing.T) {
	p := newPlace(t)
	k, _ := startKeeper(t, nil)
	one := egress.Binding{Name: "api", Host: "good.example", Port: 443, Path: "/", As: "bearer", Secret: egress.Hidden("x")}
	change := func(f func(*egress.Binding)) []egress.Binding {
		b := one
		f(&b)
		return []egress.Binding{b}
	}
	for name, c := range map[string]struct {
		bindings []egress.Binding
		kind     sandbox.Kind
	}{
		"many":    {make([]egress.Binding, 33), sandbox.KindTooLarge},
		"long":    {change(func(b *egress.Binding) { b.Secret = make(egress.Hidden, 64<<10+1) }), sandbox.KindTooLarge},
		"path":    {change(func(b *egress.Binding) { b.Path = "/" + strings.Repeat("x", 5000) }), sandbox.KindTooLarge},
		"methods": {change(func(b *egress.Binding) { b.Methods = make([]string, 17) }), sandbox.KindTooLarge},
		"none":    {change(func(b *egress.Binding) { b.As = "" }), sandbox.KindInvalid},
		"refs":    {change(func(b *egress.Binding) { b.Git = &egress.Git{Repo: "a", Push: make([]string, 100)} }), sandbox.KindTooLarge},
		"git":     {change(func(b *egress.Binding) { b.Git = &egress.Git{Repo: "a"} }), sandbox.KindInvalid},
	} {
		if err := k.Attach(t.Context(), Wire{ID: "in1", Policies: rules("443", ""), Bindings: c.bindings}, p.tap); sandbox.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		}
	}
	var many []egress.Binding
	for i := range 32 {
		b := one
		b.Name, b.Secret = fmt.Sprint("api", i), egress.Hidden(strings.Repeat("s", 2<<10))
		many = append(many, b)
	}
	must(t, k.Attach(t.Context(), Wire{ID: "in1", Policies: rules("443", ""), Bindings: many}, p.tap))
}

// TestRoots: the certificates of a file and of directories, and nothing else that
// is in them.
func TestRoots(t *testing.T) {
	host := httptest.NewTLSServer(nil)
	defer host.Close()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("a key")})
	dir, none := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "both.pem"), append(append(key, cert...), key...), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "junk"), []byte("junk"), 0o600))
	for _, c := range []struct {
		file, dir string
		want      bool
	}{{filepath.Join(dir, "both.pem"), none, true}, {filepath.Join(none, "x"), dir, true}, {filepath.Join(dir, "both.pem"), none + ":" + dir, true}, {filepath.Join(none, "x"), none, false}} {
		t.Setenv("SSL_CERT_FILE", c.file)
		t.Setenv("SSL_CERT_DIR", c.dir)
		got := roots(quiet)
		if strings.Contains(string(got), "KEY") || strings.Count(string(got), "BEGIN") > 1 || x509.NewCertPool().AppendCertsFromPEM(got) != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// TestSecretsDoNotPrint: a binding in a log or an error is not its secret.
func TestSecretsDoNotPrint(t *testing.T) {
	b := egress.Binding{Name: "api", Secret: egress.Hidden(theSecret)}
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, x := range []any{b, &b, []egress.Binding{b}, wire{Bindings: []egress.Binding{b}}, b.Secret, errors.Join(fmt.Errorf("%v", b))} {
			if s := fmt.Sprintf(f, x); strings.Contains(s, "sk-the") || strings.Contains(strings.ToLower(s), "736b2d") || strings.Contains(s, "115 107") || strings.Contains(s, "0x73") {
				t.Errorf("%s: %s", f, s)
			}
		}
	}
}
