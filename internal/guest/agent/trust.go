package agent

import (
	"bytes"
	"encoding/pem"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What stands around our certificate in lists that are others', which skip it: by
// that it is found again.
const (
	trustBegin = "# Firebreak: the authority of this sandbox\n"
	trustEnd   = "# Firebreak: the end of it\n"
)

const (
	maxBundle = 8 << 20 // bytes of a list of certificates, or store of Java's, that is read
	maxJava   = 32      // directories of Java that are looked at
)

// trust does what the host wants, as far as the system can.
func (s *Server) trust(c guest.TrustCall) error {
	t, ok := s.sys.(Truster)
	if !ok {
		return sandbox.Errorf(string(guest.OpTrust), sandbox.KindUnsupported, "programs here trust nobody")
	}
	if !isHash(c.Link) || len(c.Java) > maxJava || len(certificatesOf([]byte(c.Certificate))) != 1 {
		return sandbox.Errorf(string(guest.OpTrust), sandbox.KindInvalid, "no certificate, or not all about it")
	}
	return t.Trust(c)
}

// isHash reports whether s is a hash as OpenSSL makes names of it.
func isHash(s string) bool {
	return len(s) == 8 && strings.Trim(s, "0123456789abcdef") == ""
}

// isBundle reports whether b is a list of certificates, or empty: what a name like
// theirs leads to may be anything.
func isBundle(b []byte) bool {
	return len(bytes.TrimSpace(b)) == 0 || bytes.Contains(b, []byte("-----BEGIN CERTIFICATE-----"))
}

// trusting is a list of certificates with ours at its end, once.
func trusting(list []byte, certificate string) []byte {
	list = distrusting(list)
	out := make([]byte, 0, len(list)+len(trustBegin)+len(certificate)+len(trustEnd)+2)
	out = append(out, list...)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	out = append(append(out, trustBegin...), certificate...)
	if out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return append(out, trustEnd...)
}

// distrusting is a list without what trusting added.
func distrusting(list []byte) []byte {
	for {
		before, rest, found := bytes.Cut(list, []byte(trustBegin))
		if !found {
			return list
		}
		if _, after, ended := bytes.Cut(rest, []byte(trustEnd)); ended {
			rest = after
		}
		list = append(bytes.Clone(before), rest...)
	}
}

// certificatesOf are those of a list, in DER.
func certificatesOf(list []byte) (all [][]byte) {
	for len(list) > 0 {
		var block *pem.Block
		if block, list = pem.Decode(list); block == nil {
			return all
		}
		if block.Type == "CERTIFICATE" {
			all = append(all, block.Bytes)
		}
	}
	return all
}
