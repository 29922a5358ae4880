// Package authority makes the certificate authority of one sandbox, and the
// certificates that the router shows its programs.
//
//	a, err := authority.Derive(seed, id, table.Scope(), time.Now())
//	os.Stdout.Write(a.PEM())                 // what the sandbox is to trust
//	i, err := authority.NewIssuer(a)         // in the router
//	certificate, err := i.Leaf(host, time.Now())
//
// The key comes from a seed and the sandbox's id, so that it is the same after a
// restart of the server without being written anywhere. What the authority may
// vouch for is in its certificate, as critical name constraints: it is worth
// nothing elsewhere, also to a program that has its key.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	// MinSeed is the shortest seed, in bytes.
	MinSeed = 32
	// MaxCertificate and MaxKey are the longest that Derive makes, in bytes.
	MaxCertificate = 128 << 10
	MaxKey         = 256

	organization = "Firebreak"
	before       = time.Hour // by which clocks may be behind
	lifetime     = 10 * 365 * 24 * time.Hour
)

// Authority is the authority of one sandbox. It prints as nothing, and crosses the
// router's socket in JSON, which is the one place where that is meant.
type Authority struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS #8 in DER; a secret
}

// Derive makes the authority of the sandbox with an id: the same seed and id make
// the same key and the same name, so that whoever trusts an earlier certificate
// trusts what the key of a later one has signed. It may vouch for the names and
// networks of s, and servers alone. Costs a third of a millisecond. Errors:
// KindInvalid for a seed that is too short, or no id.
func Derive(seed []byte, id string, s policy.Scope, now time.Time) (*Authority, error) {
	const op = "derive authority"
	if len(seed) < MinSeed || id == "" || len(id) > 64 {
		return nil, sandbox.Errorf(op, sandbox.KindInvalid, "an authority has a seed of %d bytes and an id", MinSeed).WithID(id)
	}
	key, err := deriveKey(seed, id)
	if err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInternal, "%w", err).WithID(id)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Firebreak sandbox CA " + id, Organization: []string{organization}},
		NotBefore:             now.Add(-before),
		NotAfter:              now.Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	constrain(template, s)
	if template.SerialNumber, err = serial(); err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInternal, "%w", err).WithID(id)
	}
	a := new(Authority)
	if a.Certificate, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err == nil {
		a.Key, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, sandbox.Errorf(op, sandbox.KindInternal, "%w", err).WithID(id)
	}
	return a, nil
}

// deriveKey draws numbers until one is a private key of P-256: of 2³² the first
// one that is drawn is, all but once.
func deriveKey(seed []byte, id string) (*ecdsa.PrivateKey, error) {
	for try := range 16 {
		number, err := hkdf.Key(sha256.New, seed, nil, fmt.Sprintf("firebreak sandbox authority 1\x00%s\x00%d", id, try), 32)
		if err != nil {
			return nil, err
		}
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), number)
		clear(number)
		if err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("no number of sixteen is a key") // once in 2⁵¹²
}

// serial is a number that nobody guesses, positive and of at most 16 bytes.
func serial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, err
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// PEM is the certificate as programs read it.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate})
}

// Clone is a copy with a key of its own; of nil nil.
func (a *Authority) Clone() *Authority {
	if a == nil {
		return nil
	}
	return &Authority{Certificate: slices.Clone(a.Certificate), Key: slices.Clone(a.Key)}
}

// Wipe overwrites the key. Idempotent; of nil nothing.
func (a *Authority) Wipe() {
	if a != nil {
		clear(a.Key)
	}
}

// Format implements fmt.Formatter.
func (*Authority) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

// LogValue implements slog.LogValuer.
func (*Authority) LogValue() slog.Value { return slog.StringValue("[redacted]") }
