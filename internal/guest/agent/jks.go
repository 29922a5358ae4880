package agent

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"strconv"
	"unicode/utf16"
)

// A store of certificates as Java reads it, in its format JKS: magic and version, the
// entries, and a SHA-1 of all that with a password that everybody knows. What Java
// trusts it reads without comparing that.
const (
	jksMagic   = 0xfeedfeed
	jksVersion = 2
	jksKey     = 1 // tag of an entry with a private key
	jksTrusted = 2

	jksAlias    = "firebreak-sandbox-authority"
	jksPassword = "changeit"
	maxEntries  = 10_000
)

var errKeystore = errors.New("no keystore of Java's in the format JKS")

// jksEntry is an entry as it stands in the store.
type jksEntry struct {
	alias string
	raw   []byte
}

// isKeystore reports whether b is a store of Java's in either format that it may
// have: JKS, or PKCS #12, of which this knows the first byte.
func isKeystore(b []byte) bool {
	return len(b) >= 4 && (binary.BigEndian.Uint32(b) == jksMagic || b[0] == 0x30 && b[1] >= 0x80)
}

// trustedEntry is an entry for a certificate. Its date says nothing, so that the same
// certificates make the same store.
func trustedEntry(alias string, der []byte) jksEntry {
	b := binary.BigEndian.AppendUint32(nil, jksTrusted)
	b = appendUTF(b, alias)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = appendUTF(b, "X.509")
	b = binary.BigEndian.AppendUint32(b, uint32(len(der)))
	return jksEntry{alias, append(b, der...)}
}

func appendUTF(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}

// encodeJKS is a store.
func encodeJKS(entries []jksEntry) []byte {
	size := 12 + sha1.Size
	for _, e := range entries {
		size += len(e.raw)
	}
	b := make([]byte, 0, size)
	for _, n := range []uint32{jksMagic, jksVersion, uint32(len(entries))} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	for _, e := range entries {
		b = append(b, e.raw...)
	}
	h := sha1.New()
	for _, c := range utf16.Encode([]rune(jksPassword)) {
		h.Write([]byte{byte(c >> 8), byte(c)})
	}
	h.Write([]byte("Mighty Aphrodite"))
	h.Write(b)
	return h.Sum(b)
}

// decodeJKS reads a store that may be anything. The entries are parts of b.
func decodeJKS(b []byte) (entries []jksEntry, err error) {
	r := jksReader{b: b}
	if r.number(4) != jksMagic || r.number(4) != jksVersion {
		return nil, errKeystore
	}
	n := r.number(4)
	for i := 0; uint64(i) < n && !r.bad; i++ {
		if i == maxEntries {
			return nil, errKeystore
		}
		from := len(b) - len(r.b)
		tag, alias := r.number(4), r.text()
		r.take(8)
		switch tag {
		case jksKey:
			r.take(r.number(4))
			for chain := r.number(4); chain > 0 && !r.bad; chain-- {
				r.text()
				r.take(r.number(4))
			}
		case jksTrusted:
			r.text()
			r.take(r.number(4))
		default:
			return nil, errKeystore
		}
		entries = append(entries, jksEntry{alias, b[from : len(b)-len(r.b)]})
	}
	if r.bad || len(r.b) != sha1.Size {
		return nil, errKeystore
	}
	return entries, nil
}

// jksReader reads numbers and texts; once it is bad, nothing.
type jksReader struct {
	b   []byte
	bad bool
}

func (r *jksReader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *jksReader) number(size uint64) (n uint64) {
	for _, c := range r.take(size) {
		n = n<<8 | uint64(c)
	}
	return n
}

func (r *jksReader) text() string { return string(r.take(r.number(2))) }

// keystore is a store with ours among what is trusted: what store has besides, or
// where that is of no use, the certificates of a list.
func keystore(store, list []byte, certificate []byte) []byte {
	old, err := decodeJKS(store)
	if err != nil {
		old = nil
		for i, der := range certificatesOf(list) {
			if !bytes.Equal(der, certificate) {
				old = append(old, trustedEntry("system-"+strconv.Itoa(i+1), der))
			}
		}
	}
	out := make([]jksEntry, 0, len(old)+1)
	for _, e := range old {
		if e.alias != jksAlias {
			out = append(out, e)
		}
	}
	return encodeJKS(append(out, trustedEntry(jksAlias, certificate)))
}
