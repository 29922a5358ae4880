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
	"net/http"
)

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
