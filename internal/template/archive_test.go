package template

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// configText is the configuration of img, as text.
func configText(t testing.TB, img testImage) []byte {
	c := &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: img.config, RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range img.layers {
		diff, _ := v1.NewHash(digestOf(l))
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diff)
	}
	if img.lie != nil {
		img.lie(&v1.Manifest{}, c)
	}
	return jsonOf(t, c)
}

func jsonOf(t testing.TB, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dockerSave is img as `docker save` writes it; change may spoil it.
func dockerSave(t testing.TB, img testImage, change func(list *[]saved, files map[string][]byte)) []byte {
	config := configText(t, img)
	name := strings.TrimPrefix(digestOf(config), "sha256:") + ".json"
	list := []saved{{Config: name, RepoTags: []string{"registry.example/x:v1"}}}
	files := map[string][]byte{name: config}
	for i, l := range img.layers {
		p := fmt.Sprintf("%d/layer.tar", i)
		files[p] = l
		list[0].Layers = append(list[0].Layers, p)
	}
	if change != nil {
		change(&list, files)
	}
	if _, ok := files["manifest.json"]; !ok {
		files["manifest.json"] = jsonOf(t, list)
	}
	return archiveOf(t, files)
}

// ociLayout is img as an image layout; change may spoil manifest and index.
func ociLayout(t testing.TB, img testImage, change func(m *v1.Manifest, index *v1.IndexManifest, files map[string][]byte)) []byte {
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	add := func(b []byte) v1.Descriptor {
		d := digestOf(b)
		files[blobPath(d)] = b
		h, _ := v1.NewHash(d)
		return v1.Descriptor{Digest: h, Size: int64(len(b))}
	}
	m := &v1.Manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json", Config: add(configText(t, img))}
	m.Config.MediaType = "application/vnd.oci.image.config.v1+json"
	for _, l := range img.layers {
		d := add(packed(l))
		d.MediaType = "application/vnd.oci.image.layer.v1.tar+gzip"
		m.Layers = append(m.Layers, d)
	}
	index := &v1.IndexManifest{SchemaVersion: 2}
	if change != nil {
		change(m, index, files)
	}
	if index.Manifests == nil {
		d := add(jsonOf(t, m))
		d.MediaType = m.MediaType
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": "registry.example/x:v1"}
		index.Manifests = []v1.Descriptor{d}
	}
	if _, ok := files["index.json"]; !ok {
		files["index.json"] = jsonOf(t, index)
	}
	return archiveOf(t, files)
}

// archiveOf packs files; an entry whose name ends in "->" is a link to its content.
func archiveOf(t testing.TB, files map[string][]byte) []byte {
	var list []file
	for name, body := range files {
		if to, ok := strings.CutSuffix(name, "->"); ok {
			list = append(list, link(to, string(body)))
			continue
		}
		list = append(list, reg(name, string(body)))
	}
	return tarOf(t, list...)
}

// buildArchive makes a template of an archive.
func (s *Store) buildArchive(t *testing.T, archive []byte) (Template, error) {
	t.Helper()
	id, _, err := s.Receive(t.Context(), "t", bytes.NewReader(archive))
	must(t, err)
	return s.Build(t.Context(), "a", BuildOptions{Upload: id, Owner: "t"})
}

// TestImageArchives: what docker saved, what lies in an image layout, and what a
// registry gives are one image; and a root file system is no image because of a
// file's name.
func TestImageArchives(t *testing.T) {
	r := newRegistry(t, nil)
	digest := r.push("v1", small())
	pulled, err := imageStore(t, t.TempDir(), Options{}).Build(t.Context(), "pulled", BuildOptions{Image: r.host + "/x:v1"})
	must(t, err)

	// Docker keeps no manifest, so what it saved is known by its config's digest,
	// and is one template however its layers lie in the archive.
	var savedAs string
	config := configText(t, small())
	for name, c := range map[string]struct {
		archive []byte
		digest  string
	}{
		"docker save": {dockerSave(t, small(), nil), digestOf(config)},
		"docker save, a layer linked": {dockerSave(t, small(), func(list *[]saved, files map[string][]byte) {
			files["other/layer.tar"] = files["1/layer.tar"]
			delete(files, "1/layer.tar")
			files["1/layer.tar->"] = []byte("../other/layer.tar")
		}), digestOf(config)},
		"OCI layout": {ociLayout(t, small(), nil), digest},
		"OCI layout with an index in the index": {ociLayout(t, small(), func(m *v1.Manifest, index *v1.IndexManifest, files map[string][]byte) {
			raw := jsonOf(t, m)
			files[blobPath(digestOf(raw))] = raw
			h, _ := v1.NewHash(digestOf(raw))
			ours := v1.Descriptor{MediaType: m.MediaType, Digest: h, Size: int64(len(raw)), Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}
			alien := ours
			alien.Platform = &v1.Platform{OS: "linux", Architecture: "s390x"}
			inner := jsonOf(t, &v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{alien, ours}})
			files[blobPath(digestOf(inner))] = inner
			h, _ = v1.NewHash(digestOf(inner))
			index.Manifests = []v1.Descriptor{{MediaType: "application/vnd.oci.image.index.v1+json", Digest: h, Size: int64(len(inner))}}
		}), ""},
	} {
		s := imageStore(t, t.TempDir(), Options{})
		p, err := s.buildArchive(t, c.archive)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := pulled.Digest
		if strings.HasPrefix(name, "docker") {
			if savedAs == "" {
				savedAs = p.Digest
			}
			want = savedAs
		}
		if p.Digest != want {
			t.Errorf("%s: template %s, want %s", name, p.Digest, want)
		}
		noBuildLeft(t, s.dir)
		if c.digest != "" && (p.Source.Kind != "archive" || p.Source.Digest != c.digest || p.Source.Reference != "registry.example/x:v1") {
			t.Errorf("%s: source %+v, want digest %s", name, p.Source, c.digest)
		}
		if b, err := os.ReadFile(filepath.Join(p.Root.Dir, "kept")); err != nil || string(b) != "new" || p.WorkDir() != "/app" {
			t.Errorf("%s: %q %v, starts in %q", name, b, err, p.WorkDir())
		}
	}
	s := imageStore(t, t.TempDir(), Options{})
	for name, body := range map[string]string{"an object": `{"Config":"x"}`, "another list": `[{"name":"x"}]`, "no JSON": "hello"} {
		p, err := s.buildArchive(t, tarOf(t, reg("manifest.json", body), reg("usr/x", "x")))
		if err != nil {
			t.Errorf("a root file system with a manifest.json that is %s: %v", name, err)
			continue
		}
		if b, err := os.ReadFile(filepath.Join(p.Root.Dir, "manifest.json")); err != nil || string(b) != body {
			t.Errorf("manifest.json that is %s: %q %v", name, b, err)
		}
	}
	noBuildLeft(t, s.dir)
}

// TestHostileArchives: an archive that is no sound image is refused with a type,
// nothing outside of it is read, and nothing is left.
func TestHostileArchives(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim.json")
	must(t, os.WriteFile(outside, configText(t, testImage{}), 0o644))
	one := testImage{layers: [][]byte{tarOf(t, reg("x", "x"))}}
	bomb := testImage{layers: [][]byte{tarOf(t, zeros(70<<20))}}
	wide := testImage{layers: [][]byte{flood(201)}}
	spoilOCI := func(f func(m *v1.Manifest, index *v1.IndexManifest, files map[string][]byte)) []byte {
		return ociLayout(t, one, f)
	}
	spoilSave := func(f func(list *[]saved, files map[string][]byte)) []byte { return dockerSave(t, one, f) }
	limits := Limits{Bytes: 128 << 20, Entries: 200, Depth: 20, Layers: 4, Ratio: 50, Download: 96 << 20}
	wrong := "sha256:" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		archive []byte
		kinds   []sandbox.Kind
	}{
		"save: no layer":     {spoilSave(func(_ *[]saved, f map[string][]byte) { delete(f, "0/layer.tar") }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: no config":    {spoilSave(func(l *[]saved, _ map[string][]byte) { (*l)[0].Config = "missing.json" }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: other layer":  {spoilSave(func(_ *[]saved, f map[string][]byte) { f["0/layer.tar"] = tarOf(t, reg("y", "y")) }), []sandbox.Kind{sandbox.KindDenied}},
		"save: two images":   {spoilSave(func(l *[]saved, _ map[string][]byte) { *l = append(*l, (*l)[0]) }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: config out":   {spoilSave(func(l *[]saved, _ map[string][]byte) { (*l)[0].Config = outside }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: config above": {spoilSave(func(l *[]saved, _ map[string][]byte) { (*l)[0].Config = strings.Repeat("../", 30) + outside[1:] }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: layer out":    {spoilSave(func(l *[]saved, _ map[string][]byte) { (*l)[0].Layers[0] = "/etc/passwd" }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: link out":     {spoilSave(func(l *[]saved, f map[string][]byte) { (*l)[0].Config = "c"; f["c->"] = []byte(outside) }), []sandbox.Kind{sandbox.KindInvalid}},
		"save: links in ring": {spoilSave(func(l *[]saved, f map[string][]byte) {
			(*l)[0].Config = "c"
			f["c->"], f["d->"] = []byte("d"), []byte("c")
		}), []sandbox.Kind{sandbox.KindInvalid}},
		"save: more layers than the config says": {spoilSave(func(l *[]saved, _ map[string][]byte) { (*l)[0].Layers = append((*l)[0].Layers, "0/layer.tar") }),
			[]sandbox.Kind{sandbox.KindInvalid, sandbox.KindDenied}},
		"save: layers by the thousand": {spoilSave(func(l *[]saved, _ map[string][]byte) { (*l)[0].Layers = make([]string, 1000) }), []sandbox.Kind{sandbox.KindTooLarge}},
		"save: huge config":            {spoilSave(func(l *[]saved, f map[string][]byte) { f[(*l)[0].Config] = make([]byte, maxConfig+1) }), []sandbox.Kind{sandbox.KindTooLarge}},
		"save: config is a bomb of brackets": {spoilSave(func(l *[]saved, f map[string][]byte) { f[(*l)[0].Config] = bytes.Repeat([]byte("["), 1<<20) }),
			[]sandbox.Kind{sandbox.KindInvalid}},
		"save: entries": {dockerSave(t, wide, nil), []sandbox.Kind{sandbox.KindTooLarge}},

		"layout: no index":    {spoilOCI(func(_ *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) { f["index.json"] = []byte("{}") }), []sandbox.Kind{sandbox.KindInvalid}},
		"layout: empty index": {spoilOCI(func(_ *v1.Manifest, x *v1.IndexManifest, _ map[string][]byte) { x.Manifests = []v1.Descriptor{} }), []sandbox.Kind{sandbox.KindInvalid, sandbox.KindUnsupported, sandbox.KindNotFound}},
		"layout: index in itself": {spoilOCI(func(_ *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) {
			// A digest of itself cannot be had: three levels and no end instead.
			inner := jsonOf(t, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{{Digest: hashOf(wrong)}}})
			for range 4 {
				f[blobPath(digestOf(inner))] = inner
				inner = jsonOf(t, v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{{Digest: hashOf(digestOf(inner))}}})
			}
			f["index.json"] = inner
		}), []sandbox.Kind{sandbox.KindInvalid}},
		"layout: manifest changed": {spoilOCI(func(m *v1.Manifest, x *v1.IndexManifest, f map[string][]byte) {
			x.Manifests = []v1.Descriptor{{Digest: hashOf(wrong)}}
			f[blobPath(wrong)] = jsonOf(t, m)
		}), []sandbox.Kind{sandbox.KindDenied}},
		"layout: config changed": {spoilOCI(func(m *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) {
			f[blobPath(m.Config.Digest.String())] = configText(t, testImage{layers: one.layers, config: v1.Config{User: "root"}})
		}), []sandbox.Kind{sandbox.KindDenied}},
		"layout: layer changed": {spoilOCI(func(m *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) {
			f[blobPath(m.Layers[0].Digest.String())] = packed(tarOf(t, reg("y", "y")))
		}), []sandbox.Kind{sandbox.KindDenied}},
		"layout: layer cut": {spoilOCI(func(m *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) {
			f[blobPath(m.Layers[0].Digest.String())] = packed(one.layers[0])[:20]
		}), []sandbox.Kind{sandbox.KindDenied, sandbox.KindInvalid}},
		"layout: layer missing": {spoilOCI(func(m *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) {
			delete(f, blobPath(m.Layers[0].Digest.String()))
		}), []sandbox.Kind{sandbox.KindInvalid}},
		"layout: config lies about a layer": {ociLayout(t, testImage{layers: one.layers, lie: func(_ *v1.Manifest, c *v1.ConfigFile) { c.RootFS.DiffIDs[0] = hashOf(wrong) }}, nil), []sandbox.Kind{sandbox.KindDenied}},
		"layout: digest that is a path": {spoilOCI(func(_ *v1.Manifest, _ *v1.IndexManifest, f map[string][]byte) {
			f["index.json"] = []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../../../etc/passwd","size":1}]}`)
		}), []sandbox.Kind{sandbox.KindInvalid, sandbox.KindUnsupported}},
		"layout: bomb":    {ociLayout(t, bomb, nil), []sandbox.Kind{sandbox.KindTooLarge}},
		"layout: entries": {ociLayout(t, wide, nil), []sandbox.Kind{sandbox.KindTooLarge}},

		"a zip bomb":                             {zipOf(t), []sandbox.Kind{sandbox.KindInvalid}},
		"an empty file":                          {nil, []sandbox.Kind{sandbox.KindInvalid}},
		"noise":                                  {bytes.Repeat([]byte("noise"), 1000), []sandbox.Kind{sandbox.KindInvalid}},
		"files by the thousand":                  {flood(201), []sandbox.Kind{sandbox.KindTooLarge}},
		"half an archive":                        {tarOf(t, reg("x", strings.Repeat("x", 4096)))[:1536], []sandbox.Kind{sandbox.KindInvalid}},
		"a size that lies":                       {sparseLie("99999999999999"), []sandbox.Kind{sandbox.KindInvalid, sandbox.KindTooLarge}},
		"an archive in an archive in an archive": {packed(packed(packed(one.layers[0]))), []sandbox.Kind{sandbox.KindInvalid}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := imageStore(t, t.TempDir(), Options{Limits: limits})
			p, err := s.buildArchive(t, c.archive)
			kind := sandbox.KindOf(err)
			ok := false
			for _, k := range c.kinds {
				ok = ok || kind == k
			}
			if err == nil || !ok {
				t.Errorf("got %v (%s) %s, want one of %v", err, kind, p.Digest, c.kinds)
			}
			if list, err := s.List(t.Context()); err != nil || len(list) > 0 && list[0].Name == "a" {
				t.Errorf("a template was made: %v %v", list, err)
			}
			noBuildLeft(t, s.dir)
		})
	}
}

func hashOf(d string) v1.Hash { h, _ := v1.NewHash(d); return h }

// zipOf is an archive of the wrong kind, a thousand times smaller than its content.
func zipOf(t *testing.T) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("0")
	must(t, err)
	_, err = f.Write(make([]byte, 16<<20))
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

// FuzzImageArchive: an archive somebody made is refused with a type or is a
// template, within its bounds, and leaves nothing else.
func FuzzImageArchive(f *testing.F) {
	one := testImage{layers: [][]byte{tarOf(t0{}, reg("x", "x"))}}
	f.Add(dockerSave(t0{}, one, nil))
	f.Add(ociLayout(t0{}, one, nil))
	f.Add(tarOf(t0{}, reg("oci-layout", "{}"), reg("index.json", `{"manifests":[{}]}`)))
	f.Add(tarOf(t0{}, reg("manifest.json", `[{"Config":"c","Layers":["c","c"]}]`), link("c", "manifest.json"), hard("d", "c")))
	f.Add(tarOf(t0{}, file{Header: tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Format: tar.FormatPAX, PAXRecords: map[string]string{"GNU.sparse.major": "1"}}}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		x, b := fuzzIndex(t, archive)
		var layers []layer
		var err error
		switch {
		case x.has("oci-layout") && x.has("index.json"):
			layers, err = b.ociLayout(x)
		case x.has("manifest.json") && x.dockerSave():
			layers, err = b.savedImage(x)
		}
		if err != nil && (sandbox.KindOf(err) == "" || sandbox.KindOf(err) == sandbox.KindInternal) {
			t.Fatalf("refused without a type: %v", err)
		}
		for _, l := range layers {
			if l.size < 0 || l.size > int64(len(archive)) || l.diffID == "" {
				t.Fatalf("a layer of %d bytes in an archive of %d, diff id %q", l.size, len(archive), l.diffID)
			}
		}
	})
}

// fuzzIndex indexes an archive that lies in a file, as uploads do.
func fuzzIndex(t *testing.T, archive []byte) (*archiveIndex, *imageBuild) {
	path := filepath.Join(t.TempDir(), "upload")
	must(t, os.WriteFile(path, archive, 0o600))
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	x, err := index(t.Context(), f, DefaultLimits)
	must(t, err)
	return x, &imageBuild{s: &Store{opts: Options{Limits: DefaultLimits}}}
}
