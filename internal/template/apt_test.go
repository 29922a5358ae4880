package template

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDebianSources(t *testing.T) {
	etc := t.TempDir()
	dir := filepath.Join(etc, "apt/sources.list.d")
	must(t, os.MkdirAll(dir, 0o755))
	for name, content := range map[string]string{
		"../sources.list": `
deb http://mirror.test/debian stable-name main contrib non-free # the usual
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://mirror.test/sec stable-name-security main
deb-src http://mirror.test/debian stable-name main
deb http://vendor.test/apt stable-name stable
deb http://vendor.test/apt stable-name main vendor
deb [trusted=yes] http://evil.test/debian stable-name main
deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.test/debian stable-name main
deb http://mirror.test/debian other-name main
deb http://mirror.test/debian stable-name-backports main
deb [broken http://mirror.test/debian stable-name main
deb file:/srv/debs stable-name main
nonsense
`,
		"a.sources": `
Types: deb deb-src
URIs: http://mirror.test/deb822
 http://second.test/deb822
Suites: stable-name stable-name-updates
Components: main
# a comment
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://vendor.test/x
Suites: stable-name
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 debian-archive

Enabled: no
Types: deb
URIs: http://off.test/x
Suites: stable-name
Components: main

Types: deb
URIs: http://weak.test/x
Suites: stable-name
Components: main
Allow-Insecure: yes
`,
		"b.list":          "deb http://mirror.test/debian stable-name main contrib non-free\n",
		"c.list.disabled": "deb http://mirror.test/disabled stable-name main\n",
		"d.list":          "deb [signed-by=/keys/debian-archive-x.gpg,/keys/vendor.gpg] http://two.test/x stable-name main\n",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	sources, err := debianSources(etc, "stable-name")
	must(t, err)
	var got []string
	for _, s := range sources {
		got = append(got, s.String())
		if s.suiteName() != "stable" { // "stable-name" up to the first dash
			t.Errorf("suiteName of %q is %q", s.suite, s.suiteName())
		}
	}
	const key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
	wantSources := []string{
		"deb http://mirror.test/debian stable-name main contrib non-free",
		"deb " + key + "https://mirror.test/sec stable-name-security main",
		"deb " + key + "http://mirror.test/deb822 stable-name main",
		"deb " + key + "http://second.test/deb822 stable-name main",
		"deb " + key + "http://mirror.test/deb822 stable-name-updates main",
		"deb " + key + "http://second.test/deb822 stable-name-updates main",
	}
	if !slices.Equal(got, wantSources) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantSources, "\n"))
	}
}

func TestAptOptions(t *testing.T) {
	dump := `APT::Architecture "amd64";
Acquire::http "";
Acquire::http::Proxy "http://proxy.test:3142";
Acquire::https::Proxy::mirror.test "DIRECT";
Acquire::http::Proxy-Auto-Detect "/usr/bin/find-proxy";
Acquire::https::CaInfo "/etc/ca.pem";
Acquire::https::Verify-Peer "false";
Acquire::AllowInsecureRepositories "1";
Acquire::Check-Valid-Until "false";
APT::Update::Post-Invoke-Success:: "rm -rf /";
DPkg::Pre-Install-Pkgs:: "x";
`
	got := aptOptions(dump)
	wantOptions := []string{
		`Acquire::http::Proxy "http://proxy.test:3142";`, `Acquire::https::Proxy::mirror.test "DIRECT";`,
		`Acquire::http::Proxy-Auto-Detect "/usr/bin/find-proxy";`, `Acquire::https::CaInfo "/etc/ca.pem";`, `Acquire::Check-Valid-Until "false";`,
	}
	if !slices.Equal(got, wantOptions) {
		t.Errorf("got %q", got)
	}
}

func TestRecipes(t *testing.T) {
	for _, name := range languages {
		r, err := loadRecipe(name)
		if err != nil || r.Languages[0] != name || !slices.Contains(r.Packages, "bash") || r.Env["PATH"] != rootPath || r.Description == "" {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r, err := loadRecipe(Python); err != nil || !r.leavesOut("perl-base") || r.leavesOut("python3") {
		t.Errorf("leave_out: %+v, %v", r.LeaveOut, err)
	}
	for _, name := range []string{"ruby", "../images", ""} {
		if _, err := loadRecipe(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("recipe %q: %v", name, err)
		}
	}
	for _, bad := range []string{`{"pakages":[]}`, `{"packages":["--x"]}`, `{"languages":["c"]}`, `{"trim":["../x"]}`, `{"trim":["/etc"]}`, `{"trim":["a[" ]}`, `[]`} {
		if r, err := decodeRecipe([]byte(bad)); err == nil {
			t.Errorf("%s is accepted: %+v", bad, r)
		}
	}
}
