package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash/crc32"
	"strings"

	"github.com/firebreak-dev/firebreak/sandbox"
)

const (
	prefix    = "fb_"
	idLen     = 10
	secretLen = 32
	sumLen    = 6
	tokenLen  = len(prefix) + idLen + 1 + secretLen + 1 + sumLen

	base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	base16 = "0123456789abcdef"
	base32 = "abcdefghijklmnopqrstuvwxyz234567" // of ids: they stand in paths and are read aloud
)

// NewKey returns a fresh random token, its public id, and the hash to keep.
func NewKey() (token, id string, hash [32]byte) {
	id, secret := random(idLen, base32), random(secretLen, base62)
	return join(id, secret), id, Hash(secret)
}

// The spelling that E2B's clients demand of a key: a prefix and hexadecimal
// digits. Such a key works wherever any other does.
const (
	e2bPrefix   = "e2b_"
	e2bIDLen    = 12 // no other key's id has as many characters
	e2bTokenLen = len(e2bPrefix) + 40
)

// NewE2BKey is NewKey for a key that E2B's clients accept. Its secret has 112 bits.
func NewE2BKey() (token, id string, hash [32]byte) {
	b := make([]byte, 20)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	digits := hex.EncodeToString(b)
	return e2bPrefix + digits, digits[:e2bIDLen], Hash(digits[e2bIDLen:])
}

// join is the inverse of Parse.
func join(id, secret string) string {
	head := prefix + id + "_" + secret
	return head + "_" + checksum(head)
}

// Parse splits a token into its id and its secret. It needs no store and
// rejects whatever was not made by NewKey, up to one mistyped token in four
// thousand million; of NewE2BKey's, which have no checksum, only the form is
// checked. Errors: KindUnauthenticated.
//
// Cost: under a microsecond.
func Parse(token string) (id, secret string, err error) {
	if digits, ok := strings.CutPrefix(token, e2bPrefix); ok && len(token) == e2bTokenLen && only(digits, base16) {
		return digits[:e2bIDLen], digits[e2bIDLen:], nil
	}
	const idEnd, secretEnd = len(prefix) + idLen, tokenLen - sumLen - 1
	if len(token) != tokenLen || token[:len(prefix)] != prefix || token[idEnd] != '_' || token[secretEnd] != '_' ||
		!only(token[len(prefix):idEnd], base32) || !only(token[idEnd+1:secretEnd], base62) ||
		token[secretEnd+1:] != checksum(token[:secretEnd]) {
		return "", "", sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "malformed API key").
			WithHint("a key begins with fb_ and has %d characters; check that it was copied whole", tokenLen)
	}
	return token[len(prefix):idEnd], token[idEnd+1 : secretEnd], nil
}

// Hash is what is kept of a secret.
func Hash(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }

// same compares two hashes in constant time.
func same(a, b [32]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

func checksum(s string) string {
	n := crc32.ChecksumIEEE([]byte(s))
	var b [sumLen]byte
	for i := sumLen - 1; i >= 0; i-- {
		b[i] = base62[n%62]
		n /= 62
	}
	return string(b[:])
}

func only(s, alphabet string) bool {
	for i := range len(s) {
		if strings.IndexByte(alphabet, s[i]) < 0 {
			return false
		}
	}
	return true
}

// random draws n characters of alphabet, each as likely as any other.
func random(n int, alphabet string) string {
	// Bytes that do not divide evenly are drawn again.
	limit := 256 - 256%len(alphabet)
	out, buf := make([]byte, 0, n), make([]byte, 2*n)
	for len(out) < n {
		rand.Read(buf) // never fails (crypto/rand, Go 1.24)
		for _, b := range buf {
			if int(b) < limit && len(out) < n {
				out = append(out, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	return string(out)
}
