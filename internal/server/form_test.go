package server

import (
	"bytes"
	"compress/gzip"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
)

func zip(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// form makes a form of pairs of a Content-Disposition and a content.
func form(t *testing.T, pairs ...string) (body, kind string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		p, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {pairs[i]}})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(p, pairs[i+1])
	}
	w.Close()
	return b.String(), w.FormDataContentType()
}

// TestForm: each part is stored under its whole file name, or one under path.
func TestForm(t *testing.T) {
	f := &fake{}
	w := start(t, f)
	const at = "/v1/sandboxes/x/files"
	body, kind := form(t, `form-data; name="file"; filename="/abs/a b"`, "one", `form-data; name="note"`, "no file",
		`form-data; name="file"; filename="dir/../ü"`, "two")
	w.do("POST", at, body, "Content-Type", kind).want(t, 200, `"path":"/abs/a b"`, `"path":"dir/../ü"`)
	for path, want := range map[string]string{"/abs/a b": "one", "dir/../ü": "two"} {
		if got, _ := f.file(path); string(got) != want {
			t.Errorf("%s: %q", path, got)
		}
	}
	w.do("POST", at, zip(t, body), "Content-Type", kind, "Content-Encoding", "gzip").want(t, 200, `"path":"/abs/a b"`)
	one, kind1 := form(t, `form-data; name="file"; filename="x"`, "three")
	w.do("POST", at+"?path=%2Fthere&user=root", one, "Content-Type", kind1).want(t, 200, `"path":"/there"`)
	if got, _ := f.file("/there"); string(got) != "three" {
		t.Errorf("%q", got)
	}
	w.do("POST", at+"?path=there", body, "Content-Type", kind).want(t, 400, "path names one file")
	w.do("POST", at, one, "Content-Type", "text/plain").want(t, 415, "no form")
	w.do("POST", at, one[:len(one)-30], "Content-Type", kind1).want(t, 400, "incomplete")
	w.do("POST", at, body[:len(body)-30], "Content-Type", kind).want(t, 400, "incomplete", "/abs/a b")
	empty, kind2 := form(t, `form-data; name="note"`, "x")
	w.do("POST", at, empty, "Content-Type", kind2).want(t, 400, "holds no file")
	long, kind3 := form(t, `form-data; name="file"; filename="`+strings.Repeat("x", 5000)+`"`, "x")
	w.do("POST", at, long, "Content-Type", kind3).want(t, 400, "path")
	unknown, kind4 := form(t, `form-data; name="file"; filename="a"`, "x")
	w.do("POST", at+"?data=eA==", unknown, "Content-Type", kind4).want(t, 400)
}

// TestPackedBodies: gzip both ways, damage told, and no other coding.
func TestPackedBodies(t *testing.T) {
	f := &fake{}
	w := start(t, f)
	const at = "/v1/sandboxes/x/files?path=f"
	content := strings.Repeat("0123456789", 1000)
	w.do("PUT", at, zip(t, content), "Content-Encoding", "gzip").want(t, 200, `"size":10000`)
	for what, body := range map[string]string{"no gzip": content, "cut off": zip(t, content)[:40], "damaged": zip(t, content)[:50] + "xxxx", "behind its end": zip(t, content) + "x"} {
		w.do("PUT", at, body, "Content-Encoding", "gzip").want(t, 400, "no valid gzip")
		if got, _ := f.file("f"); string(got) != content {
			t.Errorf("%s: it was stored", what)
		}
	}
	w.do("PUT", at, content, "Content-Encoding", "br").want(t, 415, "not understood")

	get := func(header ...string) answer {
		t.Helper()
		return w.do("GET", at, "", header...)
	}
	a := get("Accept-Encoding", "br, gzip;q=0.5")
	if a.status != 200 || a.header.Get("Content-Encoding") != "gzip" || a.header.Get("Vary") != "Accept-Encoding" || len(a.body) > 500 {
		t.Fatalf("%d %v, %d bytes", a.status, a.header, len(a.body))
	}
	z, err := gzip.NewReader(strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || string(got) != content {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for _, none := range []string{"identity", "gzip;q=0", "gzip; q=0.0", "br", "gzipped"} {
		if a := get("Accept-Encoding", none); a.header.Get("Content-Encoding") != "" || a.body != content || a.header.Get("Content-Length") != "10000" {
			t.Errorf("%s: %v", none, a.header)
		}
	}
	if a := get("Accept-Encoding", "gzip", "Range", "bytes=0-3"); a.status != 206 || a.body != "0123" || a.header.Get("Content-Encoding") != "" {
		t.Errorf("a range: %d %q", a.status, a.body)
	}
	var busy []*gzip.Writer
	for range maxPackers {
		z, ok := takePacker()
		if !ok {
			t.Fatal("compressors are missing")
		}
		busy = append(busy, z)
	}
	if a := get("Accept-Encoding", "gzip"); a.status != 200 || a.header.Get("Content-Encoding") != "" || a.body != content {
		t.Errorf("while all compressors are busy: %d %v", a.status, a.header)
	}
	for _, z := range busy {
		returnPacker(z)
	}
	if a := get("Accept-Encoding", "gzip"); a.header.Get("Content-Encoding") != "gzip" {
		t.Errorf("when they are idle again: %v", a.header)
	}
	w.do("PUT", at, "short")
	if a := get("Accept-Encoding", "gzip"); a.body != "short" || a.header.Get("Content-Encoding") != "" {
		t.Errorf("a short one: %q", a.body)
	}
	w.do("PUT", at, content)
	if a := w.do("HEAD", at, "", "Accept-Encoding", "gzip"); a.status != http.StatusOK || a.header.Get("Content-Length") != "10000" {
		t.Errorf("HEAD: %d %v", a.status, a.header)
	}
}
