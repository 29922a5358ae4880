package inspect

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

const (
	// shortest is the length of what is looked for: shorter secrets are in
	// everything.
	shortest = 8
	// block is how much of a long secret is looked for at once, so that a part of it
	// is found too and nothing has to be held back for long.
	block = 64
)

// secrets finds the secrets of one wire, and what they look like encoded. It does
// not change until it is wiped; all methods may be called at once.
type secrets struct {
	patterns [][]byte          // sorted, none twice
	shorter  []int             // by pattern: the longest other one that it begins with; -1: none
	from     map[uint64][2]int // by the first eight bytes: which of patterns, from and until
	filter   [1 << 16 / 64]uint64
	initial  [256]bool // bytes patterns begin with
	longest  int
	stands   *secrets // those of them that only stand for secrets; nil: none
}

// newSecrets looks for each of texts.
func newSecrets(texts [][]byte) *secrets {
	s := &secrets{from: map[uint64][2]int{}}
	for _, t := range texts {
		if len(t) < shortest {
			continue
		}
		for len(t) > block {
			s.add(t[:block])
			t = t[min(len(t)-block, block-2):] // base64 of a block lacks its edges
		}
		s.add(t)
	}
	slices.SortFunc(s.patterns, bytes.Compare)
	s.patterns = slices.CompactFunc(s.patterns, bytes.Equal)
	for i, p := range s.patterns {
		k := binary.BigEndian.Uint64(p)
		r, ok := s.from[k]
		if !ok {
			r[0] = i
		}
		s.from[k] = [2]int{r[0], i + 1}
		h := hash(uint32(k >> 32))
		s.filter[h/64] |= 1 << (h % 64)
		s.initial[p[0]] = true
		s.longest = max(s.longest, len(p))
		// Sorted, what p begins with is before it, with nothing between but what begins
		// so too.
		before := i - 1
		for before >= 0 && !bytes.HasPrefix(p, s.patterns[before]) {
			before = s.shorter[before]
		}
		s.shorter = append(s.shorter, before)
	}
	return s
}

// add adds what a text can look like.
func (s *secrets) add(t []byte) {
	add := func(b []byte) {
		if len(b) >= shortest {
			s.patterns = append(s.patterns, bytes.Clone(b))
		}
	}
	add(t)
	lower := []byte(hex.EncodeToString(t))
	add(lower)
	add(bytes.ToUpper(lower))
	for offset := range 3 { // of the secret in what is encoded
		whole := append(make([]byte, offset, offset+len(t)), t...)
		from, until := (offset*8+5)/6, len(whole)*8/6 // what the secret alone makes
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			add([]byte(e.EncodeToString(whole))[from:until])
		}
		clear(whole)
	}
	q := url.QueryEscape(string(t))
	p := strings.ReplaceAll(q, "+", "%20")
	all := &strings.Builder{}
	for _, c := range t {
		fmt.Fprintf(all, "%%%02X", c)
	}
	for _, e := range []string{q, p, url.PathEscape(string(t)), all.String()} {
		add([]byte(e))
		add(lowerEscapes(e))
	}
	if j, err := json.Marshal(string(t)); err == nil {
		add(j[1 : len(j)-1])
	}
	add(bytes.ReplaceAll(bytes.ReplaceAll(t, []byte(`\`), []byte(`\\`)), []byte(`"`), []byte(`\"`)))
}

// lowerEscapes is s with %2f for %2F.
func lowerEscapes(s string) []byte {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
			i += 2
		}
	}
	return b
}

func hash(v uint32) uint32 { return v * 2654435761 >> 16 }

// at is the length of the longest pattern that b begins with; 0: none.
func (s *secrets) at(b []byte) int {
	if len(b) < shortest {
		return 0
	}
	h := hash(binary.BigEndian.Uint32(b))
	if s.filter[h/64]>>(h%64)&1 == 0 {
		return 0
	}
	r, ok := s.from[binary.BigEndian.Uint64(b)]
	if !ok {
		return 0
	}
	if len(b) > s.longest {
		b = b[:s.longest]
	}
	i, same := slices.BinarySearchFunc(s.patterns[r[0]:r[1]], b, bytes.Compare)
	if i += r[0]; !same {
		i-- // what b begins with is before it, as above
	}
	for i >= r[0] {
		if bytes.HasPrefix(b, s.patterns[i]) {
			return len(s.patterns[i])
		}
		i = s.shorter[i]
	}
	return 0
}

// begins reports whether all of b, which is shorter than some pattern, is how one
// begins.
func (s *secrets) begins(b []byte) bool {
	if !s.initial[b[0]] {
		return false
	}
	if len(b) >= shortest {
		if h := hash(binary.BigEndian.Uint32(b)); s.filter[h/64]>>(h%64)&1 == 0 {
			return false
		}
	}
	i, _ := slices.BinarySearchFunc(s.patterns, b, bytes.Compare)
	return i < len(s.patterns) && bytes.HasPrefix(s.patterns[i], b)
}

// any reports whether there is something to look for.
func (s *secrets) any() bool { return len(s.patterns) > 0 }

// in reports whether text holds a secret.
func (s *secrets) in(text []byte) bool {
	for i := 0; i+shortest <= len(text); i++ {
		if s.at(text[i:]) > 0 {
			return true
		}
	}
	return false
}

// inString is in, of a string as it is and with its escapes undone.
func (s *secrets) inString(text string) bool {
	if s.in([]byte(text)) {
		return true
	}
	if !strings.ContainsAny(text, "%+") {
		return false
	}
	for _, undo := range []func(string) (string, error){url.PathUnescape, url.QueryUnescape} {
		if plain, err := undo(text); err == nil && s.in([]byte(plain)) {
			return true
		}
	}
	return false
}

// skip is the first place in b from i on where something could begin, as far as
// all of it would be there.
func (s *secrets) skip(b []byte, i int) int {
	for end := len(b) - max(s.longest, shortest); i < end; i++ {
		h := hash(binary.BigEndian.Uint32(b[i:]))
		if s.filter[h/64]>>(h%64)&1 != 0 {
			break
		}
	}
	return i
}

// mark writes stars over the secrets in b, which may go on: it returns how many
// bytes of b are decided about, and until where, counted from there, stars reach.
// Stars is what the call before returned.
func (s *secrets) mark(b []byte, stars int, last bool) (done, left int) {
	until := stars
	for i := 0; i < len(b); i++ {
		if i >= until {
			i = s.skip(b, i)
		}
		rest := b[i:]
		if !last && len(rest) < s.longest && s.begins(rest) {
			return i, max(0, until-i)
		}
		if n := s.at(rest); n > 0 {
			until = max(until, i+n)
		}
		if i < until {
			rest[0] = '*'
		}
	}
	return len(b), max(0, until-len(b))
}

// pass looks for secrets in b, which may go on: it returns how many bytes of b may
// go, and whether a secret follows them.
func (s *secrets) pass(b []byte, last bool) (done int, leak bool) {
	for i := 0; i < len(b); i++ {
		i = s.skip(b, i)
		rest := b[i:]
		if s.at(rest) > 0 {
			return i, true
		}
		if !last && len(rest) < s.longest && s.begins(rest) {
			return i, false
		}
	}
	return len(b), false
}

// redact is text with stars for secrets.
func (s *secrets) redact(text string) string {
	b := []byte(text)
	s.mark(b, 0, true)
	return string(b)
}

// wipe overwrites what is looked for. Nothing is found afterwards.
func (s *secrets) wipe() {
	for _, p := range s.patterns {
		clear(p)
	}
	if s.stands != nil {
		s.stands.wipe()
	}
}
