//go:build linux

package internet

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Repository serves a git repository over HTTP, as git itself does it: files are
// what is committed on the branch main. The URL is https://NAME/REPOSITORY.git.
func (n *Internet) Repository(repository string, files map[string]string) (http.Handler, error) {
	dir, err := os.MkdirTemp(n.dir, "git-")
	if err != nil {
		return nil, err
	}
	work, bare := filepath.Join(dir, "work"), filepath.Join(dir, "srv", repository+".git")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(work, name)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	git := func(args ...string) (string, error) {
		cmd := exec.Command("git", append([]string{"-C", work, "-c", "user.name=a", "-c", "user.email=a@b.example"}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("git %q: %w: %s", args, err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "first"}, {"clone", "-q", "--bare", ".", bare}} {
		if _, err := git(args...); err != nil {
			return nil, err
		}
	}
	programs, err := git("--exec-path")
	if err != nil {
		return nil, err
	}
	return &cgi.Handler{Path: filepath.Join(programs, "git-http-backend"), Root: "/", Dir: dir, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(bare), "GIT_HTTP_EXPORT_ALL=1", "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}}, nil
}

// PythonIndex is a package index with one package, a module of the same name that
// holds the text. Its address for pip is https://NAME/simple/.
func PythonIndex(module, text string) http.Handler {
	file := module + "-1.0-py3-none-any.whl"
	wheel := pythonWheel(module, text)
	sum := sha256.Sum256(wheel)
	mux := http.NewServeMux()
	mux.HandleFunc("/simple/"+module+"/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!DOCTYPE html><html><body><a href=\"/files/%s#sha256=%x\">%s</a></body></html>", file, sum, file)
	})
	mux.HandleFunc("/files/"+file, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(wheel) })
	return mux
}

// pythonWheel packs a module as pip installs it.
func pythonWheel(module, text string) []byte {
	info := module + "-1.0.dist-info/"
	files := [][2]string{
		{module + ".py", text},
		{info + "METADATA", "Metadata-Version: 2.1\nName: " + module + "\nVersion: 1.0\n"},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	}
	record := ""
	for _, f := range files {
		sum := sha256.Sum256([]byte(f[1]))
		record += fmt.Sprintf("%s,sha256=%s,%d\n", f[0], base64.RawURLEncoding.EncodeToString(sum[:]), len(f[1]))
	}
	files = append(files, [2]string{info + "RECORD", record + info + "RECORD,,\n"})
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range files {
		w, err := z.Create(f[0])
		if err == nil {
			_, _ = w.Write([]byte(f[1]))
		}
	}
	_ = z.Close() // into memory
	return b.Bytes()
}

// NodeRegistry is a package registry with one package, a module that exports what
// the text does. Its address for npm is https://NAME/.
func NodeRegistry(name, text string) http.Handler {
	about := map[string]any{"name": name, "version": "1.0.0", "main": "index.js"}
	manifest, _ := json.Marshal(about)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	for _, f := range [][2]string{{"package/package.json", string(manifest)}, {"package/index.js", text}} {
		_ = t.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1])), Typeflag: tar.TypeReg})
		_, _ = t.Write([]byte(f[1]))
	}
	_ = t.Close()
	_ = z.Close() // into memory
	tarball := b.Bytes()
	sum := sha512.Sum512(tarball)
	mux := http.NewServeMux()
	mux.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) {
		version := map[string]any{"dist": map[string]any{"tarball": "https://" + r.Host + "/" + name + "/-/" + name + "-1.0.0.tgz",
			"integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}}
		for k, v := range about {
			version[k] = v
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"name": name, "dist-tags": map[string]string{"latest": "1.0.0"}, "versions": map[string]any{"1.0.0": version}})
	})
	mux.HandleFunc("/"+name+"/-/"+name+"-1.0.0.tgz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tarball) })
	return mux
}
