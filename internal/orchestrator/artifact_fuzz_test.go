package orchestrator

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// liar is a guest whose listing is made up and whose files cannot be read.
type liar struct {
	kind fs.FileMode
	list []guest.FileInfo
}

func (l liar) Stat(context.Context, string, string) (guest.FileInfo, error) {
	return guest.FileInfo{Mode: l.kind}, nil
}

func (l liar) List(context.Context, string, guest.ListOptions) ([]guest.FileInfo, bool, error) {
	return l.list, true, nil
}

func (l liar) ReadFile(context.Context, string, guest.ReadOptions) (*guest.FileReader, error) {
	return nil, errors.New("no")
}

// FuzzArtifacts collects what a guest calls its files: every name is safe or
// refused, the report is bounded, and nothing is made outside.
func FuzzArtifacts(f *testing.F) {
	f.Add("out", "a\nb/c\n../../etc/passwd\n/abs\na\\b\n\x1b[2J", uint32(0))
	f.Add("/", strings.Repeat("d/", 100)+"x\n.\n..\n\n", uint32(fs.ModeDir))
	f.Add("../..", "CON\naux.txt\n\xff", uint32(fs.ModeSymlink))
	f.Fuzz(func(t *testing.T, asked, names string, mode uint32) {
		top := t.TempDir()
		if err := os.Mkdir(filepath.Join(top, "a"), 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(filepath.Join(top, "a"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		l := liar{kind: fs.ModeDir}
		for n := range strings.SplitSeq(names, "\n") {
			l.list = append(l.list, guest.FileInfo{Path: n, Mode: fs.FileMode(mode) & fs.ModeType})
			if safeName(n) && (!filepath.IsLocal(n) || strings.Contains(n, "..") && strings.Contains("/"+n+"/", "/../")) {
				t.Fatalf("%q is no safe name", n)
			}
		}
		told := 0
		c := &collector{from: l, to: root, left: maxArtifactTotal, tell: func(Artifact) { told++ }}
		c.collect(t.Context(), asked)
		l.kind = 0
		c.from = l
		c.collect(t.Context(), asked)
		if len(c.list) > maxArtifacts || told != len(c.list) {
			t.Fatalf("%d artifacts, told of %d", len(c.list), told)
		}
		for _, a := range c.list {
			if !utf8.ValidString(a.Path) || a.Error == "" {
				t.Fatalf("%+v", a)
			}
		}
		if all, err := os.ReadDir(top); err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
	})
}

// FuzzDetails: what another version left in a record never keeps a sandbox from
// being read, and what is understood is kept.
func FuzzDetails(f *testing.F) {
	f.Add([]byte(`{"pack":"python","env":{"A":"b"},"first":3}`))
	f.Add([]byte(`{"boot":"long"}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, extra []byte) {
		sb := unpack(store.Sandbox{ID: sandbox.NewID(), Extra: extra})
		again := unpack(store.Sandbox{Extra: sb.Details.pack()})
		if a, b := string(sb.Details.pack()), string(again.Details.pack()); a != b {
			t.Fatalf("%s became %s", a, b)
		}
		if sb.clone().Details.Env != nil {
			t.Fatal("the environment is handed out")
		}
	})
}
