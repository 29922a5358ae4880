package filebody

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

var errBody = errors.New("the connection")

func zip(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, s)
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPlain(t *testing.T) {
	content := strings.Repeat("0123456789", 1000)
	read := func(encoding string, body io.Reader) (string, error) {
		in, err := Plain(http.Header{"Content-Encoding": {encoding}}, body)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(in)
		return string(b), err
	}
	for encoding, body := range map[string]string{"": content, "identity": content, "gzip": zip(t, content), "GZIP": zip(t, content)} {
		if got, err := read(encoding, iotest.OneByteReader(strings.NewReader(body))); got != content || err != nil {
			t.Errorf("%q: %d bytes, %v", encoding, len(got), err)
		}
	}
	for what, body := range map[string]string{"none": "", "no gzip": content, "cut off": zip(t, content)[:40], "damaged": zip(t, content)[:50] + "xxxx", "behind its end": zip(t, content) + "x"} {
		if _, err := read("gzip", strings.NewReader(body)); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := read("gzip", io.MultiReader(strings.NewReader(body), iotest.ErrReader(errBody))); what == "cut off" && !errors.Is(err, errBody) {
			t.Errorf("%s by the body itself: %v", what, err)
		}
	}
	if _, err := read("br", strings.NewReader(content)); sandbox.KindOf(err) != sandbox.KindInvalid {
		t.Errorf("another encoding: %v", err)
	}
}

const (
	formKind = `multipart/form-data; boundary=b`
	formBody = "--b\r\nContent-Disposition: form-data; name=note\r\n\r\nx\r\n" +
		"--b\r\nContent-Disposition: form-data; name=file; filename=\"../d/a b\"\r\n\r\nfirst\r\n" +
		"--b\r\nContent-Disposition: form-data; name=file; filename=\"\"\r\n\r\nsecond\r\n--b--\r\n"
)

func TestForm(t *testing.T) {
	read := func(body io.Reader) (said []string, err error) {
		f, ok := ParseForm(http.Header{"Content-Type": {formKind}}, body)
		if !ok {
			t.Fatal("it is none")
		}
		for {
			p, err := f.Next()
			if err == io.EOF {
				return said, nil
			}
			if err != nil {
				return said, err
			}
			b, err := io.ReadAll(p)
			if err != nil {
				return said, err
			}
			if said = append(said, p.Field+"|"+p.Name+"|"+string(b)); p.File != (p.Field == "file") {
				t.Errorf("%+v", p)
			}
		}
	}
	said, err := read(strings.NewReader(formBody))
	for _, end := range []string{"\r\n", "", "\r\nand more"} {
		if _, err := read(strings.NewReader(strings.TrimSuffix(formBody, "\r\n") + end)); err != nil {
			t.Errorf("an end of %q: %v", end, err)
		}
	}
	if got := strings.Join(said, "; "); err != nil || got != "note||x; file|../d/a b|first; file||second" {
		t.Errorf("%q, %v", got, err)
	}
	for at := 1; at < len(formBody)-6; at += 7 {
		if _, err := read(strings.NewReader(formBody[:at])); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("cut at %d: %v", at, err)
		}
		if _, err := read(io.MultiReader(strings.NewReader(formBody[:at]), iotest.ErrReader(errBody))); !errors.Is(err, errBody) {
			t.Errorf("broken at %d: %v", at, err)
		}
	}
	many := strings.Repeat("--b\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\nx\r\n", MaxFiles+1) + "--b--\r\n"
	if said, err := read(strings.NewReader(many)); len(said) != MaxFiles || sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("%d files, %v", len(said), err)
	}
	for _, kind := range []string{"", "text/plain", "multipart/form-data", "multipart/mixed; boundary=b"} {
		if _, ok := ParseForm(http.Header{"Content-Type": {kind}}, nil); ok {
			t.Errorf("%q is a form", kind)
		}
	}
}

// TestSave: what a guest calls its files breaks no header, and leaves no directory.
func TestSave(t *testing.T) {
	for _, name := range []string{"a.txt", "a\r\nX-Evil: 1", "\x00", "bad\xff", `q"uo\te`, "../x", strings.Repeat("é", 300), "\u202etxt.exe", ""} {
		h := http.Header{}
		Save(h, name, time.Unix(0, 0))
		d := h.Get("Content-Disposition")
		kind, params, err := mime.ParseMediaType(d)
		if err != nil || kind != "attachment" || strings.ContainsAny(d, "\r\n\x00") || len(d) > 2000 || strings.ContainsAny(params["filename"], "/\\") {
			t.Errorf("%q: %q, %v", name, d, err)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Type") != "application/octet-stream" || h.Get("Last-Modified") != "Thu, 01 Jan 1970 00:00:00 GMT" {
			t.Errorf("%v", h)
		}
	}
}

func TestPacked(t *testing.T) {
	for accept, want := range map[string]bool{"": false, "gzip": true, "br, gzip;q=0.5": true, "identity": false, "gzip;q=0": false, "gzip; q=0.0": false, "gzipped": false, "GZIP": true} {
		if Packed(http.Header{"Accept-Encoding": {accept}}) != want {
			t.Errorf("%q", accept)
		}
	}
}
