package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

func TestFiles(t *testing.T) {
	w := start(t, &fake{})
	path := "/v1/sandboxes/x/files?path=%2Fhome%2Fa%20b.html"
	content := "<script>0123456789"
	a := w.do("PUT", path+"&mode=755", content)
	a.want(t, 200, `"path":"/home/a b.html"`, `"size":18`)
	a = w.do("GET", path, "")
	if a.status != 200 || a.body != content {
		t.Fatalf("%d %q", a.status, a.body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/octet-stream", "Content-Disposition": `attachment; filename="a b.html"`,
		"X-Content-Type-Options": "nosniff", "Accept-Ranges": "bytes", "Content-Length": "18",
	} {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct {
		header string
		status int
		body   string
		ranged string
	}{
		{"bytes=8-11", 206, "0123", "bytes 8-11/18"},
		{"bytes=8-", 206, "0123456789", "bytes 8-17/18"},
		{"bytes=-3", 206, "789", "bytes 15-17/18"},
		{"bytes=-99", 206, content, "bytes 0-17/18"},
		{"bytes=0-0", 206, "<", "bytes 0-0/18"},
		{"bytes=16-99", 206, "89", "bytes 16-17/18"},
		{"bytes=18-", 416, "", "bytes */18"},
		{"bytes=-0", 416, "", "bytes */18"},
		{"bytes=5-2", 200, content, ""},
		{"bytes=0-1,3-4", 200, content, ""},
		{"lines=0-1", 200, content, ""},
		{"bytes=--1", 200, content, ""},
		{"bytes=+1-2", 200, content, ""},
	} {
		a := w.do("GET", path, "", "Range", c.header)
		if a.status != c.status || c.body != "" && a.body != c.body || a.header.Get("Content-Range") != c.ranged {
			t.Errorf("%s: %d %q %q", c.header, a.status, a.body, a.header.Get("Content-Range"))
		}
	}
	if a := w.do("GET", path, "", "Range", "bytes=0-1", "If-Range", `"x"`); a.status != 200 {
		t.Errorf("If-Range: %d", a.status)
	}
	if a := w.do("GET", path+"&offset=8&length=2", ""); a.body != "01" {
		t.Errorf("offset: %q", a.body)
	}
	w.do("GET", path+"&offset=8", "", "Range", "bytes=0-1").want(t, 400, "exclude")
	if a := w.do("HEAD", path, ""); a.status != 200 || a.header.Get("Content-Length") != "18" || a.body != "" {
		t.Errorf("HEAD: %+v", a)
	}
	w.do("GET", "/v1/sandboxes/x/files?path=nope", "").want(t, 404, `"kind":"not_found"`)
	w.do("GET", "/v1/sandboxes/x/files", "").want(t, 400, "path")
}

func TestArtifacts(t *testing.T) {
	w := start(t, &fake{files: map[string][]byte{"out/a.txt": []byte("hello"), "../x": []byte("no")}})
	a := w.do("GET", "/v1/runs/rn1/artifacts/out/a.txt", "")
	if a.status != 200 || a.body != "hello" || a.header.Get("ETag") != `"sha256:ab"` {
		t.Errorf("%+v", a)
	}
	if a := w.do("GET", "/v1/runs/rn1/artifacts/out/a.txt", "", "Range", "bytes=-2"); a.status != 206 || a.body != "lo" {
		t.Errorf("%+v", a)
	}
	w.do("GET", "/v1/runs/rn1/artifacts/nope", "").want(t, 404, `"kind":"not_found"`)
	w.do("GET", "/v1/runs/rn1/artifacts/", "").want(t, 404, "openapi")
}

type brokenReader struct{ good int }

func (r *brokenReader) Read(p []byte) (int, error) {
	if r.good == 0 {
		return 0, errors.New("the guest is gone")
	}
	n := min(r.good, len(p))
	r.good -= n
	return n, nil
}
func (r *brokenReader) Close() error { return nil }

// TestBrokenDownload: whoever gets less than the file is told so.
func TestBrokenDownload(t *testing.T) {
	for name, info := range map[string]*v1.FileInfo{"sized": {Name: "f", Size: 1 << 20}, "unknown size": {Name: "f"}} {
		f := &fake{open: func(int64, int64) (io.ReadCloser, *v1.FileInfo, error) {
			return &brokenReader{good: 300 << 10}, info, nil
		}}
		w := start(t, f)
		req, _ := http.NewRequest("GET", "http://"+w.addr+"/v1/sandboxes/x/files?path=f", nil)
		req.Header.Set("Authorization", "Bearer all")
		res, err := http.DefaultClient.Do(req) // takes gzip: nothing may have been sent yet
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: half a file looks whole", name)
		}
		if !strings.Contains(w.log.String(), "the guest is gone") {
			t.Errorf("%s: not in the log", name)
		}
	}
}

// TestGrowingFile: a file that grew after its size was told does not break the
// framing of the answer.
func TestGrowingFile(t *testing.T) {
	f := &fake{open: func(int64, int64) (io.ReadCloser, *v1.FileInfo, error) {
		return io.NopCloser(strings.NewReader("longer than said")), &v1.FileInfo{Name: "f\r\nX: y\"", Size: 6}, nil
	}}
	w := start(t, f)
	a := w.do("GET", "/v1/sandboxes/x/files?path=f", "")
	if a.body != "longer" || a.header.Get("X") != "" {
		t.Errorf("%+v", a)
	}
}

// TestUploadBreaksOff: half an upload is an error to the operation.
func TestUploadBreaksOff(t *testing.T) {
	got := make(chan error, 1)
	f := &fake{write: func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		got <- err
		return err
	}}
	w := start(t, f)
	c := rawConn(t, w.addr)
	io.WriteString(c, "PUT /v1/sandboxes/x/files?path=f HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer all\r\nContent-Length: 1000\r\n\r\nhalf")
	c.Close()
	if err := <-got; err == nil || !strings.Contains(err.Error(), "ended early") {
		t.Errorf("the operation saw %v", err)
	}
}

// TestUploadRefused: an answer reaches a caller that is still sending.
func TestUploadRefused(t *testing.T) {
	f := &fake{write: func(io.Reader) error { return errors.New("no") }}
	w := start(t, f)
	w.do("PUT", "/v1/sandboxes/x/files?path=f", string(bytes.Repeat([]byte("x"), 4<<20))).want(t, 500)
}
