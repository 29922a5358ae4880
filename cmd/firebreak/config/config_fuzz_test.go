package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// FuzzFile: a file is either refused with a hint where to look, or every key
// in it is one that exists, may be in a file, and has the value it was given.
func FuzzFile(f *testing.F) {
	for _, s := range []string{"", "listen: 127.0.0.1:1\n", "backend: gvisor\nmax_sandboxes: 3\n", "api_key: x\n", "a: &a [*a]\n", "- x\n", "listen: 1\nlisten: 2\n",
		"? [a]\n: b\n", "log_level: \"\\xff\"\n", "stop_sandboxes: perhaps\n", "<<: {listen: x}\n", "max_sandboxes: 99999999999999999999\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16<<10 {
			return
		}
		values, err := parse("x", b)
		for name := range values {
			if k, ok := find(name); !ok || k.Secret {
				t.Fatalf("%q was accepted", name)
			}
		}
		if err != nil && sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Fatalf("untyped: %v", err)
		}
		file := filepath.Join(t.TempDir(), "firebreak.yaml")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, lerr := Load(Source{File: file})
		if err != nil && lerr == nil {
			t.Fatalf("loaded in spite of %v", err)
		}
		if lerr != nil {
			if !strings.Contains(lerr.Error(), file) && !strings.Contains(lerr.Error(), "from ") {
				t.Fatalf("says not where: %v", lerr)
			}
			return
		}
		for _, k := range Keys {
			want := "default"
			if _, ok := values[k.Name]; ok {
				want = file
			}
			if o := c.Origin(k.Name); o != want {
				t.Fatalf("%s comes from %q, want %q", k.Name, o, want)
			}
			_ = c.Value(k)
		}
	})
}
