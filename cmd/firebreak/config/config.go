// Package config is everything that can be set about bin/firebreak, in one
// strict struct.
//
//	c, err := config.Load(config.Source{Flags: flags, Lookup: os.LookupEnv})
//	c.Listen.String(), c.Origin("listen")    // "127.0.0.1:7878", "default"
//
// A value comes from the first of: a flag, a FIREBREAK_… variable, the file
// firebreak.yaml, the default. An unknown key in the file is an error, as is a
// value that does not parse: nothing is ignored.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Config is the effective configuration. Each field is documented by the key of
// the same name in Keys.
type Config struct {
	Data          string
	URL           string
	APIKey        string
	APIKeyFile    string
	Listen        string
	E2BListen     string
	E2BDomain     string
	Socket        string
	Backend       string
	Template      string
	MinIsolation  sandbox.Isolation
	Machine       Machine
	LogFormat     string
	LogLevel      string
	StopSandboxes bool
	MaxSandboxes  int
	PoolSize      int   // 0: nothing is kept ready
	PoolMachines  int   // as PoolSize, of machines
	PoolMax       int   // 0: four times PoolSize
	PoolMemory    int64 // bytes; 0: no bound but PoolMax
	PoolShare     int   // percent of the time
	Places        int   // made ahead for what was saved, at most
	AllowRoot     bool
	Retain        time.Duration
	RetainAudit   time.Duration // 0: for ever
	// AuditWitnesses cosign the audit log.
	AuditWitnesses []audit.WitnessAddress
	auditWitness   string // as it was written
	// Quota bounds tenants and keeps room on the host; its Host is MaxSandboxes.
	Quota orchestrator.Quota

	// ImageDirs are below which the server may read what machines are to boot.
	ImageDirs []string

	RegistryAuthFile string
	RegistryPrivate  []string
	RegistryInsecure []string
	GitPrivate       []string

	// EgressPrivate are the networks that are not public and that policies may open.
	EgressPrivate []netip.Prefix

	// File is the file that was read, or would have been.
	File string
	// FileRead tells whether it exists.
	FileRead bool

	origin map[string]string
}

// Machine is what virtual machines are made with. Empty fields are found out.
type Machine struct {
	Kernel, Monitor, Accel string
	DiskRate, DiskOps      int64 // per second; 0: no bound
	NetworkRate            int64 // bytes per second, each way; 0: no bound
}

// Key is one thing that can be set.
type Key struct {
	Name    string // in the file; with dashes, the flag
	Env     string
	Doc     string
	Secret  bool   // never printed, and never in the file
	Kind    string // of value, for the flag: "string" if empty, "bool", "int", "size"
	Nested  bool   // the value is a mapping, in the file; elsewhere its text
	Default func(Source) string
	set     func(*Config, string) error
	get     func(*Config) string
}

// Flag is the key's command-line flag, without dashes in front.
func (k Key) Flag() string { return strings.ReplaceAll(k.Name, "_", "-") }

// Source is where values come from.
type Source struct {
	// Flags holds the flags that were given, by key name.
	Flags map[string]string
	// Lookup reads the environment.
	Lookup func(string) (string, bool)
	// File overrides where firebreak.yaml is looked for. A file named here or
	// by FIREBREAK_CONFIG must exist.
	File string
	// Root tells whether the defaults are those of the system or of a user.
	Root bool
}

func (s Source) env(name string) string {
	if s.Lookup == nil {
		return ""
	}
	if v, ok := s.Lookup(name); ok {
		return v
	}
	return ""
}

// Load reads all sources. Errors: KindInvalid naming the key and where it came
// from.
func Load(s Source) (*Config, error) {
	c := &Config{origin: map[string]string{}}
	file, err := c.readFile(s)
	if err != nil {
		return nil, err
	}
	for _, k := range Keys {
		value, origin := "", "default"
		if k.Default != nil {
			value = k.Default(s)
		}
		if v, ok := file[k.Name]; ok {
			value, origin = v, c.File
		}
		if v := s.env(k.Env); v != "" { // empty counts as unset, as for most programs
			value, origin = v, "env "+k.Env
		}
		if v, ok := s.Flags[k.Name]; ok {
			value, origin = v, "flag --"+k.Flag()
		}
		if err := k.set(c, value); err != nil {
			return nil, sandbox.Errorf("config", sandbox.KindInvalid, "%s (from %s): %w", k.Name, origin, err).
				WithHint("`firebreak config --help` documents every key")
		}
		c.origin[k.Name] = origin
	}
	return c, nil
}

// Value returns a key's effective value as text.
func (c *Config) Value(k Key) string { return k.get(c) }

// Origin says where the value of a key came from.
func (c *Config) Origin(key string) string { return c.origin[key] }

// path says which file to read and whether it has to exist.
func (s Source) path() (path string, must bool) {
	if s.File != "" {
		return s.File, true
	}
	if p := s.env("FIREBREAK_CONFIG"); p != "" {
		return p, true
	}
	if s.Root {
		return "/etc/firebreak/firebreak.yaml", false
	}
	dir := s.env("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		home := s.env("HOME")
		if home == "" {
			return "", false
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "firebreak", "firebreak.yaml"), false
}

// readFile returns the file's keys. Everything in it is a plain value, or the
// text of a mapping.
func (c *Config) readFile(s Source) (map[string]string, error) {
	path, must := s.path()
	c.File = path
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil, nil
	}
	if err != nil {
		return nil, sandbox.Wrap("config", path, err)
	}
	c.FileRead = true
	return parse(path, data)
}

// parse decodes a firebreak.yaml strictly.
func parse(path string, data []byte) (map[string]string, error) {
	bad := func(line int, hint, format string, args ...any) error {
		return sandbox.Errorf("config", sandbox.KindInvalid, "line %d: %s", line, fmt.Sprintf(format, args...)).
			WithID(path).WithHint("%s", hint)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, sandbox.Errorf("config", sandbox.KindInvalid, "%w", err).WithID(path)
	}
	if len(doc.Content) == 0 {
		return nil, nil // empty, or comments only
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, bad(root.Line, "write `key: value` lines", "not a list of keys")
	}
	values := map[string]string{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		name, value := root.Content[i], root.Content[i+1]
		k, ok := find(name.Value)
		_, twice := values[name.Value]
		switch {
		case !ok:
			return nil, bad(name.Line, suggest(name.Value), "unknown key %q", name.Value)
		case k.Secret:
			return nil, bad(name.Line, "put it into a file only you can read and name that in api_key_file", "%s is a secret", name.Value)
		case twice:
			return nil, bad(name.Line, "remove one", "%s is set twice", name.Value)
		case k.Nested:
			text, err := yaml.Marshal(value)
			if err != nil {
				return nil, bad(value.Line, "", "%v", err)
			}
			values[name.Value] = string(text)
			continue
		case value.Kind != yaml.ScalarNode:
			return nil, bad(value.Line, "write one value", "%s is not a plain value", name.Value)
		}
		values[name.Value] = value.Value
	}
	return values, nil
}

func find(name string) (Key, bool) {
	for _, k := range Keys {
		if k.Name == name {
			return k, true
		}
	}
	return Key{}, false
}

// suggest names the key that was probably meant.
func suggest(name string) string {
	names := make([]string, 0, len(Keys))
	for _, k := range Keys {
		if k.Secret {
			continue
		}
		if k.Name == strings.ToLower(strings.ReplaceAll(name, "-", "_")) {
			return "write " + k.Name
		}
		names = append(names, k.Name)
	}
	sort.Strings(names)
	return "one of " + strings.Join(names, ", ")
}
