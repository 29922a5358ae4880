package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Keys is everything that can be set, in the order it is printed.
var Keys = slices.Concat([]Key{
	{
		Name: "data", Env: "FIREBREAK_DATA",
		Doc:     "directory of state, audit log, templates and unpacked programs",
		Default: dataDir,
		set:     func(c *Config, v string) error { return setDir(&c.Data, v) },
		get:     func(c *Config) string { return c.Data },
	}, {
		Name: "url", Env: "FIREBREAK_URL",
		Doc: "server that commands talk to: http://…, https://… or unix:///path; empty: the local socket",
		set: func(c *Config, v string) error { c.URL = v; return nil },
		get: func(c *Config) string { return c.URL },
	}, {
		Name: "api_key", Env: "FIREBREAK_API_KEY", Secret: true,
		Doc: "key for url; from the environment only",
		set: func(c *Config, v string) error { c.APIKey = v; return nil },
		get: func(c *Config) string {
			if c.APIKey == "" {
				return ""
			}
			return "[set]"
		},
	}, {
		Name: "api_key_file", Env: "FIREBREAK_API_KEY_FILE",
		Doc: "file that holds the key for url, used where api_key is not set",
		set: func(c *Config, v string) error { c.APIKeyFile = v; return nil },
		get: func(c *Config) string { return c.APIKeyFile },
	}, {
		Name: "listen", Env: "FIREBREAK_LISTEN",
		Doc:     "TCP address that serve listens on; empty: none. A key is always needed there",
		Default: func(Source) string { return defaultListen },
		set:     setListen,
		get:     func(c *Config) string { return c.Listen },
	}, {
		Name: "e2b_listen", Env: "FIREBREAK_E2B_LISTEN",
		Doc:     "TCP address on which serve speaks to E2B's SDKs; auto: 127.0.0.1:7879 where listen has its default, else none; empty: none",
		Default: func(Source) string { return "auto" },
		set:     setE2BListen,
		get:     func(c *Config) string { return c.E2BListen },
	}, {
		Name: "e2b_domain", Env: "FIREBREAK_E2B_DOMAIN",
		Doc: "domain, perhaps with a port, of which a wildcard resolves to e2b_listen: E2B's clients reach PORT-ID.DOMAIN; empty: they use headers",
		set: setE2BDomain,
		get: func(c *Config) string { return c.E2BDomain },
	}, {
		Name: "socket", Env: "FIREBREAK_SOCKET",
		Doc:     "unix socket that serve listens on and commands look for; the caller's uid is the credential there",
		Default: socketPath,
		set:     func(c *Config, v string) error { return setDir(&c.Socket, v) },
		get:     func(c *Config) string { return c.Socket },
	}, {
		Name: "backend", Env: "FIREBREAK_BACKEND",
		Doc:     "what makes sandboxes where a request names none: auto (the strongest that works here), gvisor, microvm, sim",
		Default: func(Source) string { return "auto" },
		set:     func(c *Config, v string) error { c.Backend = v; return nil },
		get:     func(c *Config) string { return c.Backend },
	}, {
		Name: "template", Env: "FIREBREAK_TEMPLATE",
		Doc:     "what sandboxes start from where a request names nothing, and to E2B's SDKs base: host, which is this machine's own programs, or a template",
		Default: func(Source) string { return "host" },
		set:     func(c *Config, v string) error { c.Template = v; return nil },
		get:     func(c *Config) string { return c.Template },
	}, {
		Name: "min_isolation", Env: "FIREBREAK_MIN_ISOLATION",
		Doc:     "the weakest isolation any sandbox may have, whatever a request says: none, shared-kernel, user-kernel, hypervisor, confidential",
		Default: func(Source) string { return sandbox.IsolationNone.String() },
		set:     func(c *Config, v string) (err error) { c.MinIsolation, err = sandbox.ParseIsolation(v); return err },
		get:     func(c *Config) string { return c.MinIsolation.String() },
	}, {
		Name: "machine_kernel", Env: "FIREBREAK_MACHINE_KERNEL",
		Doc: "kernel of microvm's guests; empty: the newest of Debian's cloud kernels in /boot",
		set: func(c *Config, v string) error { return setDir(&c.Machine.Kernel, v) },
		get: func(c *Config) string { return c.Machine.Kernel },
	}, {
		Name: "machine_monitor", Env: "FIREBREAK_MACHINE_MONITOR",
		Doc: "what runs microvm's guests: qemu or firecracker; empty: what works here",
		set: func(c *Config, v string) error { return setOneOf(&c.Machine.Monitor, v, "", "qemu", "firecracker") },
		get: func(c *Config) string { return c.Machine.Monitor },
	}, {
		Name: "machine_accel", Env: "FIREBREAK_MACHINE_ACCEL",
		Doc: "how: kvm, or tcg, which emulates a processor and is slow; empty: kvm where a test machine boots with it",
		set: func(c *Config, v string) error { return setOneOf(&c.Machine.Accel, v, "", "kvm", "tcg") },
		get: func(c *Config) string { return c.Machine.Accel },
	}, {
		Name: "log_format", Env: "FIREBREAK_LOG_FORMAT",
		Doc:     "format of the server's log on stderr: text or json",
		Default: func(Source) string { return "text" },
		set:     func(c *Config, v string) error { return setOneOf(&c.LogFormat, v, "text", "json") },
		get:     func(c *Config) string { return c.LogFormat },
	}, {
		Name: "log_level", Env: "FIREBREAK_LOG_LEVEL",
		Doc:     "least important messages in the log: debug, info, warn or error",
		Default: func(Source) string { return "info" },
		set:     func(c *Config, v string) error { return setOneOf(&c.LogLevel, v, "debug", "info", "warn", "error") },
		get:     func(c *Config) string { return c.LogLevel },
	}, {
		Name: "stop_sandboxes", Env: "FIREBREAK_STOP_SANDBOXES",
		Kind:    "bool",
		Doc:     "whether serve destroys its sandboxes when it stops; otherwise they run on and the next serve takes them over",
		Default: func(Source) string { return "false" },
		set:     func(c *Config, v string) error { return setBool(&c.StopSandboxes, v) },
		get:     func(c *Config) string { return strconv.FormatBool(c.StopSandboxes) },
	}, {
		Name: "max_sandboxes", Env: "FIREBREAK_MAX_SANDBOXES",
		Kind:    "int",
		Doc:     "how many sandboxes may live at once on this machine; 0: the server's own limit",
		Default: func(Source) string { return "0" },
		set: func(c *Config, v string) (err error) {
			if c.MaxSandboxes, err = strconv.Atoi(v); err != nil || c.MaxSandboxes < 0 {
				return fmt.Errorf("%q is not a number of sandboxes", v)
			}
			return nil
		},
		get: func(c *Config) string { return strconv.Itoa(c.MaxSandboxes) },
	}, {
		Name: "pool_size", Env: "FIREBREAK_POOL_SIZE",
		Kind:    "int",
		Doc:     "how many sandboxes of the default template, and of what else is asked for, serve keeps ready; 0: none",
		Default: func(Source) string { return "0" },
		set:     func(c *Config, v string) error { return setCount(&c.PoolSize, v) },
		get:     func(c *Config) string { return strconv.Itoa(c.PoolSize) },
	}, {
		Name: "pool_machines", Env: "FIREBREAK_POOL_MACHINES",
		Kind:    "int",
		Doc:     "as pool_size, of machines (backend microvm), of which the default template's are kept where they are the default backend; 0: none",
		Default: func(Source) string { return "0" },
		set:     func(c *Config, v string) error { return setCount(&c.PoolMachines, v) },
		get:     func(c *Config) string { return strconv.Itoa(c.PoolMachines) },
	}, {
		Name: "pool_max", Env: "FIREBREAK_POOL_MAX",
		Kind:    "int",
		Doc:     "how many sandboxes of a backend serve keeps ready at most, of all templates; 0: four times pool_size, or pool_machines",
		Default: func(Source) string { return "0" },
		set:     func(c *Config, v string) error { return setCount(&c.PoolMax, v) },
		get:     func(c *Config) string { return strconv.Itoa(c.PoolMax) },
	}, {
		Name: "places_max", Env: "FIREBREAK_PLACES_MAX",
		Kind:    "int",
		Doc:     "how many places serve makes ahead at most, for paused and forked sandboxes to go on in; 0: none",
		Default: func(Source) string { return "8" },
		set:     func(c *Config, v string) error { return setCount(&c.Places, v) },
		get:     func(c *Config) string { return strconv.Itoa(c.Places) },
	}, {
		Name: "pool_memory", Env: "FIREBREAK_POOL_MEMORY",
		Doc:     "how much memory the sandboxes that serve keeps ready may come to use together, by their limits; 0: no bound but pool_max",
		Default: func(Source) string { return "0" },
		set: func(c *Config, v string) (err error) {
			c.PoolMemory, err = parseAmount(orchestrator.Bytes, v)
			return err
		},
		get: func(c *Config) string { return formatAmount(orchestrator.Bytes, c.PoolMemory) },
	}, {
		Name: "pool_share", Env: "FIREBREAK_POOL_SHARE",
		Kind:    "int",
		Doc:     "percent of the time, from 1 to 100, in which serve may make sandboxes ready, one at a time",
		Default: func(Source) string { return "100" },
		set: func(c *Config, v string) (err error) {
			if c.PoolShare, err = strconv.Atoi(v); err != nil || c.PoolShare < 1 || c.PoolShare > 100 {
				return fmt.Errorf("%q is not a number from 1 to 100", v)
			}
			return nil
		},
		get: func(c *Config) string { return strconv.Itoa(c.PoolShare) },
	}, {
		Name: "allow_root", Env: "FIREBREAK_ALLOW_ROOT",
		Kind:    "bool",
		Doc:     "whether code may run as root inside its sandbox where a request asks for it",
		Default: func(Source) string { return "false" },
		set:     func(c *Config, v string) error { return setBool(&c.AllowRoot, v) },
		get:     func(c *Config) string { return strconv.FormatBool(c.AllowRoot) },
	}, {
		Name: "registry_auth_file", Env: "FIREBREAK_REGISTRY_AUTH_FILE",
		Doc: "credentials for image registries, in the format of docker's config.json; credential helpers are not run; empty: none",
		set: func(c *Config, v string) error { return setDir(&c.RegistryAuthFile, v) },
		get: func(c *Config) string { return c.RegistryAuthFile },
	}, {
		Name: "registry_private", Env: "FIREBREAK_REGISTRY_PRIVATE",
		Doc: "registries, HOST or HOST:PORT with commas between, that a server fetches images from though they are on this machine or a private network",
		set: func(c *Config, v string) error { return setHosts(&c.RegistryPrivate, v) },
		get: func(c *Config) string { return strings.Join(c.RegistryPrivate, ",") },
	}, {
		Name: "registry_insecure", Env: "FIREBREAK_REGISTRY_INSECURE",
		Doc: "registries, likewise, that are spoken to without TLS; those of this machine need not be named",
		set: func(c *Config, v string) error { return setHosts(&c.RegistryInsecure, v) },
		get: func(c *Config) string { return strings.Join(c.RegistryInsecure, ",") },
	}, {
		Name: "egress_private", Env: "FIREBREAK_EGRESS_PRIVATE",
		Doc: "networks that are not public, in CIDR notation with commas between, that policies of sandboxes may open; an address of this machine has to be named by itself",
		set: func(c *Config, v string) error { return setNetworks(&c.EgressPrivate, v) },
		get: func(c *Config) string {
			var list []string
			for _, p := range c.EgressPrivate {
				list = append(list, p.String())
			}
			return strings.Join(list, ",")
		},
	}, {
		Name: "git_private", Env: "FIREBREAK_GIT_PRIVATE",
		Doc: "servers, HOST or HOST:PORT with commas between, that --git fetches from though they are on this machine or a private network",
		set: func(c *Config, v string) error { return setHosts(&c.GitPrivate, v) },
		get: func(c *Config) string { return strings.Join(c.GitPrivate, ",") },
	}, {
		Name: "retain", Env: "FIREBREAK_RETAIN",
		Doc:     "how long records, events and results of what has ended are kept: 7d, 12h",
		Default: func(Source) string { return "7d" },
		set: func(c *Config, v string) error {
			if err := setAge(&c.Retain, v); err != nil {
				return err
			}
			if c.Retain < time.Minute {
				return fmt.Errorf("%q is less than a minute", v)
			}
			return nil
		},
		get: func(c *Config) string { return age(c.Retain) },
	}, {
		Name: "retain_audit", Env: "FIREBREAK_RETAIN_AUDIT",
		Doc:     "how long evidence is kept: forever, 365d; what expired is recorded. Left out: forever, and 90 days of runs without a server",
		Default: func(Source) string { return forever },
		set: func(c *Config, v string) error {
			if v == forever {
				c.RetainAudit = 0
				return nil
			}
			if err := setAge(&c.RetainAudit, v); err != nil {
				return err
			}
			if c.RetainAudit < 24*time.Hour {
				return fmt.Errorf("%q is less than a day", v)
			}
			return nil
		},
		get: func(c *Config) string {
			if c.RetainAudit == 0 {
				return forever
			}
			return age(c.RetainAudit)
		},
	}, {
		Name: "audit_witness", Env: "FIREBREAK_AUDIT_WITNESS",
		Doc: "witnesses that cosign the audit log, each an address and a public key with a space between, commas between several; empty: none",
		set: setWitnesses,
		get: func(c *Config) string { return c.auditWitness },
	},
}, machineKeys(), quotaKeys())

func setHosts(to *[]string, v string) error {
	*to = nil
	for h := range strings.SplitSeq(v, ",") {
		h = strings.TrimSpace(h)
		if strings.ContainsAny(h, "/ \t@*") {
			return fmt.Errorf("%q is not HOST or HOST:PORT", h)
		}
		if h != "" {
			*to = append(*to, h)
		}
	}
	return nil
}

// setNetworks reads networks, or addresses for the network of them alone.
func setNetworks(to *[]netip.Prefix, v string) error {
	*to = nil
	for s := range strings.SplitSeq(v, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("%q is not a network: write 10.1.0.0/16", s)
		}
		*to = append(*to, p)
	}
	return nil
}

func setWitnesses(c *Config, v string) error {
	c.AuditWitnesses, c.auditWitness = nil, strings.TrimSpace(v)
	for w := range strings.SplitSeq(v, ",") {
		if strings.TrimSpace(w) == "" {
			continue
		}
		address, err := audit.ParseWitness(w)
		if err != nil {
			return err
		}
		for _, other := range c.AuditWitnesses {
			if other.Key.Name() == address.Key.Name() {
				return fmt.Errorf("witness %s is named twice", address.Key.Name())
			}
		}
		c.AuditWitnesses = append(c.AuditWitnesses, address)
	}
	return nil
}

func setBool(to *bool, v string) (err error) {
	if *to, err = strconv.ParseBool(v); err != nil {
		return fmt.Errorf("%q is neither true nor false", v)
	}
	return nil
}

func dataDir(s Source) string {
	if s.Root {
		return "/var/lib/firebreak"
	}
	if d := s.env("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "firebreak")
	}
	if home := s.env("HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "firebreak")
	}
	return ""
}

func socketPath(s Source) string {
	if s.Root {
		return "/run/firebreak/firebreak.sock"
	}
	if d := s.env("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "firebreak", "firebreak.sock")
	}
	// Without a runtime directory a user's socket lives with the data.
	if d := dataDir(s); d != "" {
		return filepath.Join(d, "firebreak.sock")
	}
	return ""
}

const (
	forever = "forever"
	day     = 24 * time.Hour
)

// setAge parses a duration, which may also be a number of days.
func setAge(to *time.Duration, v string) error {
	var d time.Duration
	n, isDays := strings.CutSuffix(v, "d")
	days, err := strconv.ParseUint(n, 10, 16)
	if isDays && err == nil {
		d = time.Duration(days) * day
	} else if d, err = time.ParseDuration(v); err != nil || d < 0 {
		return fmt.Errorf("%q is no duration such as 7d or 12h", v)
	}
	*to = d
	return nil
}

// age is the inverse of setAge.
func age(d time.Duration) string {
	if d%day == 0 && d > 0 {
		return strconv.Itoa(int(d/day)) + "d"
	}
	return d.String()
}

func setDir(to *string, v string) error {
	if v == "" {
		*to = ""
		return nil
	}
	abs, err := filepath.Abs(v)
	if err != nil {
		return err
	}
	*to = abs
	return nil
}

func setOneOf(to *string, v string, allowed ...string) error {
	if !slices.Contains(allowed, v) {
		return fmt.Errorf("%q is not one of %s", v, strings.Join(allowed, ", "))
	}
	*to = v
	return nil
}

// The addresses that serve listens on where nothing else is said.
const (
	defaultListen    = "127.0.0.1:7878"
	defaultE2BListen = "127.0.0.1:7879"
)

func setListen(c *Config, v string) error { return setAddress(&c.Listen, v) }

// setE2BListen is called after setListen: a server that was put elsewhere does
// not take a fixed port beside.
func setE2BListen(c *Config, v string) error {
	if v == "auto" {
		v = ""
		if c.Listen == defaultListen {
			v = defaultE2BListen
		}
	}
	return setAddress(&c.E2BListen, v)
}

func setAddress(to *string, v string) error {
	if v != "" {
		_, port, err := net.SplitHostPort(v)
		if err != nil {
			return fmt.Errorf("%q is not HOST:PORT", v)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q is not a port", port)
		}
	}
	*to = v
	return nil
}

// reDomain is a domain name, with a port or without.
var reDomain = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[0-9]{1,5})?$`)

func setE2BDomain(c *Config, v string) error {
	if v != "" && !reDomain.MatchString(v) {
		return fmt.Errorf("%q is not a domain", v)
	}
	c.E2BDomain = v
	return nil
}

// setCount sets a number of things, none of which is negative.
func setCount(to *int, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a number, from 0 on", v)
	}
	*to = n
	return nil
}
