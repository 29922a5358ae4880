package template

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// evil is an entry with a header of its own.
func evil(h tar.Header) file { return file{Header: h} }

// flood is an archive of many empty files.
func flood(n int) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range n {
		w.WriteHeader(&tar.Header{Name: "f" + strconv.Itoa(i), Mode: 0o644, Typeflag: tar.TypeReg})
	}
	w.Close()
	return b.Bytes()
}

// sparseLie is a GNU sparse file (PAX 1.0) that claims size bytes and has none.
func sparseLie(size string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "GNUSparseFile.0/s", Typeflag: tar.TypeReg, Mode: 0o644, Size: 512, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"X.x": "y"}})
	w.Write(make([]byte, 512))
	w.Close()
	// archive/tar does not write sparse files; the map "no data" is "0\n".
	raw := bytes.Replace(b.Bytes(), []byte("9 X.x=y\n"), nil, 1)
	records := ""
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=" + size} {
		n := len(kv) + 3
		if len(strconv.Itoa(n)) > 1 {
			n = len(kv) + 4
		}
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	raw = b.Bytes()
	var out bytes.Buffer
	h := tar.NewWriter(&out)
	h.WriteHeader(&tar.Header{Name: "pax", Typeflag: tar.TypeReg, Size: int64(len(records)), Mode: 0o644})
	h.Write([]byte(records))
	h.Flush()
	pax := out.Bytes()
	pax[156] = 'x'
	checksum(pax[:512])
	i := bytes.Index(raw, []byte("GNUSparseFile.0/s"))
	body := append([]byte("0\n"), make([]byte, 510)...)
	return append(append(append(append([]byte{}, pax...), raw[i:i+512]...), body...), make([]byte, 1024)...)
}

// checksum mends a header that was changed.
func checksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h[:512] {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func zeros(n int) file {
	return file{tar.Header{Name: "z", Typeflag: tar.TypeReg, Mode: 0o644}, strings.Repeat("\x00", n)}
}

// TestHostileLayers builds images no sound tool makes. Each is refused with a
// kind that says why, or made harmless; nothing is written outside, and after a
// refusal nothing is left.
func TestHostileLayers(t *testing.T) {
	fastRetries(t)
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "victim"), []byte("victim"), 0o644))
	limits := Limits{Bytes: 8 << 20, Entries: 200, Depth: 20, Layers: 4, Ratio: 50, Download: 4 << 20}
	deep := strings.Repeat("d/", 30) + "x"
	for name, c := range map[string]struct {
		img  testImage
		kind sandbox.Kind // empty: built
		see  map[string]string
		gone []string
	}{
		"traversal":          {img: testImage{layers: [][]byte{tarOf(t, reg("../../x", "x"))}}, kind: sandbox.KindDenied},
		"traversal within":   {img: testImage{layers: [][]byte{tarOf(t, reg("a/../../x", "x"))}}, kind: sandbox.KindDenied},
		"absolute":           {img: testImage{layers: [][]byte{tarOf(t, reg(outside+"/victim", "x"))}}, see: map[string]string{outside[1:] + "/victim": "x"}},
		"write through link": {img: testImage{layers: [][]byte{tarOf(t, link("l", outside), reg("l/victim", "x"))}}, see: map[string]string{outside[1:] + "/victim": "x"}},
		"link over layers":   {img: testImage{layers: [][]byte{tarOf(t, link("l", "../../../.."+outside)), tarOf(t, reg("l/victim", "x"))}}, see: map[string]string{outside[1:] + "/victim": "x"}},
		"file over link":     {img: testImage{layers: [][]byte{tarOf(t, link("l", outside+"/victim"), reg("l", "x"))}}, see: map[string]string{"l": "x"}},
		"dir over link":      {img: testImage{layers: [][]byte{tarOf(t, link("l", outside), dir("l"), reg("l/victim", "x"))}}, see: map[string]string{"l/victim": "x"}},
		"endless links":      {img: testImage{layers: [][]byte{tarOf(t, link("a", "b"), link("b", "a"), reg("a/x", "x"))}}, kind: sandbox.KindDenied},
		"hard link out":      {img: testImage{layers: [][]byte{tarOf(t, hard("x", "../../etc/passwd"))}}, kind: sandbox.KindDenied},
		"hard link absolute": {img: testImage{layers: [][]byte{tarOf(t, hard("x", outside+"/victim"))}}, kind: sandbox.KindInvalid},
		"hard link through":  {img: testImage{layers: [][]byte{tarOf(t, link("l", outside), hard("x", "l/victim"))}}, kind: sandbox.KindInvalid},
		"hard link to dir":   {img: testImage{layers: [][]byte{tarOf(t, dir("d"), hard("x", "d"))}}, kind: sandbox.KindInvalid},
		"hard link, changed": {img: testImage{layers: [][]byte{tarOf(t, reg("a", "1"), hard("b", "a"), reg("b", "2"))}}, see: map[string]string{"a": "1", "b": "2"}},
		"devices": {img: testImage{layers: [][]byte{tarOf(t, evil(tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}), evil(tar.Header{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1}),
			evil(tar.Header{Name: "p", Typeflag: tar.TypeFifo}), reg("x", "x"))}}, see: map[string]string{"x": "x"}, gone: []string{"sda", "mem", "p"}},
		"unknown type":   {img: testImage{layers: [][]byte{tarOf(t, evil(tar.Header{Name: "v", Typeflag: 'V'}))}}, kind: sandbox.KindDenied},
		"duplicates":     {img: testImage{layers: [][]byte{tarOf(t, reg("x", "1"), dir("x"), reg("x/y", "2"), reg("x", "3"))}}, see: map[string]string{"x": "3"}},
		"case collision": {img: testImage{layers: [][]byte{tarOf(t, reg("x", "1"), reg("X", "2"))}}, see: map[string]string{"x": "1", "X": "2"}},
		"file as parent": {img: testImage{layers: [][]byte{tarOf(t, reg("x", "1"), reg("x/y", "2"))}}, kind: sandbox.KindInvalid},
		"bad owner":      {img: testImage{layers: [][]byte{tarOf(t, file{tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: 1 << 40, Format: tar.FormatPAX}, ""})}}, kind: onlyRoot(sandbox.KindInvalid)},
		"long name":      {img: testImage{layers: [][]byte{tarOf(t, reg(strings.Repeat("n/", 3000)+"x", ""))}}, kind: sandbox.KindTooLarge},
		"long component": {img: testImage{layers: [][]byte{tarOf(t, reg(strings.Repeat("n", 300), ""))}}, kind: sandbox.KindInvalid},
		"deep":           {img: testImage{layers: [][]byte{tarOf(t, reg(deep, ""))}}, kind: sandbox.KindTooLarge},
		"deep by links":  {img: testImage{layers: [][]byte{tarOf(t, link("l", strings.Repeat("d/", 15)), reg("l/"+strings.Repeat("e/", 15)+"x", ""), link("m", strings.Repeat("d/", 15)+strings.Repeat("e/", 15)), reg("m/"+strings.Repeat("f/", 15)+"x", ""))}}, kind: sandbox.KindTooLarge},
		"whiteout": {img: testImage{layers: [][]byte{tarOf(t, reg("a/x", "1"), reg("a/y", "1"), reg("b", "1")), tarOf(t, reg("a/.wh.x", ""), reg(".wh.b", ""))}},
			see: map[string]string{"a/y": "1"}, gone: []string{"a/x", "b", "a/.wh.x", ".wh.b"}},
		"opaque": {img: testImage{layers: [][]byte{tarOf(t, reg("a/x", "1"), reg("a/d/y", "1")), tarOf(t, reg("a/new", "2"), reg("a/.wh..wh..opq", ""), reg("a/d/new", "2"))}},
			see: map[string]string{"a/new": "2", "a/d/new": "2"}, gone: []string{"a/x", "a/d/y"}},
		"whiteout of its own layer": {img: testImage{layers: [][]byte{tarOf(t, reg("d/old", "1")), tarOf(t, reg("d/new", "2"), reg(".wh.d", ""))}},
			see: map[string]string{"d/new": "2"}, gone: []string{"d/old"}},
		"whiteout through link": {img: testImage{layers: [][]byte{tarOf(t, link("l", outside)), tarOf(t, reg("l/.wh.victim", ""))}}},
		"whiteout of ..":        {img: testImage{layers: [][]byte{tarOf(t, reg("a/.wh...", ""))}}, kind: sandbox.KindDenied},
		"mount points in the way": {img: testImage{layers: [][]byte{tarOf(t, link("proc", outside), link("home", outside), link("etc", outside), reg("tmp", "x"), link(".firebreak", "/bin"), reg("dev", ""))}},
			see: map[string]string{"etc/machine-id": "", "etc/resolv.conf": skeletonFiles["etc/resolv.conf"], bootID: ""}},
		"account file is a link":  {img: testImage{layers: [][]byte{tarOf(t, link("etc/passwd", outside+"/victim"))}}},
		"account user is another": {img: testImage{layers: [][]byte{tarOf(t, reg("etc/passwd", "user:x:0:0::/:/bin/sh\n"))}}, see: map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n"}},
		"too many entries":        {img: testImage{layers: [][]byte{flood(150), flood(60)}}, kind: sandbox.KindTooLarge},
		"too many layers":         {img: testImage{layers: [][]byte{flood(1), flood(2), flood(3), flood(4), flood(5)}}, kind: sandbox.KindTooLarge},
		"bomb":                    {img: testImage{layers: [][]byte{tarOf(t, zeros(9<<20))}}, kind: sandbox.KindTooLarge},
		"bomb in parts":           {img: testImage{layers: [][]byte{tarOf(t, zeros(5<<20)), tarOf(t, zeros(5<<20))}}, kind: sandbox.KindTooLarge},
		"sparse bomb":             {img: testImage{layers: [][]byte{sparseLie("9000000000000000000")}}, kind: sandbox.KindTooLarge},
		"sparse in parts":         {img: testImage{layers: [][]byte{sparseLie("5000000"), sparseLie("5000000")}}, kind: sandbox.KindTooLarge},
		"nested archive":          {img: testImage{layers: [][]byte{tarOf(t, reg("a.tar.gz", string(packed(tarOf(t, zeros(4<<20))))))}}},
		"no archive":              {img: testImage{layers: [][]byte{[]byte(strings.Repeat("not a tar file", 100))}}, kind: sandbox.KindInvalid},
		"cut short":               {img: testImage{layers: [][]byte{tarOf(t, reg("x", strings.Repeat("x", 5000)))[:3000]}}, kind: sandbox.KindInvalid},
		"broken gzip":             {img: testImage{layers: [][]byte{append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, "garbage"...)}, bare: true}, kind: sandbox.KindInvalid},
		"xz":                      {img: testImage{layers: [][]byte{[]byte("\xfd7zXZ\x00")}, bare: true}, kind: sandbox.KindUnsupported},
		"wrong diff id":           {img: testImage{layers: [][]byte{flood(1)}, lie: func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64) }}, kind: sandbox.KindDenied},
		"layer count":             {img: testImage{layers: [][]byte{flood(1)}, lie: func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs = nil }}, kind: sandbox.KindInvalid},
		"layer size lie, small":   {img: testImage{layers: [][]byte{flood(1)}, lie: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size-- }}, kind: sandbox.KindTooLarge},
		"layer size lie, large":   {img: testImage{layers: [][]byte{flood(1)}, lie: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size++ }}, kind: sandbox.KindInvalid},
		"layer size lie, huge":    {img: testImage{layers: [][]byte{flood(1)}, lie: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size = 1 << 62 }}, kind: sandbox.KindTooLarge},
		"layer size negative":     {img: testImage{layers: [][]byte{flood(1)}, lie: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Size = -1 }}, kind: sandbox.KindInvalid},
		"foreign layer":           {img: testImage{layers: [][]byte{flood(1)}, lie: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].URLs = []string{"http://169.254.169.254/"} }}, kind: sandbox.KindUnsupported},
		"missing layer":           {img: testImage{layers: [][]byte{flood(1)}, lie: func(m *v1.Manifest, _ *v1.ConfigFile) { m.Layers[0].Digest.Hex = strings.Repeat("1", 64) }}, kind: sandbox.KindNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, nil)
			r.push("v1", c.img)
			s := imageStore(t, t.TempDir(), Options{Limits: limits})
			p, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:v1"})
			noBuildLeft(t, s.dir)
			if b, err := os.ReadFile(filepath.Join(outside, "victim")); err != nil || string(b) != "victim" {
				t.Fatalf("outside: %q, %v", b, err)
			}
			if c.kind != "" {
				var e *sandbox.Error
				if !errors.As(err, &e) || e.Kind != c.kind || e.Hint == "" {
					t.Errorf("got %v (kind %s), want kind %s and a hint", err, sandbox.KindOf(err), c.kind)
				}
				if list, err := s.Resolve(t.Context(), "a"); sandbox.KindOf(err) != sandbox.KindNotFound {
					t.Errorf("afterwards there is %+v, %v", list, err)
				}
				return
			}
			must(t, err)
			must(t, s.Verify(t.Context(), p.Digest))
			for name, want := range c.see {
				st, err := os.Lstat(filepath.Join(p.Root.Dir, name))
				if err != nil || !st.Mode().IsRegular() {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if b, _ := os.ReadFile(filepath.Join(p.Root.Dir, name)); string(b) != want {
					t.Errorf("%s holds %q, want %q", name, b, want)
				}
			}
			for _, name := range c.gone {
				if _, err := os.Lstat(filepath.Join(p.Root.Dir, name)); err == nil {
					t.Errorf("%s is there", name)
				}
			}
			for _, d := range []string{"proc", "dev", "tmp", "home", "home/user", "etc", ".firebreak"} {
				if st, err := os.Lstat(filepath.Join(p.Root.Dir, d)); err != nil || !st.IsDir() {
					t.Errorf("/%s: %v, %v", d, st, err)
				}
			}
		})
	}
	t.Cleanup(func() { // parallel subtests are done by now
		left, err := os.ReadDir(outside)
		if err != nil || len(left) != 1 {
			t.Errorf("written outside: %v, %v", left, err)
		}
	})
}

// onlyRoot is kind where owners are taken over at all.
func onlyRoot(kind sandbox.Kind) sandbox.Kind {
	if os.Geteuid() == 0 {
		return kind
	}
	return ""
}

// A server that sends other bytes than the digests say is found out, whatever it
// changes.
func TestTamperingRegistry(t *testing.T) {
	fastRetries(t)
	for _, what := range []string{"manifest", "config", "layer", "endless manifest", "endless layer"} {
		t.Run(what, func(t *testing.T) {
			var manifest, layer, config string
			r := newRegistry(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
					hit := strings.HasSuffix(q.URL.Path, layer) && strings.HasSuffix(what, "layer") || strings.HasSuffix(q.URL.Path, manifest) && strings.HasSuffix(what, "manifest") ||
						strings.HasSuffix(q.URL.Path, config) && what == "config"
					if !hit || q.Method == http.MethodHead {
						h.ServeHTTP(w, q)
						return
					}
					w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
					w.Write([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
					for strings.HasPrefix(what, "endless") && q.Context().Err() == nil {
						if _, err := w.Write(make([]byte, 1<<20)); err != nil {
							return
						}
					}
				})
			})
			manifest = r.push("v1", testImage{layers: [][]byte{flood(3)}, lie: func(m *v1.Manifest, c *v1.ConfigFile) { layer = m.Layers[0].Digest.String() }})
			s := imageStore(t, t.TempDir(), Options{})
			config = "never"
			if what == "config" {
				raw, _ := http.Get("http://" + r.host + "/v2/x/manifests/" + manifest)
				m, err := v1.ParseManifest(raw.Body)
				must(t, err)
				raw.Body.Close()
				config = m.Config.Digest.String()
			}
			_, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x@" + manifest})
			k := sandbox.KindOf(err)
			if k != sandbox.KindDenied && k != sandbox.KindInvalid && k != sandbox.KindTooLarge {
				t.Errorf("got %v (%s)", err, k)
			}
			noBuildLeft(t, s.dir)
		})
	}
}

// Plain, gzip and zstd archives are the same template; a bomb in any is caught.
func TestCompressions(t *testing.T) {
	s := imageStore(t, t.TempDir(), Options{})
	raw := tarOf(t, reg("x", strings.Repeat("content ", 10000)))
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	digests := map[string]bool{}
	for _, b := range [][]byte{raw, packed(raw), enc.EncodeAll(raw, nil)} {
		id, size, err := s.Receive(t.Context(), "t", bytes.NewReader(b))
		must(t, err)
		if size != int64(len(b)) {
			t.Errorf("size %d", size)
		}
		p, err := s.Build(t.Context(), "a", BuildOptions{Upload: id, Owner: "t"})
		must(t, err)
		digests[p.Digest] = true
	}
	if len(digests) != 1 {
		t.Errorf("%d templates of one root file system", len(digests))
	}
	old := DefaultLimits
	bomb := tarOf(t, zeros(70<<20)) // past what may be packed at any ratio
	for _, b := range [][]byte{packed(bomb), enc.EncodeAll(bomb, nil)} {
		id, _, err := s.Receive(t.Context(), "t", bytes.NewReader(b))
		must(t, err)
		_, err = s.Build(t.Context(), "a", BuildOptions{Upload: id, Owner: "t"})
		want(t, err, sandbox.KindTooLarge, "smaller")
		if err == nil || !strings.Contains(err.Error(), strconv.FormatInt(old.Ratio, 10)+" times") {
			t.Errorf("got %v", err)
		}
	}
	noBuildLeft(t, s.dir)
}

// The end of a build's context, wherever it is, leaves nothing.
func TestImageCancelAnywhere(t *testing.T) {
	r := newRegistry(t, nil)
	r.push("v1", small())
	for n := 0; ; n++ {
		s := imageStore(t, t.TempDir(), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		reports := 0
		_, err := s.Build(ctx, "a", BuildOptions{Image: r.host + "/x:v1", Progress: func(p Progress) {
			if reports == n && p.Stage != StageDone {
				cancel()
			}
			reports++
		}})
		cancel()
		noBuildLeft(t, s.dir)
		if err == nil {
			if n < 6 {
				t.Errorf("done after %d reports", n)
			}
			return
		}
		want(t, err, sandbox.KindCanceled, "")
		if entries, _ := filepath.Glob(filepath.Join(s.dir, "sha256-*")); len(entries) > 0 {
			t.Errorf("cancelled at report %d: %q", n, entries)
		}
		if n > 100 {
			t.Fatal("it never ends")
		}
	}
}
