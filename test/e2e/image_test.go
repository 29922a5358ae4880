package e2e

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// imageRegistry serves images made by the test, on this machine only.
type imageRegistry struct {
	t     *testing.T
	host  string
	blobs atomic.Int64 // fetched
}

func newImageRegistry(t *testing.T) *imageRegistry {
	t.Helper()
	r := &imageRegistry{t: t}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		h.ServeHTTP(w, q)
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

// push stores an image of one layer under tag.
func (r *imageRegistry) push(tag string, layer []byte, config v1.Config) string {
	r.t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		r.t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err == nil {
		img, err = mutate.Config(img, config)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	ref := r.host + "/" + tag
	to, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(to, img)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return ref
}

// rootTar is a tar file of the programs and of the libraries they need, as they
// are on this machine, and of further files.
func rootTar(t *testing.T, programs map[string]string, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	seen := map[string]bool{}
	add := func(path, from string) {
		if seen[path] {
			return
		}
		seen[path] = true
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(path, "/"), Mode: 0o755, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	for path, from := range programs {
		add(path, from)
		for _, lib := range libraries(t, from) {
			add(lib, lib)
		}
	}
	for path, data := range files {
		w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data))})
		io.WriteString(w, data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// libraries is what the loader would load for a program, and the loader.
func libraries(t *testing.T, program string) []string {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var found []string
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, _ := io.ReadAll(p.Open())
			found = append(found, strings.TrimRight(string(b), "\x00"))
		}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range needed {
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib"} {
			if _, err := os.Stat(filepath.Join(dir, lib)); err == nil {
				found = append(found, filepath.Join(dir, lib))
				break
			}
		}
	}
	return found
}

// staticProgram is one that needs nothing around it.
func staticProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	src := "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() { fmt.Println(\"static, uid\", os.Getuid()) }\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", "app", "main.go")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "app")
}

// TestImage runs code in images from a registry on this machine, in gVisor.
func TestImage(t *testing.T) {
	w := newWorld(t)
	r := newImageRegistry(t)
	// A small distribution: a shell and two tools, and the image's own ideas.
	shell := r.push("tools:v1", rootTar(t, map[string]string{"/bin/sh": "/bin/sh", "/usr/local/bin/cat": "/bin/cat", "/bin/pwd": "/bin/pwd"},
		map[string]string{"srv/app/data": "in the image\n", "etc/passwd": "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/srv/app:/bin/sh\n"}),
		v1.Config{Env: []string{"PATH=/usr/local/bin:/bin", "GREETING=hello"}, WorkingDir: "/srv/app", User: "app"})
	// Nothing but one static program, as FROM scratch makes it.
	static := staticProgram(t)
	scratch := r.push("scratch:v1", rootTar(t, map[string]string{"/app": static}, nil), v1.Config{Entrypoint: []string{"/app"}})

	check := func(what string, res result, stdout string) {
		t.Helper()
		if res.code != 0 || res.stdout != stdout {
			t.Errorf("%s: exit code %d, stdout %q, want %q; stderr:\n%s", what, res.code, res.stdout, stdout, res.stderr)
		}
	}
	check("command", w.run("", "run", "--image", shell, "--", "sh", "-c", "pwd; cat data; echo $GREETING; cd ~user; pwd"),
		"/srv/app\nin the image\nhello\n/home/user\n")
	fetched := r.blobs.Load()
	check("again, and code", w.run("", "run", "--image", shell, "--language", "shell", "-c", "pwd; echo $((6*7)); echo x > f; cat f"), "/home/user\n42\nx\n")
	check("again, recorded", w.run("", "run", "--image", shell, "--input", "/etc/hostname:h", "--", "sh", "-c", "pwd"), "/home/user\n")
	if r.blobs.Load() != fetched || fetched == 0 {
		t.Errorf("%d blobs fetched at first, %d more afterwards", fetched, r.blobs.Load()-fetched)
	}
	check("static program", w.run("", "run", "--image", scratch, "--", "/app"), "static, uid 1000\n")
	res := w.run("", "run", "--image", scratch, "-c", "print(1)")
	if res.code == 0 || !strings.Contains(res.stderr, "hint:") {
		t.Errorf("Python in an image without: %d, %s", res.code, res.stderr)
	}
	res = w.run("", "run", "--template", shell, "--", "true")
	if res.code != 125 || !strings.Contains(res.stderr, "firebreak template build NAME --image "+shell) {
		t.Errorf("an image as a template: %d, %s", res.code, res.stderr)
	}

	// A directory and an archive, through a server.
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	app, err := os.ReadFile(static)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "app"), app, 0o755); err != nil {
		t.Fatal(err)
	}
	s := w.serve()
	for _, args := range [][]string{{"--dir", root}, {"--tar", "-"}} {
		stdin := ""
		if args[0] == "--tar" {
			stdin = string(rootTar(t, map[string]string{"/bin/app": static, "/bin/second": static}, nil))
		}
		if res := w.run(stdin, append([]string{"template", "build", "mine"}, args...)...); res.code != 0 || !strings.HasPrefix(res.stdout, "sha256:") {
			t.Fatalf("%v: %d, %s", args, res.code, res.stderr)
		}
		check(args[0], w.run("", "run", "--template", "mine", "--", "/bin/app"), "static, uid 1000\n")
	}
	// What a server may reach is its operator's to say.
	code, body, _ := s.do("POST", "/v1/templates", `{"image":"`+shell+`2"}`)
	if code != 403 || !strings.Contains(body, "registry_private") {
		t.Errorf("an image on the server's own machine: %d %s", code, body)
	}
	code, body, _ = s.do("GET", "/v1/templates", "")
	var list struct {
		Templates []struct {
			Name   string
			Source struct {
				Kind, Reference, Digest string
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != 200 || !strings.Contains(body, `"reference":"`+shell+`"`) || !strings.Contains(body, `"kind":"archive"`) {
		t.Errorf("%v, %d %s", err, code, body)
	}
	// The name moved from the directory's template to the archive's.
	res = w.run("", "template", "gc", "--unused", "0s", "--layers", "0")
	if res.code != 0 || strings.Count(res.stdout, "sha256:") != 1 {
		t.Errorf("gc: %d, %q, %s", res.code, res.stdout, res.stderr)
	}
}
