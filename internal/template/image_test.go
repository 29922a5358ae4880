package template

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	registryserver "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// testRegistry is a registry in this process that also serves what no sound one
// would.
type testRegistry struct {
	t    *testing.T
	host string
	wrap func(http.Handler) http.Handler

	blobs   atomic.Int64 // GETs of blobs
	handler http.Handler
}

func newRegistry(t *testing.T, wrap func(http.Handler) http.Handler) *testRegistry {
	t.Helper()
	r := &testRegistry{t: t, handler: registryserver.New(registryserver.Logger(log.New(io.Discard, "", 0)))}
	var served http.Handler = r.handler
	if wrap != nil {
		served = wrap(served)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		served.ServeHTTP(w, q)
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

// put stores bytes in the registry behind whatever wraps it.
func (r *testRegistry) put(path, contentType string, body []byte) {
	r.t.Helper()
	method := http.MethodPut
	if strings.Contains(path, "/blobs/uploads/") {
		method = http.MethodPost
	}
	q := httptest.NewRequest(method, path, bytes.NewReader(body))
	q.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, q)
	if w.Code >= 300 {
		r.t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
}

func (r *testRegistry) blob(b []byte) string {
	d := digestOf(b)
	r.put("/v2/x/blobs/uploads/?digest="+d, "application/octet-stream", b)
	return d
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// file is a tar entry.
type file struct {
	tar.Header
	body string
}

func reg(name, body string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body}
}
func prog(name string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755}, "#!"}
}
func dir(name string) file {
	return file{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}
func link(n, to string) file {
	return file{tar.Header{Name: n, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777}, ""}
}
func hard(n, to string) file {
	return file{tar.Header{Name: n, Linkname: to, Typeflag: tar.TypeLink}, ""}
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.Size = int64(len(f.body))
		if f.ModTime.IsZero() {
			f.ModTime = time.Unix(1e9, 0)
		}
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, f.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(b []byte) []byte {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	return z.Bytes()
}

// testImage is an image as a test describes it.
type testImage struct {
	layers [][]byte // plain tar archives
	config v1.Config
	arch   string
	lie    func(m *v1.Manifest, c *v1.ConfigFile) // tampers before anything is stored
	bare   bool                                   // layers are stored as they are
}

// push stores img as x:tag and returns its manifest's digest.
func (r *testRegistry) push(tag string, img testImage) string {
	r.t.Helper()
	c := &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: img.config, RootFS: v1.RootFS{Type: "layers"}}
	if img.arch != "" {
		c.Architecture = img.arch
	}
	m := &v1.Manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json"}
	for _, l := range img.layers {
		z := packed(l)
		if img.bare {
			z = l
		}
		d, _ := v1.NewHash(r.blob(z))
		diff, _ := v1.NewHash(digestOf(l))
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, diff)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Size: int64(len(z)), Digest: d})
	}
	if img.lie != nil {
		img.lie(m, c)
	}
	raw, err := json.Marshal(c)
	must(r.t, err)
	d, _ := v1.NewHash(r.blob(raw))
	m.Config = v1.Descriptor{MediaType: "application/vnd.oci.image.config.v1+json", Size: int64(len(raw)), Digest: d}
	b, err := json.Marshal(m)
	must(r.t, err)
	r.put("/v2/x/manifests/"+tag, string(m.MediaType), b)
	r.put("/v2/x/manifests/"+digestOf(b), string(m.MediaType), b)
	return digestOf(b)
}

func imageStore(t *testing.T, dir string, o Options) *Store {
	t.Helper()
	o.Registries.AnyAddress = true
	s, err := Open(dir, o, slog.New(slog.DiscardHandler))
	must(t, err)
	return s
}

// noBuildLeft fails when a build left anything but templates and whole layers.
func noBuildLeft(t *testing.T, dir string) {
	t.Helper()
	noTemporaries(t, dir)
	names, _ := readDirNames(filepath.Join(dir, "blobs"))
	for _, n := range names {
		if !reEntry.MatchString(n) {
			t.Errorf("blobs/%s was left behind", n)
		}
	}
}

func fastRetries(t *testing.T) {
	old := backoff
	backoff.Duration = 10 * time.Millisecond
	t.Cleanup(func() { backoff = old })
}

// small is an image with a bit of everything.
func small() testImage {
	return testImage{
		layers: [][]byte{
			tarOf(t0{}, dir("usr/"), dir("usr/local/bin"), prog("usr/local/bin/python3.13"), link("usr/local/bin/python3", "python3.13"),
				prog("bin/busybox"), link("bin/sh", "/bin/busybox"), dir("app"), reg("etc/passwd", "root:x:0:0:root:/root:/bin/ash\nnode:x:1000:1000::/home/node:/bin/sh\n"),
				reg("gone/a", "1"), reg("kept", "old"), reg("etc/hostname", "build-machine\n")),
			tarOf(t0{}, reg(".wh.gone", ""), reg("kept", "new"), file{tar.Header{Name: "app/su", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 7, Gid: 8,
				PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}}, "s"}),
		},
		config: v1.Config{Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=/root", "BAD", "NUL=a\x00b"}, WorkingDir: "/app",
			User: "node", Entrypoint: []string{"python3"}, Labels: map[string]string{"a": "b"}},
	}
}

// t0 stands for a test where tarOf cannot fail.
type t0 struct{ testing.TB }

func (t0) Helper()           {}
func (t0) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func TestBuildImage(t *testing.T) {
	r := newRegistry(t, nil)
	digest := r.push("v1", small())
	dir := t.TempDir()
	s := imageStore(t, dir, Options{})
	var stages []Stage
	p, err := s.Build(t.Context(), "", BuildOptions{Image: r.host + "/x:v1", Progress: func(p Progress) {
		if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
			stages = append(stages, p.Stage)
		}
	}})
	must(t, err)
	if !slices.Equal(stages, []Stage{StageResolve, StageDownload, StageUnpack, StageSetUp, StageSeal, StageDone}) {
		t.Errorf("stages %v", stages)
	}
	if !strings.HasPrefix(p.Name, "image-127.0.0.1-") || !strings.HasSuffix(p.Name, "-x-v1") || !reName.MatchString(p.Name) {
		t.Errorf("name %q", p.Name)
	}
	if !slices.Equal(p.Packs, []string{Python, Shell}) || p.Default != Python || p.WorkDir() != "/app" {
		t.Errorf("runs %v, starts in %q", p.Packs, p.WorkDir())
	}
	if p.Env["PATH"] != "/usr/local/bin:/usr/bin:/bin" || p.Env["LANG"] != "C.UTF-8" || len(p.Env) != 2 {
		t.Errorf("environment %v", p.Env)
	}
	if p.Source.Kind != "image" || p.Source.Reference != r.host+"/x:v1" || p.Source.Digest != digest || p.Source.Manifest != digest || len(p.Source.Layers) != 2 {
		t.Errorf("source %+v", p.Source)
	}
	if p.Image.User != "node" || p.Image.Labels["a"] != "b" || p.Image.Entrypoint[0] != "python3" {
		t.Errorf("config %+v", p.Image)
	}
	root := p.Root.Dir
	for name, want := range map[string]string{
		"kept": "new", "app/su": "s", "etc/machine-id": "", bootID: "",
		"etc/passwd": "root:x:0:0:root:/root:/bin/ash\nuser:x:1000:1000:user:/home/user:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n",
		"etc/group":  "root:x:0:\nuser:x:1000:\n",
	} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "etc/hostname")); err != nil || to != skeletonLinks["etc/hostname"] {
		t.Errorf("the image's host name is %q, %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(root, "gone")); err == nil {
		t.Error("what a layer took away is there")
	}
	st, err := os.Lstat(filepath.Join(root, "app/su"))
	must(t, err)
	if st.Mode() != 0o755 || !st.ModTime().Equal(time.Unix(1e9, 0)) {
		t.Errorf("mode %v, time %v", st.Mode(), st.ModTime())
	}
	if o := ownerOf(st); os.Geteuid() == 0 && (o.uid != 7 || o.gid != 8) {
		t.Errorf("owner %v", o)
	}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "var/tmp", ".firebreak", "home/user"} {
		if st, err := os.Lstat(filepath.Join(root, d)); err != nil || !st.IsDir() {
			t.Errorf("no mount point %s: %v", d, err)
		}
	}
	must(t, s.Verify(t.Context(), p.Digest))
	noBuildLeft(t, dir)

	// The same tag again: nothing is fetched, and another name works as well.
	before := r.blobs.Load()
	again, err := s.Build(t.Context(), "mine", BuildOptions{Image: r.host + "/x:v1"})
	must(t, err)
	if again.Digest != p.Digest || again.Name != "mine" || r.blobs.Load() != before {
		t.Errorf("%s %s, %d blobs fetched", again.Name, again.Digest, r.blobs.Load()-before)
	}
	// In another store: the same digest.
	other, err := imageStore(t, t.TempDir(), Options{}).Build(t.Context(), "other", BuildOptions{Image: r.host + "/x@" + digest})
	must(t, err)
	if other.Digest != p.Digest {
		t.Errorf("another store's digest is %s, not %s", other.Digest, p.Digest)
	}
	// The tag moves: the name moves with it, and only the new layer is fetched.
	img := small()
	img.layers = append(img.layers, tarOf(t, reg("more", "x")))
	r.push("v1", img)
	before = r.blobs.Load()
	moved, err := s.Build(t.Context(), "mine", BuildOptions{Image: r.host + "/x:v1"})
	must(t, err)
	if moved.Digest == p.Digest || r.blobs.Load()-before != 2 { // the config and the layer
		t.Errorf("%s, %d blobs fetched", moved.Digest, r.blobs.Load()-before)
	}
	if got, err := s.Resolve(t.Context(), "mine"); err != nil || got.Digest != moved.Digest || got.Source.Digest == digest {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := s.Resolve(t.Context(), p.Digest); err != nil || got.Digest != p.Digest {
		t.Errorf("the old one: %v", err)
	}
}

// What only differs in what it says about running it is another template.
func TestImageConfigIsPartOfTheDigest(t *testing.T) {
	r := newRegistry(t, nil)
	s := imageStore(t, t.TempDir(), Options{})
	img := small()
	r.push("a", img)
	img.config.Env = append(img.config.Env, "X=1")
	r.push("b", img)
	a, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:a"})
	must(t, err)
	b, err := s.Build(t.Context(), "b", BuildOptions{Image: r.host + "/x:b"})
	must(t, err)
	if a.Digest == b.Digest || b.Env["X"] != "1" || a.Env["X"] != "" {
		t.Errorf("%s %v, %s %v", a.Digest, a.Env, b.Digest, b.Env)
	}
}

func TestMultiPlatform(t *testing.T) {
	r := newRegistry(t, nil)
	s := imageStore(t, t.TempDir(), Options{})
	other := small()
	other.arch = "sparc"
	ours, theirs := r.push("ours", small()), r.push("theirs", other)
	index := func(tag string, arch map[string]string) {
		m := v1.IndexManifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json"}
		for d, a := range arch {
			h, _ := v1.NewHash(d)
			m.Manifests = append(m.Manifests, v1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: h, Size: 1, Platform: &v1.Platform{OS: "linux", Architecture: a}})
		}
		b, err := json.Marshal(m)
		must(t, err)
		r.put("/v2/x/manifests/"+tag, string(m.MediaType), b)
	}
	index("both", map[string]string{ours: runtime.GOARCH, theirs: "sparc"})
	index("none", map[string]string{theirs: "sparc"})
	p, err := s.Build(t.Context(), "both", BuildOptions{Image: r.host + "/x:both"})
	must(t, err)
	if p.Source.Manifest != ours || p.Source.Digest == ours {
		t.Errorf("%+v", p.Source)
	}
	_, err = s.Build(t.Context(), "none", BuildOptions{Image: r.host + "/x:none"})
	want(t, err, sandbox.KindUnsupported, "linux/sparc")
	_, err = s.Build(t.Context(), "none", BuildOptions{Image: r.host + "/x:theirs"})
	want(t, err, sandbox.KindUnsupported, "linux/sparc")
}

func TestImageRequests(t *testing.T) {
	r := newRegistry(t, nil)
	fastRetries(t)
	s := imageStore(t, t.TempDir(), Options{})
	for _, c := range []struct {
		name, image string
		kind        sandbox.Kind
		hint        string
	}{
		{"a", r.host + "/none:v1", sandbox.KindNotFound, "check the name"},
		{"a", "a b", sandbox.KindInvalid, "such as"},
		{"a", "UPPER/case", sandbox.KindInvalid, "such as"},
		{"a", "x@sha256:123", sandbox.KindInvalid, "such as"},
		{"a", strings.Repeat("a", 2000), sandbox.KindInvalid, "such as"},
		{"python", r.host + "/x:v1", sandbox.KindInvalid, "my-python"},
		{"host", r.host + "/x:v1", sandbox.KindInvalid, "my-host"},
		{"No", r.host + "/x:v1", sandbox.KindInvalid, "lower-case"},
		{"a", "169.254.169.254/x:v1", sandbox.KindDenied, ""},
		{"a", "127.0.0.1:1/x:v1", sandbox.KindUnavailable, "registry_insecure"},
	} {
		_, err := s.Build(t.Context(), c.name, BuildOptions{Image: c.image})
		want(t, err, c.kind, c.hint)
	}
	noBuildLeft(t, s.dir)
	for name, want := range map[string]string{
		"python:3.13": "python-3.13", "docker.io/library/python": "python-latest", "ghcr.io/Owner/app:v1": "", "ghcr.io/owner/app:V1": "ghcr.io-owner-app-v1",
		"localhost:5000/x": "localhost-5000-x-latest", "x@sha256:" + strings.Repeat("a", 64): "x-aaaaaaaaaaaa",
	} {
		ref, err := parseReference(name)
		if err != nil && want == "" {
			continue
		}
		must(t, err)
		if got := nameFor(ref); got != want {
			t.Errorf("%s is called %q, want %q", name, got, want)
		}
	}
	long, err := parseReference("example.com/" + strings.Repeat("a", 200) + ":v1")
	must(t, err)
	if n := nameFor(long); !reName.MatchString(n) {
		t.Errorf("name %q", n)
	}
	for name, is := range map[string]bool{"python:3": true, "a/b": true, "python": false, "sha256:" + strings.Repeat("0", 64): false, "../names/x": false, "sha256:123": false} {
		if LooksLikeImage(name) != is {
			t.Errorf("%q looks like an image: %v", name, !is)
		}
	}
	_, err = s.Resolve(t.Context(), "docker.io/library/python:3")
	want(t, err, sandbox.KindNotFound, "firebreak template build NAME --image docker.io/library/python:3")
}

func TestSafeAddresses(t *testing.T) {
	fastRetries(t)
	r := newRegistry(t, nil)
	r.push("v1", small())
	build := func(o Registries, image string) error {
		s, err := Open(t.TempDir(), Options{Registries: o}, slog.New(slog.DiscardHandler))
		must(t, err)
		_, err = s.Build(t.Context(), "a", BuildOptions{Image: image})
		return err
	}
	port := r.host[strings.LastIndex(r.host, ":"):]
	want(t, build(Registries{}, r.host+"/x:v1"), sandbox.KindDenied, "registry_private")
	want(t, build(Registries{}, "localhost"+port+"/x:v1"), sandbox.KindDenied, "registry_private")
	must(t, build(Registries{Private: []string{r.host}}, r.host+"/x:v1"))
	must(t, build(Registries{Private: []string{"127.0.0.1"}}, r.host+"/x:v1"))
	want(t, build(Registries{Private: []string{"localhost"}}, r.host+"/x:v1"), sandbox.KindDenied, "registry_private")
	for _, a := range []string{"169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "[64:ff9b::a9fe:a9fe]", "0.0.0.0", "[fd00:ec2::254]", "100.100.100.200",
		"168.63.129.16", "240.0.0.1", "[2002:7f00:1::]", "[64:ff9b:1::a00:1]", "[::7f00:1]"} {
		want(t, build(Registries{AnyAddress: true, Insecure: []string{strings.Trim(a, "[]"), a}}, a+":80/x:v1"), sandbox.KindDenied, "")
	}
	for _, a := range []string{"10.0.0.1", "192.168.1.1", "172.16.0.1", "[fc00::1]", "100.64.0.1", "[::ffff:127.0.0.1]"} {
		want(t, build(Registries{Insecure: []string{strings.Trim(a, "[]"), a}}, a+":80/x:v1"), sandbox.KindDenied, "registry_private")
	}
}

// Credentials go to the registry they are for, by either scheme, and to no host
// it redirects to.
func TestCredentials(t *testing.T) {
	fastRetries(t)
	const user, password, token = "robot", "hunter2-secret", "token-secret"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	var mu sync.Mutex
	var elsewhere []string // Authorization headers the redirect's target saw
	var blobOf func(path string) []byte
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		elsewhere = append(elsewhere, q.Header.Get("Authorization"))
		mu.Unlock()
		w.Write(blobOf(q.URL.Path))
	}))
	defer other.Close()
	for _, scheme := range []string{"basic", "bearer"} {
		t.Run(scheme, func(t *testing.T) {
			var r *testRegistry
			r = newRegistry(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
					got := q.Header.Get("Authorization")
					switch {
					case q.URL.Path == "/token" && got == basic:
						fmt.Fprintf(w, `{"token":%q}`, token)
					case scheme == "basic" && got == basic, scheme == "bearer" && got == "Bearer "+token:
						if strings.Contains(q.URL.Path, "/blobs/") {
							http.Redirect(w, q, other.URL+q.URL.Path, http.StatusTemporaryRedirect)
							return
						}
						h.ServeHTTP(w, q)
					default:
						challenge := `Basic realm="x"`
						if scheme == "bearer" {
							challenge = `Bearer realm="http://` + r.host + `/token",service="x"`
						}
						w.Header().Set("WWW-Authenticate", challenge)
						w.WriteHeader(http.StatusUnauthorized)
					}
				})
			})
			blobOf = func(path string) []byte {
				w := httptest.NewRecorder()
				r.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				return w.Body.Bytes()
			}
			r.push("v1", small())
			auth := filepath.Join(t.TempDir(), "auth.json")
			write := func(text string) { must(t, os.WriteFile(auth, []byte(text), 0o600)) }
			s := imageStore(t, t.TempDir(), Options{Registries: Registries{AuthFile: auth}})
			build := func() error {
				_, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:v1"})
				if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), token)) {
					t.Errorf("a secret in %v", err)
				}
				return err
			}
			write(`{"auths":{"elsewhere.example":{"username":"robot","password":"hunter2-secret"}}}`)
			want(t, build(), sandbox.KindDenied, "registry_auth_file")
			write(`{"auths":{"` + r.host + `":{"username":"robot","password":"hunter2-secret-wrong"}}}`)
			want(t, build(), sandbox.KindDenied, "registry_auth_file")
			write(`{"credHelpers":{"` + r.host + `":"touch-pwned"}}`)
			want(t, build(), sandbox.KindUnsupported, "under auths")
			write(`{"auths":{"` + r.host + `":{"auth":"hunter2-secret"}}}`)
			want(t, build(), sandbox.KindInvalid, "docker's")
			write(`hunter2-secret`)
			want(t, build(), sandbox.KindInvalid, "docker's")
			write(`{"auths":{"http://` + r.host + `/v2/":{"auth":"` + strings.TrimPrefix(basic, "Basic ") + `"}}}`)
			must(t, os.Chmod(auth, 0o666))
			want(t, build(), sandbox.KindDenied, "chmod")
			must(t, os.Chmod(auth, 0o600))
			must(t, build())
			noBuildLeft(t, s.dir)
			mu.Lock()
			defer mu.Unlock()
			if len(elsewhere) == 0 {
				t.Error("nothing was redirected")
			}
			for _, h := range elsewhere {
				if h != "" {
					t.Errorf("another host got %q", h)
				}
			}
			elsewhere = nil
		})
	}
}

// Connections that break, servers that fail and blobs that rot are got over.
func TestImageRetries(t *testing.T) {
	fastRetries(t)
	var failures atomic.Int64
	r := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if strings.Contains(q.URL.Path, "/blobs/") && failures.Add(1)%3 != 0 {
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, q)
				w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
				w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, q)
		})
	})
	r.push("v1", small())
	s := imageStore(t, t.TempDir(), Options{})
	p, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:v1"})
	must(t, err)
	if failures.Load() < 6 {
		t.Errorf("only %d requests", failures.Load())
	}
	// A rotten layer in the cache is noticed and fetched again.
	must(t, s.Remove(t.Context(), "a"))
	for _, l := range p.Source.Layers {
		path := blobs{filepath.Join(s.dir, "blobs")}.path(l)
		b, err := os.ReadFile(path)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.WriteFile(path, b, 0o600))
	}
	again, err := s.Build(t.Context(), "a", BuildOptions{Image: r.host + "/x:v1"})
	must(t, err)
	if again.Digest != p.Digest {
		t.Error("another digest")
	}
	noBuildLeft(t, s.dir)
}

// Builds of one image at once, in two stores on one directory as two processes
// would have, fetch each blob once.
func TestConcurrentImageBuilds(t *testing.T) {
	r := newRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if strings.Contains(q.URL.Path, "/blobs/") {
				time.Sleep(50 * time.Millisecond)
			}
			h.ServeHTTP(w, q)
		})
	})
	r.push("v1", small())
	dir := t.TempDir()
	stores := []*Store{imageStore(t, dir, Options{}), imageStore(t, dir, Options{})}
	var wg sync.WaitGroup
	digests := make([]string, 6)
	for i := range digests {
		wg.Go(func() {
			p, err := stores[i%2].Build(t.Context(), fmt.Sprintf("n%d", i), BuildOptions{Image: r.host + "/x:v1"})
			if err != nil {
				t.Error(err)
			}
			digests[i] = p.Digest
		})
	}
	wg.Wait()
	if len(slices.Compact(digests)) != 1 || r.blobs.Load() != 3 {
		t.Errorf("%q, %d blobs fetched", digests, r.blobs.Load())
	}
	noBuildLeft(t, dir)
}
