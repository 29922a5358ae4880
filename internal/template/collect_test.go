package template

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestCollect(t *testing.T) {
	r := newRegistry(t, nil)
	r.push("v1", small())
	instances := t.TempDir()
	s := imageStore(t, t.TempDir(), Options{Instances: []string{filepath.Join(instances, "*")}})
	build := func(name string) Template {
		t.Helper()
		p, err := s.Build(t.Context(), name, BuildOptions{Image: r.host + "/x:v1"})
		must(t, err)
		return p
	}
	one := build("a")
	img := small()
	img.layers = img.layers[:1]
	r.push("v1", img)
	two := build("a") // one has no name any more
	if one.Digest == two.Digest {
		t.Fatal("the same")
	}
	has := func(digest string) bool { _, err := s.Resolve(t.Context(), digest); return err == nil }
	collect := func(o CollectOptions) Collected {
		t.Helper()
		c, err := s.Collect(t.Context(), o)
		must(t, err)
		noBuildLeft(t, s.dir)
		return c
	}
	all := CollectOptions{Size: 1 << 40, Age: time.Hour}
	if c := collect(DefaultCollect); len(c.Templates) > 0 || c.Layers > 0 {
		t.Errorf("used a moment ago, and gone: %+v", c)
	}
	// In use by another process's lease.
	other := imageStore(t, s.dir, Options{})
	release, err := other.Acquire(one.Digest)
	must(t, err)
	if collect(all); !has(one.Digest) {
		t.Fatal("a template in use is gone")
	}
	release()
	// In use by a sandbox whose daemon is gone.
	must(t, os.Mkdir(filepath.Join(instances, "in1"), 0o700))
	record := filepath.Join(instances, "in1", "config.json")
	must(t, os.WriteFile(record, []byte(`{"root":{"path":"`+one.Root.Dir+`"}}`), 0o600))
	if collect(all); !has(one.Digest) {
		t.Fatal("what a live sandbox starts from is gone")
	}
	must(t, os.Remove(record))
	if c := collect(all); !slices.Equal(c.Templates, []string{one.Digest}) || has(one.Digest) || !has(two.Digest) {
		t.Errorf("collected %+v", c)
	}
	// Layers: by age only what no name needs, by size all but what is being read.
	if c := collect(CollectOptions{Size: 1 << 40}); c.Layers != 3 { // a layer and two configs
		t.Errorf("collected %+v", c)
	}
	f, err := blobs{filepath.Join(s.dir, "blobs")}.cached(t.Context(), two.Source.Layers[0])
	must(t, err)
	if c := collect(CollectOptions{}); c.Layers != 0 {
		t.Errorf("a layer being read is gone: %+v", c)
	}
	f.Close()
	if c := collect(CollectOptions{}); c.Layers != 1 {
		t.Errorf("collected %+v", c)
	}
	if !has("a") {
		t.Error("a named template is gone")
	}
	// Uploads nobody built from.
	id, _, err := s.Receive(t.Context(), "t", strings.NewReader("x"))
	must(t, err)
	_, err = s.Build(t.Context(), "b", BuildOptions{Upload: id, Owner: "another"})
	want(t, err, sandbox.KindNotFound, "upload")
	s.uploads[id].since = time.Now().Add(-2 * uploadLives)
	collect(all)
}

// Layouts of the host from before a package upgrade go, the current one stays.
func TestCollectHostLayouts(t *testing.T) {
	s := newStore(t, t.TempDir())
	s.host = fakeRoot(t, map[string]string{"usr/bin/sh": "#!", "bin": "-> usr/bin", "var/lib/dpkg/status": "1"})
	old, err := s.Resolve(t.Context(), Host)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.host.root, "var/lib/dpkg/status"), []byte("upgraded"), 0o644))
	now, err := s.Resolve(t.Context(), Host)
	must(t, err)
	c, err := s.Collect(t.Context(), CollectOptions{})
	must(t, err)
	if old.Digest == now.Digest || !slices.Equal(c.Templates, []string{old.Digest}) {
		t.Errorf("collected %+v; old %s, now %s", c, old.Digest, now.Digest)
	}
}

func init() {
	helpers["image"] = func(dir string) error {
		s, err := Open(dir, Options{Registries: Registries{AnyAddress: true}}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		_, err = s.Build(background, "a", BuildOptions{Image: os.Getenv("FIREBREAK_TEST_IMAGE")})
		return err
	}
}

// A build killed at any of its crash points leaves nothing that the next start
// does not remove, and the template whole or not there.
func TestImageBuildKilled(t *testing.T) {
	r := newRegistry(t, nil)
	r.push("v1", small())
	run := func(dir, arm string) ([]byte, error) {
		cmd := exec.Command(os.Args[0], dir)
		cmd.Env = append(os.Environ(), helperEnv+"=image", "FIREBREAK_TEST_IMAGE="+r.host+"/x:v1", failpoint.Env+"="+arm)
		return cmd.CombinedOutput()
	}
	out, err := run(t.TempDir(), "count")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	points := 0
	for line := range bytes.Lines(out) {
		point, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "failpoint: ")
		if !ok {
			continue
		}
		points++
		dir := t.TempDir()
		if out, err := run(dir, point); err == nil {
			t.Errorf("%s: not killed: %s", point, out)
		}
		s := imageStore(t, dir, Options{})
		noBuildLeft(t, dir)
		all, err := s.List(t.Context())
		must(t, err)
		for _, p := range all {
			if p.Damaged != "" {
				t.Errorf("%s: %+v", point, p)
			} else if p.Name != Host {
				must(t, s.Verify(t.Context(), p.Digest))
			}
		}
		p, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:v1"})
		must(t, err)
		must(t, s.Verify(t.Context(), p.Digest))
	}
	if points < 10 {
		t.Errorf("only %d crash points:\n%s", points, out)
	}
}

// A manifest, a file or a config that was changed afterwards is refused: the
// manifest even where its own digest was mended, too.
func TestTamperedImage(t *testing.T) {
	r := newRegistry(t, nil)
	r.push("v1", small())
	s := imageStore(t, t.TempDir(), Options{})
	p, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:v1"})
	must(t, err)
	dir := filepath.Dir(p.Root.Dir)
	b, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	must(t, err)
	for name, change := range map[string]func(m *manifest){
		"environment": func(m *manifest) { m.Env["LD_PRELOAD"] = "/evil.so" },
		"source":      func(m *manifest) { m.Source.Manifest = "sha256:" + strings.Repeat("0", 64) },
		"directory":   func(m *manifest) { m.Image.WorkDir = "/" },
		"listing":     func(m *manifest) { m.Listing = "sha256:" + strings.Repeat("0", 64) },
	} {
		m, err := decodeManifest(b)
		must(t, err)
		change(&m)
		evil, err := m.encode()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, "manifest.json"), evil, 0o644))
		_, err = imageStore(t, s.dir, Options{}).Resolve(t.Context(), "a")
		if sandbox.KindOf(err) != sandbox.KindUnavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "manifest.json"), b, 0o644))
	must(t, s.Verify(t.Context(), p.Digest))
	must(t, os.WriteFile(filepath.Join(p.Root.Dir, "kept"), []byte("evil"), 0o644))
	want(t, s.Verify(t.Context(), p.Digest), sandbox.KindUnavailable, "template rm")
}

// An entry of the version before images is still read.
func TestManifestVersions(t *testing.T) {
	s := newStore(t, t.TempDir())
	p := fakePack(t, s, "python", "1")
	path := filepath.Join(filepath.Dir(p.Root.Dir), "manifest.json")
	b, err := os.ReadFile(path)
	must(t, err)
	m, err := decodeManifest(b)
	must(t, err)
	for version, ok := range map[int]bool{0: false, 1: true, 2: true, 3: true, 4: false} {
		m.Version = version
		b, err := m.encode()
		must(t, err)
		must(t, os.WriteFile(path, b, 0o644))
		if _, err := newStore(t, s.dir).Resolve(t.Context(), "python"); (err == nil) != ok {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// FuzzUnpack feeds archives to the unpacker. Whatever they hold, nothing appears
// beside the root directory, and what is in it is files, directories and links
// without setuid bits.
func FuzzUnpack(f *testing.F) {
	for _, b := range [][]byte{
		tarOf(f, dir("a"), reg("a/b", "x"), link("l", "../.."), reg("l/x", "y"), hard("h", "a/b"), reg("a/.wh.b", ""), reg(".wh..wh..opq", "")),
		packed(tarOf(f, reg("../x", "x"))), sparseLie("4096"), flood(3), {0x1f, 0x8b}, {0x28, 0xb5, 0x2f, 0xfd},
	} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, layers bool) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "rootfs")
		must(t, os.Mkdir(dir, 0o755))
		root, err := os.OpenRoot(dir)
		must(t, err)
		defer root.Close()
		u := newUnpacker(root, Limits{Bytes: 1 << 20, Entries: 100, Depth: 10, Ratio: 20})
		u.layers, u.packages, u.owners = layers, !layers, layers && os.Geteuid() == 0
		err = u.apply(t.Context(), layer{r: bytes.NewReader(b)}, nil)
		if left, _ := os.ReadDir(outer); len(left) != 1 {
			t.Fatalf("beside the root directory: %v", left)
		}
		if err == nil {
			if err = furnish(root, false); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := list(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if st, err := d.Info(); err == nil && st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
				t.Errorf("%s has mode %v", p, st.Mode())
			}
			return nil
		})
	})
}
