package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func made(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// all reads an archive to its end.
func all(b []byte) (list []Entry, err error) {
	r := NewReader(bytes.NewReader(b))
	for {
		e, err := r.Next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return list, err
		}
		list = append(list, e)
	}
}

func TestThereAndBack(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	want := []Entry{{"d", fs.ModeDir | 0o750, 0, at, ""}, {"d/f", 0o755, 3, at, ""}, {"d/l", fs.ModeSymlink | 0o777, 0, at, "../d/f"},
		{strings.Repeat("long/", 40) + "ü name", 0o600, 0, at, ""}}
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, e := range want {
		if err := w.Add(e, strings.NewReader("abcdef")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add(Entry{Path: "short", Size: 10}, strings.NewReader("abc")); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("a file that shrank: %v", err)
	}
	b.Reset()
	w = NewWriter(&b)
	for _, e := range want {
		if err := w.Add(e, strings.NewReader("abcdef")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := all(b.Bytes())
	if err != nil || len(got) != len(want) {
		t.Fatalf("%+v %v", got, err)
	}
	for i, e := range got {
		e.Modified = e.Modified.Local()
		if e != want[i] {
			t.Errorf("%+v, was %+v", e, want[i])
		}
	}
	for _, e := range []Entry{{Path: "../f"}, {Path: "/f"}, {Path: "a/../f"}, {Path: ""}, {Path: "x", Mode: fs.ModeNamedPipe}, {Path: "x", Mode: fs.ModeSymlink, Target: "/etc"}} {
		if err := w.Add(e, nil); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

func TestRefused(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644} }
	link := func(name, to string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	for what, c := range map[string]struct {
		h    tar.Header
		kind sandbox.Kind
	}{
		"a leading dot":         {file("./a"), ""},
		"doubled slashes":       {file("a//b"), ""},
		"the directory itself":  {tar.Header{Typeflag: tar.TypeDir, Name: "./"}, ""},
		"set-id bits":           {tar.Header{Typeflag: tar.TypeReg, Name: "s", Mode: 0o6755}, ""},
		"a way out":             {file("../a"), sandbox.KindDenied},
		"a way out and back":    {file("a/../../b"), sandbox.KindDenied},
		"dots in between":       {file("a/../b"), sandbox.KindDenied},
		"an absolute name":      {file("/etc/passwd"), sandbox.KindDenied},
		"not UTF-8":             {file("a\xffb"), sandbox.KindInvalid},
		"a long name":           {file(strings.Repeat("x", 256)), sandbox.KindInvalid},
		"a long path":           {file(strings.Repeat("xxxxxxxxx/", 410) + "x"), sandbox.KindInvalid},
		"deep":                  {file(strings.Repeat("d/", 64) + "x"), sandbox.KindInvalid},
		"not too deep":          {file(strings.Repeat("d/", 63) + "x"), ""},
		"a hard link":           {tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "a"}, sandbox.KindUnsupported},
		"a device":              {tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, sandbox.KindUnsupported},
		"a pipe":                {tar.Header{Typeflag: tar.TypeFifo, Name: "p"}, sandbox.KindUnsupported},
		"a link beside it":      {link("d/l", "f"), ""},
		"a link up":             {link("d/l", "../f"), ""},
		"a link to the top":     {link("d/l", ".."), ""},
		"a link out":            {link("d/l", "../../f"), sandbox.KindDenied},
		"a link out of the top": {link("l", ".."), sandbox.KindDenied},
		"an absolute link":      {link("l", "/etc/passwd"), sandbox.KindDenied},
		"a link by detours":     {link("d/l", "a/../../d/f"), sandbox.KindDenied}, // a may be a link itself
		"a link to nothing":     {link("l", ""), sandbox.KindDenied},
	} {
		list, err := all(made(t, c.h))
		if sandbox.KindOf(err) != c.kind && !(c.kind == "" && err == nil) {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			for _, e := range list {
				if Refused(e.Path) != "" || e.Mode&^(fs.ModeDir|fs.ModeSymlink|fs.ModePerm) != 0 {
					t.Errorf("%s: %+v", what, e)
				}
			}
		}
	}
}

func TestNoArchive(t *testing.T) {
	whole := made(t, tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 2000})
	for what, b := range map[string][]byte{"text": []byte(strings.Repeat("no tar file\n", 100)), "cut in a header": whole[:100], "cut in a file": whole[:1000], "gzip": append([]byte{0x1f, 0x8b, 8}, make([]byte, 600)...)} {
		if _, err := all(b); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	failure := errors.New("the disk")
	if _, err := NewReader(io.MultiReader(bytes.NewReader(whole[:700]), failing{failure})).Next(); err != nil {
		t.Error(err)
	}
	r := NewReader(io.MultiReader(bytes.NewReader(whole[:100]), failing{failure}))
	if _, err := r.Next(); !errors.Is(err, failure) {
		t.Errorf("what failed below: %v", err)
	}
	if list, err := all(nil); err != nil || list != nil {
		t.Errorf("nothing: %v %v", list, err)
	}
}

type failing struct{ error }

// Read implements io.Reader.
func (f failing) Read([]byte) (int, error) { return 0, f.error }

func TestBounds(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for range MaxLinks + 1 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "f"}); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := all(b.Bytes()); len(list) != MaxLinks || sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("links: %d, %v", len(list), err)
	}
	header := made(t, tar.Header{Typeflag: tar.TypeReg, Name: "f"})[:512]
	if list, err := all(bytes.Repeat(header, MaxEntries+1)); len(list) != MaxEntries || sandbox.KindOf(err) != sandbox.KindTooLarge {
		t.Errorf("entries: %d, %v", len(list), err)
	}
}

// FuzzReader: whatever comes, what is returned obeys the rules, whatever its links
// do together.
func FuzzReader(f *testing.F) {
	f.Add(made(f, tar.Header{Typeflag: tar.TypeReg, Name: "a/b", Size: 5}, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "a/b"}))
	f.Add(made(f, tar.Header{Typeflag: tar.TypeSymlink, Name: "a/b", Linkname: "../.."}))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := all(b)
		if e := (*sandbox.Error)(nil); err != nil && !errors.As(err, &e) {
			t.Errorf("an error without a kind: %v", err)
		}
		for _, e := range list {
			if Refused(e.Path) != "" || e.Mode.Type() == fs.ModeSymlink && RefusedLink(e.Path, e.Target) != "" || e.Size < 0 {
				t.Errorf("%+v", e)
			}
		}
	})
}
