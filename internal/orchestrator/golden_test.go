package orchestrator

import (
	"os"
	"testing"
	"time"
)

// TestGoldenJournal: processes that a released version noted are followed on by
// this one. Whoever changes the format adds a directory, and changes none.
func TestGoldenJournal(t *testing.T) {
	for _, v := range []string{"testdata/processes-1"} {
		dir := t.TempDir() // what it does not understand it removes
		if err := os.CopyFS(dir, os.DirFS(v)); err != nil {
			t.Fatal(err)
		}
		all, err := journal{dir}.read()
		list := all["sbaaaaaaaaaaaaaaaaaa"]
		if err != nil || len(all) != 1 || len(list) != 1 {
			t.Fatalf("%s: %+v, %v", v, all, err)
		}
		if e := list[0]; e.Tenant != "acme" || e.Principal != "k1" || e.ID != 7 || e.PID != 42 || e.User != "user" || e.Timeout != time.Minute ||
			e.Stdin != stdinKept || e.Begun.IsZero() || e.Run != "rnaaaaaaaaaaaaaaaaaa" {
			t.Errorf("%s: %+v", v, e)
		}
	}
}
