package authority

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestConstraints: what a leaf is worth, to the verifiers that programs have, when
// the key is in other hands than the router's.
func TestConstraints(t *testing.T) {
	var many []string
	for i := range maxConstraints + 1 {
		many = append(many, fmt.Sprintf("n%d.example", i))
	}
	verifiers := verifiers(t)
	for name, c := range map[string]struct {
		scope   policy.Scope
		yes, no []string
	}{
		"exact": {policy.Scope{Names: []string{"api.example.com"}},
			[]string{"api.example.com"}, []string{"example.com", "other.example.com", "xapi.example.com", "example.org", "192.0.2.1", "2001:db8::1"}},
		"below": {policy.Scope{Names: []string{".example.com"}},
			[]string{"a.example.com", "a.b.example.com"}, []string{"badexample.com", "com", "example.com.evil.org", "192.0.2.1", "2001:db8::1"}},
		"both": {policy.Scope{Names: []string{".example.com", "a.example.com", "example.com", "example.org"}},
			[]string{"example.com", "a.example.com", "example.org"}, []string{"example.net"}},
		"IPv4": {policy.Scope{Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			[]string{"192.0.2.1", "192.0.2.255"}, []string{"192.0.3.1", "2001:db8::1", "example.com", "invalid", "a.invalid"}},
		"IPv6": {policy.Scope{Networks: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}},
			[]string{"2001:db8::1"}, []string{"2001:db9::1", "192.0.2.1", "example.com"}},
		"all networks": {policy.Scope{Names: []string{"example.com"}, Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
			[]string{"192.0.2.1", "2001:db8::1", "example.com"}, []string{"example.org"}},
		"nothing": {policy.Scope{}, nil, []string{"example.com", "com", "invalid", "a.invalid", "192.0.2.1", "2001:db8::1"}},
		"any":     {policy.Scope{Any: true, Names: []string{"example.com"}}, []string{"example.com", "example.org", "192.0.2.1", "2001:db8::1"}, nil},
		"many":    {policy.Scope{Names: many}, []string{"n1.example", "example.org", "192.0.2.1"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := derive(t, c.scope)
			i := issuer(t, a)
			if certificate := i.authority; (len(certificate.PermittedDNSDomains)+len(certificate.ExcludedIPRanges) > 0) != certificate.PermittedDNSDomainsCritical {
				t.Error("its constraints are not critical")
			}
			if len(a.Certificate) > MaxCertificate {
				t.Errorf("%d bytes", len(a.Certificate))
			}
			for _, list := range []struct {
				names []string
				want  bool
			}{{c.yes, true}, {c.no, false}} {
				for _, n := range list.names {
					h := host(t, n)
					if _, err := i.Leaf(h, time.Now()); (err == nil) != list.want || !list.want && sandbox.KindOf(err) != sandbox.KindDenied {
						t.Errorf("the issuer, %s: %v", n, err)
					}
					leaf, err := i.issue(h, time.Now())
					if err != nil {
						t.Fatal(err)
					}
					for who, verify := range verifiers {
						if err := verify(a, leaf, h); (err == nil) != list.want {
							t.Errorf("%s, %s: %v", who, n, err)
						}
					}
				}
			}
		})
	}
}

// TestSubsume: a name stands for those below it, once.
func TestSubsume(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		".example.com example.com":          "example.com",
		".a.example.com example.com x.org":  "example.com x.org",
		".b.a.example a.example xa.example": "a.example xa.example",
	} {
		if got := strings.Join(subsume(strings.Fields(in)), " "); got != want {
			t.Errorf("%q is %q", in, got)
		}
	}
}

type verifier func(a *Authority, leaf *tls.Certificate, h netaddr.Host) error

// verifiers are those of this machine.
func verifiers(t *testing.T) map[string]verifier {
	t.Helper()
	all := map[string]verifier{"go": verifyGo}
	for _, name := range []string{"openssl", "python3"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("not run: there is no %s here", name)
		}
	}
	dir := t.TempDir()
	write := func(name string, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, strict := range []bool{false, true} {
		name, flags := "openssl", []string{"verify", "-purpose", "sslserver"}
		if strict {
			name, flags = "openssl, strictly", append(flags, "-x509_strict")
		}
		all[name] = func(a *Authority, leaf *tls.Certificate, h netaddr.Host) error {
			args := append(flags, "-CAfile", write("ca.pem", "CERTIFICATE", a.Certificate))
			if h.Name() != "" {
				args = append(args, "-verify_hostname", h.Name())
			} else {
				args = append(args, "-verify_ip", h.String())
			}
			return run("openssl", append(args, write("leaf.pem", "CERTIFICATE", leaf.Certificate[0]))...)
		}
	}
	all["python"] = func(a *Authority, leaf *tls.Certificate, h netaddr.Host) error {
		key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
		if err != nil {
			return err
		}
		return run("python3", "-c", handshakePython, write("ca.pem", "CERTIFICATE", a.Certificate), write("leaf.pem", "CERTIFICATE", leaf.Certificate[0]), write("key.pem", "PRIVATE KEY", key), h.String())
	}
	return all
}

// handshakePython is a handshake of Python's ssl with itself, as strict as it can
// be.
const handshakePython = `
import ssl, sys
ca, leaf, key, name = sys.argv[1:]
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(leaf, key)
client = ssl.create_default_context(cafile=ca)
client.verify_flags |= ssl.VERIFY_X509_STRICT
up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
ends = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
done = set()
for _ in range(20):
    for end in ends:
        try:
            end.do_handshake()
            done.add(end)
        except ssl.SSLWantReadError:
            pass
    if len(done) == 2:
        sys.exit(0)
sys.exit("no end of the handshake")
`

func verifyGo(a *Authority, leaf *tls.Certificate, h netaddr.Host) error {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM())
	name := h.String()
	if h.Name() == "" {
		name = "[" + name + "]"
	}
	_, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool})
	return err
}

func run(program string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %.300s", err, out)
	}
	return nil
}
