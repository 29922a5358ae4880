package event

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestGoldenFiles: the files of every released version, one directory each
// below testdata, read back. Whoever changes the format adds a directory.
func TestGoldenFiles(t *testing.T) {
	const id = sandbox.ID("sbaaaaaaaaaaaaaaaaaa")
	versions, err := filepath.Glob("testdata/v*")
	if err != nil || len(versions) == 0 {
		t.Fatal(versions, err)
	}
	for _, v := range versions {
		dir := t.TempDir() // a hub may repair what it reads
		if err := os.CopyFS(dir, os.DirFS(v)); err != nil {
			t.Fatal(err)
		}
		m, err := openMerged(dir, id)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for {
			e, err := m.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&got, "%d %s %s %q %q %t\n", e.ID, e.Time.Format("15:04:05.000000000"), e.Type, e.Process, e.Data, e.Final)
		}
		m.close()
		const want = `1 00:00:01.000000002 state "" "{\"state\":\"running\"}" false
2 00:00:01.000000002 stdout "p1" "first\n" false
3 00:00:01.000000002 stdout "p1" "second\n" false
4 00:00:01.000000002 exit "p1" "{\"exit_code\":0,\"reason\":\"done\"}" false
5 00:00:01.000000002 state "" "{\"state\":\"ended\"}" true
`
		if got.String() != want {
			t.Errorf("%s reads\n%s", v, &got)
		}
		h := open(t, dir, Options{})
		if n := len(all(t, h, id, 0, 0)); n != 5 {
			t.Errorf("%s: a hub finds %d events", v, n)
		}
	}
}
