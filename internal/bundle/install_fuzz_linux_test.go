package bundle

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// limited takes n bytes and then refuses.
type limited struct{ n int }

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// FuzzPacked: a damaged program is an error, never a shorter program; a damaged
// list of sums vouches for nothing it does not name.
func FuzzPacked(f *testing.F) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte("program"))
	_ = z.Close()
	f.Add(b.Bytes(), uint16(0), byte(0), uint16(0), "abc  runsc\n")
	f.Add(b.Bytes(), uint16(12), byte(1), uint16(2), "  \n\nabc")
	name := filepath.Join(f.TempDir(), "sums")
	f.Fuzz(func(t *testing.T, packed []byte, at uint16, flip byte, cut uint16, sums string) {
		// Arbitrary bytes end, however much they unpack to.
		_ = file{source: packed, packing: ".gz"}.write(&limited{1 << 20})

		var whole bytes.Buffer
		z := gzip.NewWriter(&whole)
		_, _ = z.Write(packed)
		_ = z.Close()
		damaged := bytes.Clone(whole.Bytes())
		const header = 10 // name, time and system mean nothing
		if n := len(damaged) - header; n > 0 {
			damaged[header+int(at)%n] ^= flip
			damaged = damaged[:len(damaged)-int(cut)%n]
		}
		var got bytes.Buffer
		if err := (file{source: damaged, packing: ".gz"}).write(&got); err == nil && !bytes.Equal(got.Bytes(), packed) {
			t.Fatalf("%q became %q", packed, got.Bytes())
		}

		if err := os.WriteFile(name, []byte(sums), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := readSums(name)
		if err != nil {
			return
		}
		for file, sum := range list {
			if !strings.Contains(sums, sum+"  "+file) {
				t.Fatalf("%q vouches for %q with %q", sums, file, sum)
			}
		}
	})
}
