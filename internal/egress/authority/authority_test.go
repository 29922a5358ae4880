package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var seed = bytes.Repeat([]byte{7}, MinSeed)

func derive(t testing.TB, s policy.Scope) *Authority {
	t.Helper()
	a, err := Derive(seed, "sb0123456789abcdefghij", s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issuer(t testing.TB, a *Authority) *Issuer {
	t.Helper()
	i, err := NewIssuer(a)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func host(t testing.TB, s string) netaddr.Host {
	t.Helper()
	h, err := netaddr.ParseHost(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestDerive: the key is the seed's and the sandbox's alone, whatever it is for,
// and a certificate of before vouches for what a later one has issued.
func TestDerive(t *testing.T) {
	now := time.Now()
	first, err := Derive(seed, "sb1", policy.Scope{Names: []string{"a.example", "b.example"}}, now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Derive(seed, "sb1", policy.Scope{Names: []string{"a.example"}}, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Key, again.Key) || bytes.Equal(first.Certificate, again.Certificate) {
		t.Error("another key, or the same certificate")
	}
	for _, o := range []struct {
		seed []byte
		id   string
	}{{seed, "sb2"}, {bytes.Repeat([]byte{8}, MinSeed), "sb1"}, {append(bytes.Clone(seed), 0), "sb1"}, {seed, "sb1\x000"}} {
		a, err := Derive(o.seed, o.id, policy.Scope{}, now)
		if err != nil || bytes.Equal(a.Key, first.Key) {
			t.Errorf("%x %q has the same key, or none: %v", o.seed, o.id, err)
		}
	}
	leaf, err := issuer(t, again).Leaf(host(t, "a.example"), now)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(first.PEM())
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{DNSName: "a.example", Roots: pool, CurrentTime: now}); err != nil {
		t.Errorf("who trusts an earlier certificate: %v", err)
	}
	for _, bad := range []struct {
		seed []byte
		id   string
	}{{seed[1:], "sb1"}, {nil, "sb1"}, {seed, ""}, {seed, strings.Repeat("a", 65)}} {
		if a, err := Derive(bad.seed, bad.id, policy.Scope{}, now); sandbox.KindOf(err) != sandbox.KindInvalid || a != nil {
			t.Errorf("%d bytes for %q: %v", len(bad.seed), bad.id, err)
		}
	}
}

// TestDeriveKey: what is drawn is a key of the curve, and the one that it was when
// this was written: sandboxes live longer than versions.
func TestDeriveKey(t *testing.T) {
	n := elliptic.P256().Params().N
	for i := range 200 {
		key, err := deriveKey(seed, fmt.Sprint("sb", i))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := key.Bytes()
		if d := new(big.Int).SetBytes(raw); err != nil || d.Sign() == 0 || d.Cmp(n) >= 0 {
			t.Fatalf("%d: %v", i, err)
		}
	}
	key, err := deriveKey(seed, "sb0123456789abcdefghij")
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	const want = "04d4a4eea88534a6c9bb76c1d95f7b434d0ce7b35bc1bc886addae5af8ebe4f9c4807bbef3ba9623d66d8a59a244c20cbc1b09fa0107e1ac708af4bbbc14004b00"
	if got := fmt.Sprintf("%x", public); got != want {
		t.Errorf("the key of the fixed seed is %s", got)
	}
}

// TestAuthority: the certificate is one that strict programs take, and nobody is
// told the key.
func TestAuthority(t *testing.T) {
	a := derive(t, policy.Scope{Names: []string{".example.com", "example.org"}, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	c, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if !c.IsCA || !c.BasicConstraintsValid || !c.MaxPathLenZero || c.KeyUsage != x509.KeyUsageCertSign || !c.PermittedDNSDomainsCritical ||
		len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || len(c.SubjectKeyId) == 0 ||
		c.Subject.CommonName != "Firebreak sandbox CA sb0123456789abcdefghij" || c.SignatureAlgorithm != x509.ECDSAWithSHA256 ||
		time.Since(c.NotBefore) < 59*time.Minute || time.Until(c.NotAfter) < 3649*24*time.Hour || c.SerialNumber.BitLen() != 127 {
		t.Errorf("%+v", c)
	}
	if len(a.Certificate) > MaxCertificate || len(a.Key) > MaxKey {
		t.Errorf("%d and %d bytes", len(a.Certificate), len(a.Key))
	}
	secret := fmt.Sprintf("%x", a.Key)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("made", "authority", a)
	for _, said := range []string{fmt.Sprintf("%v %+v %#v %s %x", a, a, a, a, a), log.String(), string(a.PEM())} {
		if strings.Contains(said, secret) || strings.Contains(said, string(a.Key)) || strings.Contains(said, "key\"") {
			t.Errorf("it prints its key: %.200q", said)
		}
	}
	if b, err := json.Marshal(a); err != nil || !bytes.Contains(b, []byte(`"key"`)) {
		t.Errorf("it does not cross a socket: %s %v", b, err)
	}
	other := a.Clone()
	a.Wipe()
	if len(bytes.Trim(a.Key, "\x00")) > 0 || bytes.Equal(a.Key, other.Key) {
		t.Error("the key is still there, or its copy is not")
	}
	(*Authority)(nil).Wipe()
	if (*Authority)(nil).Clone() != nil {
		t.Error("a copy of nothing")
	}
}

// TestNewIssuer: what is no authority issues nothing.
func TestNewIssuer(t *testing.T) {
	a, b := derive(t, policy.Scope{Any: true}), derive(t, policy.Scope{Any: true})
	other, err := Derive(seed, "another", policy.Scope{Any: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issuer(t, a).Leaf(host(t, "a.example"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leafKey, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]*Authority{
		"nothing":          nil,
		"empty":            {},
		"no certificate":   {Key: a.Key},
		"no key":           {Certificate: a.Certificate},
		"another's key":    {Certificate: a.Certificate, Key: other.Key},
		"a leaf":           {Certificate: leaf.Certificate[0], Key: leafKey},
		"half":             {Certificate: b.Certificate[:len(b.Certificate)/2], Key: b.Key},
		"something behind": {Certificate: append(bytes.Clone(b.Certificate), 0), Key: b.Key},
		"long":             {Certificate: make([]byte, MaxCertificate+1), Key: b.Key},
	} {
		if i, err := NewIssuer(bad); sandbox.KindOf(err) != sandbox.KindInvalid || i != nil {
			t.Errorf("%s: %v", name, err)
		} else if bad != nil && len(bad.Key) > 0 && strings.Contains(err.Error(), string(bad.Key)) {
			t.Errorf("%s: the error quotes the key", name)
		}
	}
}

// TestLeaf: what a leaf says, how long it is used, and how many are kept.
func TestLeaf(t *testing.T) {
	now := time.Now()
	i := issuer(t, derive(t, policy.Scope{Any: true}))
	c, err := i.Leaf(host(t, "a.example"), now)
	if err != nil {
		t.Fatal(err)
	}
	l := c.Leaf
	if len(l.DNSNames) != 1 || l.DNSNames[0] != "a.example" || len(l.IPAddresses) != 0 || l.Subject.CommonName != "" || len(l.Subject.Organization) != 1 ||
		l.IsCA || l.KeyUsage != x509.KeyUsageDigitalSignature || len(l.ExtKeyUsage) != 1 || l.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth ||
		!bytes.Equal(l.AuthorityKeyId, i.authority.SubjectKeyId) || l.SerialNumber.BitLen() != 127 || len(c.Certificate) != 1 ||
		l.NotAfter.Sub(l.NotBefore) > 7*24*time.Hour+2*time.Hour || !l.NotBefore.Before(now.Add(-30*time.Minute)) {
		t.Errorf("%+v", l)
	}
	for name, want := range map[string]bool{"192.0.2.1": true, "2001:db8::1": true} {
		c, err := i.Leaf(host(t, name), now)
		if err != nil || (len(c.Leaf.IPAddresses) == 1 && c.Leaf.IPAddresses[0].String() == name) != want || len(c.Leaf.DNSNames) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	again, err := i.Leaf(host(t, "a.example"), now.Add(23*time.Hour))
	if err != nil || again != c {
		t.Errorf("within a day: another one, %v", err)
	}
	for _, at := range []time.Duration{25 * time.Hour, -2 * time.Hour} { // the clock may be set back
		next, err := i.Leaf(host(t, "a.example"), now.Add(at))
		if err != nil || next == again || next.Leaf.SerialNumber.Cmp(l.SerialNumber) == 0 || next.PrivateKey != c.PrivateKey {
			t.Errorf("after %v: the same one, %v", at, err)
		}
	}
	late, err := i.Leaf(host(t, "a.example"), i.authority.NotAfter.Add(-time.Hour))
	if err != nil || late.Leaf.NotAfter.After(i.authority.NotAfter) {
		t.Errorf("it outlives its authority: %v", err)
	}
	for n := range 3 * maxLeaves {
		if _, err := i.Leaf(host(t, fmt.Sprintf("n%d.example", n)), now); err != nil {
			t.Fatal(err)
		}
		if len(i.leaves) > maxLeaves {
			t.Fatalf("%d are kept", len(i.leaves))
		}
	}
	if _, err := i.Leaf(netaddr.Host{}, now); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("for nobody: %v", err)
	}
}

// TestLeafServes: Go's TLS shows a leaf, and takes it.
func TestLeafServes(t *testing.T) {
	a := derive(t, policy.Scope{Names: []string{"a.example"}})
	i := issuer(t, a)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.PEM())
	if err := handshake(t, i, pool, "a.example"); err != nil {
		t.Error(err)
	}
	if err := handshake(t, i, x509.NewCertPool(), "a.example"); err == nil {
		t.Error("a program that does not trust the authority trusts its leaf")
	}
}

func BenchmarkLeaf(b *testing.B) {
	i := issuer(b, derive(b, policy.Scope{Any: true}))
	h := host(b, "a.example")
	for b.Loop() {
		if _, err := i.issue(h, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDerive(b *testing.B) {
	for b.Loop() {
		derive(b, policy.Scope{Names: []string{"a.example"}})
	}
}

// handshake is a connection to name through i by a program that trusts pool.
func handshake(t *testing.T, i *Issuer, pool *x509.CertPool, name string) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		n, err := netaddr.ParseHost(h.ServerName)
		if err != nil {
			return nil, err
		}
		return i.Leaf(n, time.Now())
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c, err := l.Accept(); err == nil {
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, ServerName: name})
	if err == nil {
		c.Close()
	}
	<-served
	return err
}
