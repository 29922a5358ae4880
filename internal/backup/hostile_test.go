package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// part is a member of a made-up archive.
type part struct {
	name string
	body string
	typ  byte
	link string
}

// pack makes an archive of parts.
func pack(t testing.TB, parts ...part) []byte {
	t.Helper()
	var out bytes.Buffer
	z, _ := zstd.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, p := range parts {
		if p.typ == 0 {
			p.typ = tar.TypeReg
		}
		h := &tar.Header{Name: p.name, Typeflag: p.typ, Linkname: p.link, Mode: 0o777, Size: int64(len(p.body))}
		if p.typ != tar.TypeReg {
			h.Size = 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(p.name, err)
		}
		if h.Size > 0 {
			w.Write([]byte(p.body))
		}
	}
	w.Close()
	z.Close()
	return out.Bytes()
}

// plain is what an archive unpacks to; nil if it does not.
func plain(b []byte) []byte {
	z, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	defer z.Close()
	out, err := io.ReadAll(z)
	if err != nil {
		return nil
	}
	return out
}

func describe(name string, m Manifest) part {
	b, _ := json.Marshal(m)
	return part{name: name, body: string(b)}
}

// good unpacks a backup into its parts, to be spoilt.
func good(t testing.TB) []part {
	t.Helper()
	s := openSite(t, filepath.Join(t.TempDir(), "data"))
	s.fill()
	name, _ := s.archive()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var parts []part
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part{name: h.Name, body: string(b)})
	}
}

// TestHostileArchives: whatever a backup is made to look like, it is refused as
// a whole, with a kind, and nothing appears anywhere.
func TestHostileArchives(t *testing.T) {
	parts := good(t)
	last := len(parts) - 1
	var head Manifest
	if err := json.Unmarshal([]byte(parts[0].body), &head); err != nil {
		t.Fatal(err)
	}
	with := func(f func(m *Manifest)) Manifest { m := head; f(&m); return m }
	// insert puts p behind the database.
	insert := func(p ...part) []part { return append(append(append([]part{}, parts[:2]...), p...), parts[2:]...) }
	change := func(i int, f func(p *part)) []part {
		c := append([]part{}, parts...)
		f(&c[i])
		return c
	}
	for name, c := range map[string]struct {
		parts []part
		kind  sandbox.Kind
	}{
		"empty":              {nil, sandbox.KindInvalid},
		"no header":          {parts[1:], sandbox.KindInvalid},
		"no manifest":        {parts[:last], sandbox.KindInvalid},
		"after the manifest": {append(append([]part{}, parts...), part{name: "events/x", body: "x"}), sandbox.KindInvalid},
		"newer format":       {change(0, func(p *part) { *p = describe(headerName, with(func(m *Manifest) { m.Format = Format + 1 })) }), sandbox.KindUnsupported},
		"newer schema":       {change(0, func(p *part) { *p = describe(headerName, with(func(m *Manifest) { m.Schema = store.Schema() + 1 })) }), sandbox.KindUnsupported},
		"no space":           {change(0, func(p *part) { *p = describe(headerName, with(func(m *Manifest) { m.Bytes = 1 << 60 })) }), sandbox.KindNoSpace},
		"overflowing size":   {change(0, func(p *part) { *p = describe(headerName, with(func(m *Manifest) { m.Bytes = 1<<63 - 1 })) }), sandbox.KindNoSpace},
		"more than it says":  {change(0, func(p *part) { *p = describe(headerName, with(func(m *Manifest) { m.Bytes = 100 })) }), sandbox.KindInvalid},
		"too many":           {change(0, func(p *part) { *p = describe(headerName, with(func(m *Manifest) { m.Count = 2 })) }), sandbox.KindInvalid},
		"header no JSON":     {change(0, func(p *part) { p.body = "{" }), sandbox.KindInvalid},
		"changed byte":       {change(last-1, func(p *part) { p.body = strings.ToUpper(p.body) }), sandbox.KindInvalid},
		"dropped member":     {append(append([]part{}, parts[:2]...), parts[3:]...), sandbox.KindInvalid},
		"no database":        {append(append([]part{}, parts[:1]...), parts[2:]...), sandbox.KindInvalid},
		"twice":              {insert(parts[2]), sandbox.KindInvalid},
		"out":                {insert(part{name: "../evil", body: "x"}), sandbox.KindInvalid},
		"out, deeper":        {insert(part{name: "runs/rnaaaaaaaaaaaaaaaaaa/artifacts/../../../../evil", body: "x"}), sandbox.KindInvalid},
		"absolute":           {insert(part{name: "/evil", body: "x"}), sandbox.KindInvalid},
		"a program":          {insert(part{name: "libexec/abc/runsc", body: "x"}), sandbox.KindInvalid},
		"a template":         {insert(part{name: "templates/names/python", body: "x"}), sandbox.KindInvalid},
		"a key":              {insert(part{name: "api-key", body: "fb_x"}), sandbox.KindInvalid},
		"a lock":             {insert(part{name: "lock", body: "1"}), sandbox.KindInvalid},
		"a log's lock":       {insert(part{name: "audit/server/lock", body: "1"}), sandbox.KindInvalid},
		"side file":          {insert(part{name: "state.db-wal", body: "x"}), sandbox.KindInvalid},
		"link":               {insert(part{name: "events/sbaaaaaaaaaaaaaaaaaa.out", typ: tar.TypeSymlink, link: "/etc/passwd"}), sandbox.KindInvalid},
		"hard link":          {insert(part{name: "events/sbaaaaaaaaaaaaaaaaaa.out", typ: tar.TypeLink, link: "state.db"}), sandbox.KindInvalid},
		"directory link":     {insert(part{name: "runs/rnaaaaaaaaaaaaaaaaaa", typ: tar.TypeSymlink, link: "/tmp"}), sandbox.KindInvalid},
		"device":             {insert(part{name: "events/sbaaaaaaaaaaaaaaaaaa.out", typ: tar.TypeChar}), sandbox.KindInvalid},
		"fifo":               {insert(part{name: "events/sbaaaaaaaaaaaaaaaaaa.out", typ: tar.TypeFifo}), sandbox.KindInvalid},
		"file and directory": {insert(part{name: "runs/rnaaaaaaaaaaaaaaaaaa/artifacts/a", body: "x"}, part{name: "runs/rnaaaaaaaaaaaaaaaaaa/artifacts/a/b", body: "x"}), sandbox.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			dir := filepath.Join(outside, "data")
			_, _, err := Restore(context.Background(), bytes.NewReader(pack(t, c.parts...)), dir, Target{})
			var e *sandbox.Error
			if !errors.As(err, &e) || e.Kind != c.kind || e.Hint == "" {
				t.Errorf("%v, want %s with a hint", err, c.kind)
			}
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	t.Run("evidence of another head", func(t *testing.T) {
		var m Manifest
		if err := json.Unmarshal([]byte(parts[last].body), &m); err != nil {
			t.Fatal(err)
		}
		m.Audit["server"] = Head{m.Audit["server"].Position + 1, m.Audit["server"].Hash}
		c := change(last, func(p *part) { *p = describe(manifestName, m) })
		_, _, err := Restore(context.Background(), bytes.NewReader(pack(t, c...)), filepath.Join(t.TempDir(), "d"), Target{})
		if sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Error(err)
		}
	})
	t.Run("cut and flipped", func(t *testing.T) {
		whole := pack(t, parts...)
		if _, _, err := Restore(context.Background(), bytes.NewReader(whole), filepath.Join(t.TempDir(), "d"), Target{}); err != nil {
			t.Fatal("the unspoilt one:", err)
		}
		for i := range 24 {
			at := len(whole) * i / 24
			flipped := bytes.Clone(whole)
			flipped[at] ^= 4
			for what, b := range map[string][]byte{"cut": whole[:at], "flipped": flipped} {
				if what == "flipped" && bytes.Equal(plain(b), plain(whole)) {
					continue // zstd has bits that mean nothing: it is the same archive
				}
				outside := t.TempDir()
				if _, _, err := Restore(context.Background(), bytes.NewReader(b), filepath.Join(outside, "d"), Target{}); err == nil {
					t.Errorf("%s at %d: accepted", what, at)
				}
				if left, _ := os.ReadDir(outside); len(left) != 0 {
					t.Errorf("%s at %d: left %v", what, at, left)
				}
			}
		}
	})
}

// FuzzRestore: no bytes make Restore leave anything, or last long.
func FuzzRestore(f *testing.F) {
	head := Manifest{Format: 1, Schema: 1, Created: time.Unix(1, 0), Bytes: 10, Count: 3}
	f.Add([]byte{})
	f.Add(pack(f, describe(headerName, head)))
	f.Add(pack(f, describe(headerName, head), part{name: "events/sbaaaaaaaaaaaaaaaaaa.out", body: "x"}, describe(manifestName, head)))
	f.Add(pack(f, describe(headerName, head), part{name: "runs/rnaaaaaaaaaaaaaaaaaa/artifacts/x/../../y", body: "x"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		outside := t.TempDir()
		_, _, err := Restore(context.Background(), bytes.NewReader(b), filepath.Join(outside, "d"), Target{})
		if err == nil {
			t.Fatal("accepted")
		}
		if left, _ := os.ReadDir(outside); len(left) != 0 {
			t.Fatalf("left: %v", left)
		}
	})
}
