package authority

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/policy"
)

// TestSubjectHash: the hash is OpenSSL's, of our certificates and of others.
func TestSubjectHash(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("not run: there is no openssl here")
	}
	path := filepath.Join(t.TempDir(), "c.pem")
	hash := func(der []byte) string {
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("openssl", "x509", "-hash", "-noout", "-in", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	for _, id := range []string{"sb0123456789abcdefghij", "in-00112233", "A", strings.Repeat("z", 43)} { // longer ones together are no name of X.509's
		a, err := Derive(seed, id, policy.Scope{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := SubjectHash(a.PEM()); err != nil || got != hash(a.Certificate) {
			t.Errorf("%s: %s, %v; OpenSSL says %s", id, got, err, hash(a.Certificate))
		}
	}
	i := issuer(t, derive(t, policy.Scope{Any: true}))
	for _, s := range []pkix.Name{
		{CommonName: "  Two  Words ", Organization: []string{"Ärger & Söhne", "B"}, Country: []string{"DE"}},
		{CommonName: "*.example.com", SerialNumber: "007", OrganizationalUnit: []string{"a\tb"}},
	} {
		template := &x509.Certificate{Subject: s, SerialNumber: i.authority.SerialNumber, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(nil, template, template, i.signer.Public(), i.signer)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := SubjectHash((&Authority{Certificate: der}).PEM()); err != nil || got != hash(der) {
			t.Errorf("%v: %s, %v; OpenSSL says %s", s, got, err, hash(der))
		}
	}
	if got, err := SubjectHash([]byte("none")); err == nil {
		t.Errorf("of nothing: %s", got)
	}
}
