package template

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// loaderCache makes a cache of name and path pairs.
func loaderCache(pairs ...string) []byte {
	n := len(pairs) / 2
	b := make([]byte, cacheHeader+n*cacheEntry)
	copy(b, cacheMagic)
	binary.LittleEndian.PutUint32(b[20:], uint32(n))
	for i, s := range pairs {
		binary.LittleEndian.PutUint32(b[cacheHeader+i/2*cacheEntry+4+i%2*4:], uint32(len(b)))
		b = append(append(b, s...), 0)
	}
	binary.LittleEndian.PutUint32(b[24:], uint32(len(b)-cacheHeader-n*cacheEntry))
	return b
}

func TestFilterLoaderCache(t *testing.T) {
	b := loaderCache("libz.so", "/usr/lib/libz.so", "libsecret.so", "/usr/local/lib/libsecret.so", "liba.so", "/lib/liba.so")
	got := filterLoaderCache(b, func(p string) bool { return !strings.HasPrefix(p, "/usr/local/") })
	if want := loaderCache("libz.so", "/usr/lib/libz.so", "liba.so", "/lib/liba.so"); string(got) != string(want) {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
	for _, bad := range [][]byte{nil, []byte(cacheMagic), b[:60], append([]byte("ld.so-1.7.0"), b...)} {
		if got := filterLoaderCache(bad, func(string) bool { return true }); got != nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// The machine's own loader tools read what the filter writes.
func TestFilterLoaderCacheOfThisMachine(t *testing.T) {
	b, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Skip("not run:", err)
	}
	ldconfig, err := exec.LookPath("/sbin/ldconfig")
	if err != nil {
		t.Skip("not run:", err)
	}
	got := filterLoaderCache(b, func(p string) bool { return strings.Contains(p, "/libc.so") || strings.Contains(p, "/libm.so") })
	if got == nil {
		t.Skip("not run: this machine's cache is not of the format glibc has had since 2.32")
	}
	file := filepath.Join(t.TempDir(), "cache")
	must(t, os.WriteFile(file, got, 0o644))
	out, err := exec.Command(ldconfig, "-p", "-C", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "libc.so.6") || strings.Contains(string(out), "libcrypt") {
		t.Errorf("%v: %s", err, out)
	}
}

func FuzzFilterLoaderCache(f *testing.F) {
	f.Add(loaderCache("libz.so", "/usr/lib/libz.so"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all := filterLoaderCache(b, func(string) bool { return true })
		if all == nil {
			return
		}
		if again := filterLoaderCache(all, func(string) bool { return true }); string(again) != string(all) {
			t.Errorf("filtering twice differs:\n%q\n%q", all, again)
		}
		if none := filterLoaderCache(b, func(string) bool { return false }); len(none) != cacheHeader {
			t.Errorf("something is left: %q", none)
		}
	})
}
