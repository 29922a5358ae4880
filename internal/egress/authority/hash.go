package authority

import (
	"crypto/sha1"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// SubjectHash is what OpenSSL calls a certificate in a directory of those it trusts:
// the first bytes of a hash of its subject in a canonical form, in which strings are
// UTF-8, of lower case, and have no more spaces than they need. The certificate is in
// PEM. Errors: KindInvalid for what is none.
func SubjectHash(certificate []byte) (string, error) {
	const op = "hash subject"
	block, _ := pem.Decode(certificate)
	if block == nil {
		return "", sandbox.Errorf(op, sandbox.KindInvalid, "no certificate in PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", sandbox.Errorf(op, sandbox.KindInvalid, "%w", err)
	}
	return subjectHash(c.RawSubject)
}

func subjectHash(subject []byte) (string, error) {
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	type canonical struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	var parts []asn1.RawValue
	if _, err := asn1.Unmarshal(subject, &parts); err != nil {
		return "", sandbox.Errorf("hash subject", sandbox.KindInvalid, "%w", err)
	}
	h := sha1.New()
	for _, part := range parts { // without the head of the sequence that they are
		var in []attribute
		if _, err := asn1.UnmarshalWithParams(part.FullBytes, &in, "set"); err != nil {
			return "", sandbox.Errorf("hash subject", sandbox.KindInvalid, "%w", err)
		}
		var out []canonical
		for _, x := range in {
			out = append(out, canonical{x.Type, strings.Join(strings.Fields(lower(string(x.Value.Bytes))), " ")})
		}
		b, err := asn1.MarshalWithParams(out, "set")
		if err != nil {
			return "", sandbox.Errorf("hash subject", sandbox.KindInvalid, "%w", err)
		}
		h.Write(b)
	}
	return fmt.Sprintf("%08x", binary.LittleEndian.Uint32(h.Sum(nil))), nil
}

// lower is s with the letters of ASCII in lower case.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
