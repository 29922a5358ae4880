package e2e

import (
	"debug/elf"
	"os"
	"testing"
)

// TestPrograms: what runs inside a sandbox, and the runtime, are static; the
// agent stays small enough to audit.
func TestPrograms(t *testing.T) {
	binary(t)
	for name, most := range map[string]int64{"firebreak-guest": 4 << 20, "runsc": 40 << 20, "firebreak": 64 << 20} {
		path := "../../bin/" + name
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > most {
			t.Errorf("%s has %d bytes, want at most %d", name, fi.Size(), most)
		}
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is not static", name)
			}
		}
		f.Close()
	}
}
