package e2b

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/test/internet"
)

// telltale is a site that tells whoever asks all that it was sent.
type telltale struct {
	mu  sync.Mutex
	got []string // guarded by mu; "PATH Authorization X-Vendor X-Api-Key X-Literal" of each
}

func (t *telltale) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := r.Header
	t.got = append(t.got, strings.Join(strings.Fields(fmt.Sprint(r.URL.Path, " ", h.Get("Authorization"), " ", h.Get("X-Vendor"), " ", h.Get("X-Api-Key"), " ", h.Get("X-Literal"))), " "))
	fmt.Fprintf(w, "reached %s\n", r.URL.Path)
	_ = h.Write(w)
	_, _ = io.Copy(w, r.Body)
}

// TestSecrets drives the secrets of the published SDKs, and the rules that set headers:
// what they name is in what a host is sent, and nowhere in the sandbox and in what the
// server answers, logs and keeps.
func TestSecrets(t *testing.T) {
	for name, client := range map[string]func(*server, *testing.T) []string{
		"js":     func(s *server, t *testing.T) []string { return s.node(t, "headers.mjs") },
		"python": func(s *server, t *testing.T) []string { return s.python(t, "headers.py") },
	} {
		t.Run(name, func(t *testing.T) {
			n := internet.New(t)
			site := new(telltale)
			n.Site("api.example", site)
			n.Site("second.example", site)
			tr := n.Transport()
			defer tr.CloseIdleConnections()
			s := serveIn(t, place{begin: n.Start, transport: tr, env: []string{"SSL_CERT_FILE=" + n.Authority.File}})
			s.networked()
			s.also = []string{"DEVELOPER_KEY=" + s.key}
			s.key = s.newKey("--role", "admin")
			s.steps(t, client(s, t)...)
			const one, two, literal = "sk-e2b-one-51c0a7", "sk-e2b-two-99bd21", "literal-t0ken-77aa10"
			want := []string{"/one Bearer " + one + " " + literal + " " + literal, "/two Bearer " + two + " " + literal + " " + literal, "/three x-second-value", "/four", "/five x-second-value"}
			site.mu.Lock()
			defer site.mu.Unlock()
			if !slices.Equal(site.got, want) {
				t.Errorf("the sites were sent\n%s", strings.Join(site.got, "\n"))
			}
			s.stop()
			err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/libexec/") || strings.Contains(path, "/templates/") || strings.HasPrefix(path, s.dir+"/js/") {
					return nil
				}
				b, err := os.ReadFile(path)
				if err != nil {
					return nil
				}
				for _, secret := range []string{one, two, literal, "x-second-value"} {
					if strings.Contains(string(b), secret) {
						t.Errorf("%s has %s", path, secret)
					}
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}
