package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// peak is the most memory the server has held, in MiB.
func (s *server) peak(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb >> 10
}

// TestLargeFiles: files larger than the server's memory may grow by go in and out,
// 1 GiB as it is, a quarter of that packed and in a form; a small body that unpacks
// to more than the disk holds is stored not at all.
func TestLargeFiles(t *testing.T) {
	const whole, size = 1 << 30, 256 << 20
	w := newWorld(t)
	s := w.serve()
	_, body, _ := s.do("POST", "/v1/sandboxes", fmt.Sprintf(`{"limits":{"disk_bytes":%d}}`, whole+64<<20))
	var sb struct{ ID string }
	if json.Unmarshal([]byte(body), &sb); sb.ID == "" {
		t.Fatal(body)
	}
	files := s.url + "/v1/sandboxes/" + sb.ID + "/files"
	call := func(method, url string, body io.Reader, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.key)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	want := func(res *http.Response, status int) string {
		t.Helper()
		b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<16))
		if res.StatusCode != status {
			t.Fatalf("%d %s", res.StatusCode, b)
		}
		return string(b)
	}
	before := s.peak(t)
	begun := time.Now()
	want(call("PUT", files+"?path=plain", io.LimitReader(zeros{}, whole)), 200)
	up := time.Since(begun)
	fetch(t, call("GET", files+"?path=plain", nil), whole)
	want(call("DELETE", files+"?path=plain", nil), 204)
	want(call("PUT", files+"?path=packed", zipped(size), "Content-Encoding", "gzip"), 200)
	form, kind := formOf(size, "dir/a", "dir/b")
	mustContain(t, "form", want(call("POST", files, form, "Content-Type", kind), 200), `"name":"a"`, `"name":"b"`)
	fetch(t, call("GET", files+"?path=packed", nil), size)
	mustContain(t, "a bomb", want(call("PUT", files+"?path=bomb", zipped(4*size), "Content-Encoding", "gzip"), 507), "no_space")
	if list := want(call("GET", files+"/list?path=.", nil), 200); strings.Contains(list, "bomb") {
		t.Errorf("it left something: %s", list)
	}
	if grown := s.peak(t) - before; grown > 96 {
		t.Errorf("the server grew by %d MiB", grown)
	} else {
		t.Logf("1 GiB went in within %s; the server grew by %d MiB", up.Round(time.Millisecond), grown)
	}
}

// fetch reads a download to its end. It travels packed: this client asks for that by
// itself.
func fetch(t *testing.T, res *http.Response, size int64) {
	t.Helper()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// zipped is n zeros, packed.
func zipped(n int64) io.Reader {
	r, w := io.Pipe()
	go func() {
		z := gzip.NewWriter(w)
		_, err := io.CopyN(z, zeros{}, n)
		z.Close()
		w.CloseWithError(err)
	}()
	return r
}

// formOf is a form of files, size in all.
func formOf(size int64, names ...string) (io.Reader, string) {
	var head bytes.Buffer
	f := multipart.NewWriter(&head)
	var parts []io.Reader
	for _, name := range names {
		head.Reset()
		_, _ = f.CreateFormFile("file", name)
		parts = append(parts, strings.NewReader(head.String()), io.LimitReader(zeros{}, size/int64(len(names))))
	}
	head.Reset()
	f.Close()
	return io.MultiReader(append(parts, strings.NewReader(head.String()))...), f.FormDataContentType()
}
