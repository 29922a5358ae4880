package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDirectories: a directory goes in and comes out by cp, with its links, modes
// and empty directories on the way in, and with nothing that could hurt on the way
// out.
func TestDirectories(t *testing.T) {
	s := newWorld(t).serve()
	id := s.sandbox()
	src := filepath.Join(t.TempDir(), "src")
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	put("run.sh", "echo ran", 0o755)
	put("a/b/ü name", strings.Repeat("deep", 100_000), 0o640)
	for i := range 300 {
		put(fmt.Sprintf("many/%03d", i), "x", 0o644)
	}
	if err := os.MkdirAll(filepath.Join(src, "empty/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../run.sh", filepath.Join(src, "a/b/link")); err != nil {
		t.Fatal(err)
	}
	if r := s.run("", "cp", src, id+":"); r.code != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	r := s.run("", "exec", id, "--", "sh", "-c", `cd src; ./run.sh; sh a/b/link; readlink a/b/link; stat -c %a run.sh "a/b/ü name"; ls many | wc -l; ls -d empty/dir; wc -c <"a/b/ü name"`)
	if want := "ran\nran\n../../run.sh\n755\n640\n300\nempty/dir\n400000\n"; r.stdout != want {
		t.Errorf("inside: %+v", r)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	if r := s.run("", "cp", src, id+":refused"); r.code != 2 || !strings.Contains(r.stderr, filepath.Join(src, "out")) || !strings.Contains(r.stderr, "absolute") {
		t.Errorf("a link out: %+v", r)
	}
	// Out again, with what a stranger adds.
	r = s.run("", "exec", id, "--", "sh", "-c", `cd src; mkfifo pipe; ln -s /etc/passwd abs; ln -s ../../../x up; ln -s a/../../x odd; printf x >"$(printf 'bell\007')"; mkdir closed; touch closed/f; chmod 0 closed; chmod u+s run.sh`)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	dst := filepath.Join(t.TempDir(), "dst")
	r = s.run("", "cp", id+":src", dst)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	for _, skipped := range []string{"src/pipe: ", "src/abs: ", "src/up: ", "src/odd: ", "src/bell?: ", "src/closed: ", "src/a/b/link: "} {
		if !strings.Contains(r.stderr, "skipped "+skipped) {
			t.Errorf("%s is not said: %s", skipped, r.stderr)
		}
	}
	if n := strings.Count(r.stderr, "\n"); n != 7 {
		t.Errorf("%d lines: %s", n, r.stderr)
	}
	if b, err := os.ReadFile(filepath.Join(dst, "a/b/ü name")); err != nil || string(b) != strings.Repeat("deep", 100_000) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if st, err := os.Stat(filepath.Join(dst, "run.sh")); err != nil || st.Mode()&0o7111 != 0 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if list, _ := os.ReadDir(filepath.Join(dst, "many")); len(list) != 300 {
		t.Errorf("%d of many", len(list))
	}
	if _, err := os.Stat(filepath.Join(dst, "empty/dir")); err != nil {
		t.Error(err)
	}
}

// tarOf is a tar file of headers, files full of zeros.
func tarOf(headers ...tar.Header) io.Reader {
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		var err error
		for _, h := range headers {
			if err = t.WriteHeader(&h); err == nil {
				_, err = io.CopyN(t, zeros{}, h.Size)
			}
			if err != nil {
				break
			}
		}
		if err == nil {
			err = t.Close()
		}
		w.CloseWithError(err)
	}()
	return r
}

// TestArchives: directories as tar files over the API, in constant memory, both
// ways; what an archive may not hold is refused and brings nothing from then on.
func TestArchives(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	const size = 128 << 20
	_, body, _ := s.do("POST", "/v1/sandboxes", fmt.Sprintf(`{"limits":{"disk_bytes":%d}}`, 4*size))
	var sb struct{ ID string }
	if json.Unmarshal([]byte(body), &sb); sb.ID == "" {
		t.Fatal(body)
	}
	url := s.url + "/v1/sandboxes/" + sb.ID + "/files/archive?path="
	call := func(method, path string, body io.Reader, header ...string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, body)
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
	text := func(res *http.Response) string { b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<16)); return string(b) }
	file := func(name string, size int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o4755, Size: size, ModTime: time.Unix(1e9, 0)}
	}
	before := s.peak(t)
	if res := call("PUT", "big", tarOf(file("one", size), file("dir/two", size))); res.StatusCode != 200 {
		t.Fatal(res.StatusCode, text(res))
	} else if got := text(res); got != fmt.Sprintf(`{"files":2,"directories":0,"links":0,"bytes":%d}`+"\n", 2*size) {
		t.Error(got)
	}
	for _, encoding := range []string{"identity", "gzip"} {
		res := call("GET", "big", nil, "Accept-Encoding", encoding)
		var in io.Reader = res.Body
		if encoding == "gzip" {
			z, err := gzip.NewReader(res.Body)
			if err != nil || res.Header.Get("Content-Encoding") != "gzip" {
				t.Fatal(err, res.Header)
			}
			in = z
		}
		var names []string
		for r := tar.NewReader(in); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, r)
			names = append(names, fmt.Sprintf("%s %o %d", h.Name, h.Mode, n))
			if err != nil {
				t.Fatal(err)
			}
		}
		io.Copy(io.Discard, res.Body)
		if want := []string{"dir/ 755 0", fmt.Sprintf("one 755 %d", size), fmt.Sprintf("dir/two 755 %d", size)}; !slices.Equal(names, want) {
			t.Errorf("%q", names)
		}
		if res.Trailer.Get("Firebreak-Left-Out") != "0" || res.Header.Get("Content-Type") != "application/x-tar" || !strings.Contains(res.Header.Get("Content-Disposition"), "big.tar") {
			t.Errorf("%v %v", res.Header, res.Trailer)
		}
	}
	if grown := s.peak(t) - before; grown > 96 {
		t.Errorf("the server grew by %d MiB", grown)
	}
	for what, c := range map[string]struct {
		headers []tar.Header
		status  int
		kind    string
	}{
		"a way out":  {[]tar.Header{file("first", 1), file("../out", 1), file("last", 1)}, 403, "denied"},
		"absolute":   {[]tar.Header{file("first", 1), file("/tmp/out", 1), file("last", 1)}, 403, "denied"},
		"a link out": {[]tar.Header{file("first", 1), {Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/tmp"}, file("last", 1)}, 403, "denied"},
		"through a link": {[]tar.Header{file("first", 1), {Typeflag: tar.TypeSymlink, Name: "l", Linkname: "d"}, file("l/in", 1)},
			409, "exists"}, // l is a directory before it is a link
		"a device":  {[]tar.Header{file("first", 1), {Typeflag: tar.TypeChar, Name: "null"}, file("last", 1)}, 422, "unsupported"},
		"hard link": {[]tar.Header{file("first", 1), {Typeflag: tar.TypeLink, Name: "h", Linkname: "first"}, file("last", 1)}, 422, "unsupported"},
		"too much":  {[]tar.Header{file("first", 1), file("huge", 8*size), file("last", 1)}, 507, "no_space"},
	} {
		dir := strings.ReplaceAll(what, " ", "-")
		res := call("PUT", dir, tarOf(c.headers...))
		if got := text(res); res.StatusCode != c.status || !strings.Contains(got, `"`+c.kind+`"`) || !strings.Contains(got, "what came before it is stored, last") {
			t.Errorf("%s: %d %s", what, res.StatusCode, got)
		}
		r := s.run("", "exec", sb.ID, "--", "sh", "-c", "ls "+dir+"; ls -d out /tmp/out /home/user/../out 2>/dev/null")
		if !strings.HasPrefix(r.stdout, "first\n") || strings.Contains(r.stdout, "last") || strings.Contains(r.stdout, "out\n") || strings.Contains(r.stdout, "huge") {
			t.Errorf("%s: %+v", what, r)
		}
	}
	for what, c := range map[string]struct {
		res    *http.Response
		status int
	}{
		"no archive":   {call("PUT", "x", strings.NewReader(strings.Repeat("text", 1000))), 400},
		"cut":          {call("PUT", "x", io.LimitReader(tarOf(file("f", 1<<20)), 1<<19)), 400},
		"no gzip":      {call("PUT", "x", strings.NewReader("text"), "Content-Encoding", "gzip"), 400},
		"a tail":       {call("PUT", "x", io.MultiReader(tarOf(file("f", 1)), io.LimitReader(zeros{}, 3<<20))), 400},
		"of nothing":   {call("GET", "nothing", nil), 404},
		"of a file":    {call("GET", "big/one", nil), 409},
		"of no path":   {call("GET", "a%00b", nil), 400},
		"of the dead":  {call("GET", "&user=root", nil), 403},
		"onto a file":  {call("PUT", "big/one", tarOf(file("f", 1))), 409},
		"head":         {call("HEAD", "big", nil), 200},
		"an empty one": {call("PUT", "x", bytes.NewReader(nil)), 200},
	} {
		if c.res.StatusCode != c.status {
			t.Errorf("%s: %d %s", what, c.res.StatusCode, text(c.res))
		}
	}
}
