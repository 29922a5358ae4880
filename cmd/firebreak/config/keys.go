package config

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Keys is everything that can be set, in the order it is printed.
var Keys = []Key{
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
		Default: func(Source) string { return "127.0.0.1:7878" },
		set:     setListen,
		get:     func(c *Config) string { return c.Listen },
	}, {
		Name: "socket", Env: "FIREBREAK_SOCKET",
		Doc:     "unix socket that serve listens on and commands look for; the caller's uid is the credential there",
		Default: socketPath,
		set:     func(c *Config, v string) error { return setDir(&c.Socket, v) },
		get:     func(c *Config) string { return c.Socket },
	}, {
		Name: "backend", Env: "FIREBREAK_BACKEND",
		Doc:     "what makes sandboxes where a request names none: auto (the strongest that works here), gvisor, sim",
		Default: func(Source) string { return "auto" },
		set:     func(c *Config, v string) error { c.Backend = v; return nil },
		get:     func(c *Config) string { return c.Backend },
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
		Doc:     "whether serve destroys its sandboxes when it stops; otherwise they run on and the next serve takes them over",
		Default: func(Source) string { return "false" },
		set:     func(c *Config, v string) error { return setBool(&c.StopSandboxes, v) },
		get:     func(c *Config) string { return strconv.FormatBool(c.StopSandboxes) },
	}, {
		Name: "max_sandboxes", Env: "FIREBREAK_MAX_SANDBOXES",
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
		Name: "allow_root", Env: "FIREBREAK_ALLOW_ROOT",
		Doc:     "whether code may run as root inside its sandbox where a request asks for it",
		Default: func(Source) string { return "false" },
		set:     func(c *Config, v string) error { return setBool(&c.AllowRoot, v) },
		get:     func(c *Config) string { return strconv.FormatBool(c.AllowRoot) },
	},
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

func setListen(c *Config, v string) error {
	if v != "" {
		_, port, err := net.SplitHostPort(v)
		if err != nil {
			return fmt.Errorf("%q is not HOST:PORT", v)
		}
		if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			return fmt.Errorf("%q is not a port", port)
		}
	}
	c.Listen = v
	return nil
}
