package inspect

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

// random is so many bytes that may stand in a header.
func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('!' + r.IntN('~'-'!'+1))
	}
	return b
}

// encodings are what programs make of a secret, with what may stand around it.
func encodings(secret, around string) map[string]string {
	all := &strings.Builder{}
	for _, c := range []byte(secret) {
		fmt.Fprintf(all, "%%%02x", c)
	}
	m := map[string]string{
		"raw": secret, "hex": hex.EncodeToString([]byte(secret)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(secret))),
		"query": url.QueryEscape(secret), "path": url.PathEscape(secret), "percent": all.String(),
	}
	for offset := range 3 {
		in := []byte(around[:offset] + secret + around[:2-offset])
		m[fmt.Sprint("base64+", offset)] = base64.StdEncoding.EncodeToString(in)
		m[fmt.Sprint("base64url+", offset)] = base64.RawURLEncoding.EncodeToString(in)
	}
	return m
}

// TestEncodings: a secret is found in each form, wherever it stands, and in a
// redacted text nothing of it is left.
func TestEncodings(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{8, 9, 10, 11, 20, 51, 63, 64, 65, 127, 128, 129, 200, 5000} {
		secret := random(r, n)
		s := newSecrets([][]byte{secret, []byte("another-one")})
		for name, form := range encodings(string(secret), "xyz") {
			text := "say " + form + " please"
			if !s.inString(text) {
				t.Errorf("%d bytes, %s: not found", n, name)
			}
			got := s.redact(text)
			if len(got) != len(text) || !strings.HasPrefix(got, "say ") || !strings.HasSuffix(got, " please") {
				t.Errorf("%d bytes, %s: %q", n, name, got)
			}
			if left := strings.TrimSuffix(strings.TrimPrefix(got, "say "), " please"); len(strings.ReplaceAll(left, "*", "")) > 8 || name == "raw" && strings.Trim(left, "*") != "" {
				t.Errorf("%d bytes, %s: %q is left", n, name, left)
			}
		}
		if s.inString(string(secret[:n-1])) && n <= block || s.inString("say nothing, please") {
			t.Errorf("%d bytes: found where it is not", n)
		}
	}
	if s := newSecrets([][]byte{[]byte("short")}); s.inString("short") {
		t.Error("a secret that is in everything")
	}
}

// reference writes stars by looking for each pattern at each place.
func reference(s *secrets, b []byte) []byte {
	out := bytes.Clone(b)
	for i := range b {
		for _, p := range s.patterns {
			if bytes.HasPrefix(b[i:], p) {
				copy(out[i:], bytes.Repeat([]byte("*"), len(p)))
			}
		}
	}
	return out
}

// FuzzStream: in whatever pieces a body comes, the same is found in it as in all of
// it, and nothing of the first secret goes where none may.
func FuzzStream(f *testing.F) {
	f.Add([]byte("abcabcab"), []byte("abcabcabc"), []byte("xxabcabcabcabcabcxx"), uint64(1))
	f.Add([]byte("aaaaaaaa"), []byte("aaaaaaaaab"), []byte("aaaaaaaaaaaaabaaaaaaaa"), uint64(2))
	f.Add([]byte("sk-12345678"), []byte("YWJjZGVmZ2g"), []byte("sk-12345678sk-1234sk-12345678"), uint64(3))
	f.Fuzz(func(t *testing.T, one, two, body []byte, seed uint64) {
		if len(one) > 300 || len(two) > 300 || len(body) > 4000 {
			return
		}
		s := newSecrets([][]byte{one, two})
		r := rand.New(rand.NewPCG(seed, 0))
		if len(one) > 0 && seed%2 == 0 { // with a secret in it
			at := r.IntN(len(body) + 1)
			body = append(append(bytes.Clone(body[:at]), one...), body[at:]...)
		}
		want := reference(s, body)
		got, err := io.ReadAll(newStream(&pieces{body, r}, s, true))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%q became %q, want %q (%v)", body, got, want, err)
		}
		first := len(body)
		for _, p := range s.patterns {
			if i := bytes.Index(body, p); i >= 0 {
				first = min(first, i)
			}
		}
		got, err = io.ReadAll(newStream(&pieces{body, r}, s, false))
		if leak := first < len(body); (err == errLeak) != leak || !bytes.Equal(got, body[:first]) {
			t.Fatalf("%q went on as %q (%v)", body, got, err)
		}
	})
}

// pieces is a body that comes a few bytes at a time.
type pieces struct {
	b []byte
	r *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.r.IntN(9))], p.b)
	p.b = p.b[n:]
	if len(p.b) == 0 && p.r.IntN(2) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// TestStreamAtOnce: what cannot be the beginning of a secret waits for nothing.
func TestStreamAtOnce(t *testing.T) {
	s := newSecrets([][]byte{[]byte("sk-secret-secret")})
	in, out := io.Pipe()
	defer in.Close()
	go func() { _, _ = out.Write([]byte("data: hello\n\n")) }()
	b := make([]byte, 100)
	if n, err := newStream(in, s, true).Read(b); err != nil || string(b[:n]) != "data: hello\n\n" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// TestUnpackBounds: little that becomes much is an error.
func TestUnpackBounds(t *testing.T) {
	n, err := io.Copy(io.Discard, unpack(bytes.NewReader(packed(make([]byte, 64<<20)))))
	if err != errBomb || n > 20<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	b, err := io.ReadAll(unpack(iotest.OneByteReader(bytes.NewReader(packed([]byte("hello"))))))
	if err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

func BenchmarkStream(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	var texts [][]byte
	for range 8 {
		texts = append(texts, append([]byte("sk-proj-"), random(r, 60)...))
	}
	s := newSecrets(texts)
	body := bytes.Repeat([]byte(`{"model":"x","messages":[{"role":"user","content":"Say something nice about sk-proj- keys."}]}`), 10_000)
	for name, redacts := range map[string]bool{"leak": false, "redact": true} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.Copy(io.Discard, newStream(bytes.NewReader(body), s, redacts)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
