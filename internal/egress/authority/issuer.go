package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/netaddr"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	leafLifetime = 7 * 24 * time.Hour
	leafRenew    = 24 * time.Hour // after which another one is made
	maxLeaves    = 512            // that are kept
)

// Issuer makes certificates for hosts. All methods may be called at once.
type Issuer struct {
	authority *x509.Certificate
	signer    crypto.Signer
	key       *ecdsa.PrivateKey // of all leaves

	mu     sync.Mutex
	leaves map[netaddr.Host]*tls.Certificate // guarded by mu; at most maxLeaves
}

// NewIssuer makes an issuer with a key of its own for what it issues; it keeps
// nothing of a. Errors: KindInvalid for what Derive did not make.
func NewIssuer(a *Authority) (*Issuer, error) {
	const op = "authority"
	if a == nil || len(a.Certificate) > MaxCertificate || len(a.Key) > MaxKey {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "no authority, or one that is too long")
	}
	certificate, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "the certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(a.Key)
	if err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "the key is none") // what the error says may quote it
	}
	signer, ok := parsed.(*ecdsa.PrivateKey)
	if public, same := certificate.PublicKey.(*ecdsa.PublicKey); !ok || !same || !signer.PublicKey.Equal(public) || !certificate.IsCA {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "the certificate is not the key's, or no authority's")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInternal, "%w", err)
	}
	return &Issuer{authority: certificate, signer: signer, key: key, leaves: map[netaddr.Host]*tls.Certificate{}}, nil
}

// Leaf is a certificate for a host, of the last day. Making one takes a tenth of a
// millisecond. Errors: KindDenied for a host that the authority may not vouch for,
// which no program would believe.
func (i *Issuer) Leaf(h netaddr.Host, now time.Time) (*tls.Certificate, error) {
	const op = "issue certificate"
	if !permits(i.authority, h) {
		return nil, sandbox.Errorf(op, sandbox.KindDenied, "the sandbox's authority is not for %s", h)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if c := i.leaves[h]; c != nil {
		if age := now.Sub(c.Leaf.NotBefore.Add(before)); -before < age && age < leafRenew {
			return c, nil
		}
	}
	c, err := i.issue(h, now)
	if err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInternal, "%w", err)
	}
	if len(i.leaves) >= maxLeaves {
		clear(i.leaves) // a sandbox that asks for so many pays for those it asks for again
	}
	i.leaves[h] = c
	return c, nil
}

// issue makes a certificate for a host, whatever the authority may vouch for.
func (i *Issuer) issue(h netaddr.Host, now time.Time) (*tls.Certificate, error) {
	number, err := serial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          number,
		Subject:               pkix.Name{Organization: []string{organization}}, // not empty: some programs want to show one
		NotBefore:             now.Add(-before),
		NotAfter:              now.Add(leafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if name := h.Name(); name != "" {
		template.DNSNames = []string{name}
	} else {
		template.IPAddresses = []net.IP{h.Addr().AsSlice()}
	}
	if template.NotAfter.After(i.authority.NotAfter) {
		template.NotAfter = i.authority.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.authority, i.key.Public(), i.signer)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: i.key, Leaf: leaf}, nil
}
