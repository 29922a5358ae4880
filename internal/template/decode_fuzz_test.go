package template

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// FuzzFiles reads what a template's directory and a recipe may hold: a manifest
// that is accepted is what was sealed, a recipe names packages and clean
// patterns only, and two listings differ exactly where they are said to.
func FuzzFiles(f *testing.F) {
	b, err := manifest{Version: manifestVersion}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, []byte{})
	f.Add([]byte(`{"sha256":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","manifest":{}}`), []byte("x"))
	f.Add([]byte(`{"packages":["libc6"],"leave_out":["perl*"],"languages":["python"]}`), []byte{})
	f.Add([]byte(`{"packages":["-o Dir::Etc=/"],"trim":["../x"]}`), []byte{})
	f.Add([]byte("f 0644 0 0 1 ab \"a\" \"\"\n"), []byte("f 0600 0 0 1 ab \"a\" \"\"\n"))
	f.Fuzz(func(t *testing.T, b, other []byte) {
		if m, err := decodeManifest(b); err == nil {
			again, err := m.encode()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := decodeManifest(again); err != nil || !reflect.DeepEqual(back, m) {
				t.Fatalf("%+v became %+v, %v", m, back, err)
			}
		}
		if r, err := decodeRecipe(b); err == nil {
			checkRecipe(t, r)
		}
		if d := firstDifference(b, other); (d == "nothing") != bytes.Equal(b, other) {
			t.Fatalf("%q", d)
		}
	})
}

func checkRecipe(t *testing.T, r recipe) {
	for _, p := range r.Packages {
		if p == "" || strings.HasPrefix(p, "-") || strings.ContainsAny(p, " /\n=") {
			t.Fatalf("package %q", p)
		}
	}
	for _, p := range slices.Concat(r.LeaveOut, r.Trim, r.CompilePython) {
		if strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") {
			t.Fatalf("pattern %q", p)
		}
	}
	if o := r.over(recipe{Packages: []string{"base"}}); len(o.Packages) != len(r.Packages)+1 {
		t.Fatalf("%+v", o)
	}
}

// FuzzAptSources: of whatever sources a machine has, only Debian's own suites
// over the network are taken, and nothing that switches checks off.
func FuzzAptSources(f *testing.F) {
	f.Add([]byte("deb http://deb.debian.org/debian trixie main\ndeb [trusted=yes] http://x trixie main # c\n"), "Acquire::http::Proxy \"http://p\";\nAPT::Get::AllowUnauthenticated \"true\";\n")
	f.Add([]byte("Types: deb\nURIs: https://deb.debian.org/debian\nSuites: trixie trixie-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\n folded\n"), "Acquire::AllowInsecureRepositories \"1\";")
	f.Add([]byte("VERSION_CODENAME='trixie'\n"), "")
	f.Fuzz(func(t *testing.T, sources []byte, dump string) {
		for _, e := range slices.Concat(parseList(sources), parseDeb822(sources)) {
			for _, s := range e.debian("trixie") {
				if !strings.HasPrefix(s.String(), "deb ") || strings.ContainsAny(s.String(), "\n\r") || !strings.Contains(s.String(), "trixie") {
					t.Fatalf("%q", s.String())
				}
				if low := strings.ToLower(s.String()); strings.Contains(low, "trusted=yes") || strings.Contains(low, "allow-insecure=yes") {
					t.Fatalf("unchecked: %q", s.String())
				}
			}
		}
		osRelease(sources, "VERSION_CODENAME")
		for _, o := range aptOptions(dump) {
			if low := strings.ToLower(o); strings.Contains(o, "\n") || !strings.HasPrefix(low, "acquire::") || strings.HasPrefix(low, "acquire::allow") {
				t.Fatalf("%q", o)
			}
		}
	})
}
