package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func env(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "firebreak.yaml")
	if err := os.WriteFile(file, []byte("# comment\nlisten: 127.0.0.1:1\nbackend: sim\nmax_sandboxes: 7\nstop_sandboxes: yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// "yes" is not a boolean here: strict means that nothing is guessed.
	if _, err := Load(Source{File: file, Lookup: env(nil), Root: true}); sandbox.KindOf(err) != sandbox.KindInvalid || !strings.Contains(err.Error(), "stop_sandboxes") {
		t.Errorf("yes as a boolean: %v", err)
	}
	if err := os.WriteFile(file, []byte("# comment\nlisten: 127.0.0.1:1\nbackend: sim\nmax_sandboxes: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Source{
		File: file, Root: true, Flags: map[string]string{"listen": "127.0.0.1:3"},
		Lookup: env(map[string]string{"FIREBREAK_LISTEN": "127.0.0.1:2", "FIREBREAK_BACKEND": "gvisor", "FIREBREAK_LOG_FORMAT": ""}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string][2]string{
		"listen": {"127.0.0.1:3", "flag --listen"}, "backend": {"gvisor", "env FIREBREAK_BACKEND"}, "max_sandboxes": {"7", file},
		"log_format": {"text", "default"}, "data": {"/var/lib/firebreak", "default"}, "socket": {"/run/firebreak/firebreak.sock", "default"},
	} {
		k, _ := find(key)
		if c.Value(k) != want[0] || c.Origin(key) != want[1] {
			t.Errorf("%s: %q from %q; want %q", key, c.Value(k), c.Origin(key), want)
		}
	}
}

func TestStrict(t *testing.T) {
	for text, want := range map[string]string{
		"lisen: x":                          `line 1: unknown key "lisen"`,
		"log-format: json":                  "write log_format",
		"api_key: fb_x":                     "is a secret",
		"listen: [a]":                       "not a plain value",
		"data: /a\ndata: /b":                "line 2: data is set twice",
		"- a":                               "not a list of keys",
		"listen: nope":                      "not HOST:PORT",
		"listen: 127.0.0.1:http":            "not a port",
		"log_level: loud":                   "not one of",
		"retain: soon":                      "no duration",
		"retain: 5s":                        "less than a minute",
		"retain: -7d":                       "no duration",
		"retain_audit: 3h":                  "less than a day",
		"max_sandboxes: -1":                 "not a number of sandboxes",
		"audit_witness: https://w.example":  "no witness",
		"audit_witness: https://w x+00+AA":  "no public key",
		"a: b: c":                           "mapping values",
		"egress_private: 10.1.2.3/16":       "is not a network",
		"egress_private: everything":        "is not a network",
		"tenant_memory: much":               "not a size",
		"image_dirs: images":                "not an absolute path",
		"image_dirs: /srv, /":               "not an absolute path",
		"machine_disk_rate: 1KiB":           "too little",
		"machine_disk_ops: 3":               "not a number of requests",
		"tenant_execs: -1":                  "not a number from 0",
		"tenants: [acme]":                   "write {name:",
		"tenants: {acme: {cows: 1}}":        `unknown key "cows"`,
		"tenants: {acme: {sandboxes: 1.5}}": "not a number",
		"tenants: {'a b': {}}":              "cannot be a tenant's name",
	} {
		file := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Source{File: file, Lookup: env(nil), Root: true})
		if sandbox.KindOf(err) != sandbox.KindInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
	if _, err := Load(Source{File: filepath.Join(t.TempDir(), "missing"), Lookup: env(nil)}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("a file that was named and is missing: %v", err)
	}
}

func TestUserDirectories(t *testing.T) {
	c, err := Load(Source{Lookup: env(map[string]string{"HOME": "/home/x", "XDG_RUNTIME_DIR": "/run/user/7"})})
	if err != nil || c.Data != "/home/x/.local/share/firebreak" || c.Socket != "/run/user/7/firebreak/firebreak.sock" || c.File != "/home/x/.config/firebreak/firebreak.yaml" {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = Load(Source{Lookup: env(map[string]string{"HOME": "/home/x", "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c"})})
	if err != nil || c.Data != "/d/firebreak" || c.File != "/c/firebreak/firebreak.yaml" || c.Socket != "/d/firebreak/firebreak.sock" {
		t.Errorf("%+v, %v", c, err)
	}
	// The specification says that relative XDG paths are to be ignored.
	c, err = Load(Source{Lookup: env(map[string]string{"HOME": "/home/x", "XDG_DATA_HOME": "d"})})
	if err != nil || c.Data != "/home/x/.local/share/firebreak" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c, err := Load(Source{Lookup: env(map[string]string{"HOME": "/h", "FIREBREAK_API_KEY": "fb_secret"})})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys {
		if strings.Contains(c.Value(k), "fb_secret") {
			t.Errorf("%s prints the key", k.Name)
		}
		if k.Doc == "" || k.Env == "" {
			t.Errorf("%s is not documented", k.Name)
		}
	}
}

// Quotas read back as they are printed, and what is not said has its default.
func TestQuotas(t *testing.T) {
	file := filepath.Join(t.TempDir(), "firebreak.yaml")
	text := "tenant_sandboxes: 50\ntenant_memory: 8GiB\ntenant_execs: 0\ndisk_reserve: 2G\ntenants:\n  acme:\n    sandboxes: 500\n    kept: 0\n    disk: 1000001\n  other: {burst: 7}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Source{File: file, Root: true, Lookup: env(map[string]string{"FIREBREAK_TENANT_BUILDS": "9"})})
	if err != nil {
		t.Fatal(err)
	}
	acme, other, any := c.Quota.Of("acme"), c.Quota.Of("other"), c.Quota.Of("any")
	if acme.Sandboxes != 500 || acme.Kept != orchestrator.Unlimited || acme.Disk != 1000001 || acme.Memory != 8<<30 || other.Burst != 7 || other.Sandboxes != 50 ||
		any.Execs != orchestrator.Unlimited || any.Builds != 9 || any.Burst != 4000 || c.Quota.DiskReserve != 2<<30 {
		t.Errorf("%+v\n%+v\n%+v", acme, other, any)
	}
	k, _ := find("tenants")
	const want = "{acme: {sandboxes: 500, disk: 1000001, kept: 0}, other: {burst: 7}}"
	if got := c.Value(k); got != want {
		t.Errorf("printed as %s, want %s", got, want)
	}
	again, err := Load(Source{Root: true, Lookup: env(map[string]string{"FIREBREAK_TENANTS": want})})
	if err != nil || again.Value(k) != want {
		t.Errorf("%v", err)
	}
	k, _ = find("tenant_memory")
	if c.Value(k) != "8GiB" {
		t.Errorf("memory %s", c.Value(k))
	}
}

func TestRetention(t *testing.T) {
	for in, want := range map[string]string{"7d": "7d", "168h": "7d", "36h": "36h0m0s", "forever": "forever"} {
		c, err := Load(Source{Lookup: env(map[string]string{"FIREBREAK_RETAIN_AUDIT": in})})
		if err != nil {
			t.Fatal(in, err)
		}
		k, _ := find("retain_audit")
		if got := c.Value(k); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
		if c.Retain != 7*24*time.Hour {
			t.Errorf("retain is %v", c.Retain)
		}
	}
}

// TestMachineKeys: a machine's disk is bounded unless somebody says otherwise, and the
// server reads no file of its own for one.
func TestMachineKeys(t *testing.T) {
	c, err := Load(Source{Lookup: env(nil), Root: true})
	if err != nil || c.Machine.DiskRate != 256<<20 || c.Machine.DiskOps != 20000 || len(c.ImageDirs) != 0 {
		t.Errorf("%+v, %q, %v", c.Machine, c.ImageDirs, err)
	}
	c, err = Load(Source{Root: true, Lookup: env(map[string]string{"FIREBREAK_MACHINE_NETWORK_RATE": "1MiB"})})
	if err != nil || c.Machine.NetworkRate != 1<<20 {
		t.Errorf("%+v, %v", c.Machine, err)
	}
	if _, err = Load(Source{Root: true, Lookup: env(map[string]string{"FIREBREAK_MACHINE_NETWORK_RATE": "1KiB"})}); err == nil {
		t.Error("a network that no frame gets through")
	}
	c, err = Load(Source{Root: true, Lookup: env(map[string]string{"FIREBREAK_MACHINE_DISK_RATE": "0", "FIREBREAK_MACHINE_DISK_OPS": "0", "FIREBREAK_IMAGE_DIRS": "/srv/a/, /srv/b"})})
	if err != nil || c.Machine.DiskRate != 0 || c.Machine.DiskOps != 0 || !slices.Equal(c.ImageDirs, []string{"/srv/a", "/srv/b"}) {
		t.Errorf("%+v, %q, %v", c.Machine, c.ImageDirs, err)
	}
}
