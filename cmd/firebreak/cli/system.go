package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// serveKeys are the configuration keys that are flags of serve, and of config.
var serveKeys = []string{"listen", "e2b_listen", "e2b_domain", "socket", "backend", "log_format", "log_level", "stop_sandboxes", "allow_root", "retain", "retain_audit", "audit_witness", "max_sandboxes",
	"tenant_sandboxes", "tenant_memory", "tenant_disk", "tenant_kept", "tenant_execs", "tenant_requests", "disk_reserve"}

func (a *App) configCommand() *cobra.Command {
	var asJSON bool
	var doc strings.Builder
	w := tabwriter.NewWriter(&doc, 0, 0, 2, ' ', 0)
	for _, k := range config.Keys {
		name := k.Name
		if k.Secret {
			name = "-"
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\n", name, k.Env, k.Doc)
	}
	w.Flush()
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the effective configuration and where each value comes from",
		Long: `Config prints every value and its origin: a flag, an environment variable, the
file, or the default, in this order of precedence.

The file is /etc/firebreak/firebreak.yaml as root, $XDG_CONFIG_HOME/firebreak/firebreak.yaml
otherwise, or what --config or FIREBREAK_CONFIG names. It holds "key: value" lines;
an unknown key is an error. The keys, and their environment variables:

` + doc.String(),
		Example: "  firebreak config\n  firebreak config --json | jq -r .data.value",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			if asJSON {
				type value struct {
					Value  string `json:"value"`
					Origin string `json:"origin"`
				}
				m := map[string]value{}
				for _, k := range config.Keys {
					m[k.Name] = value{c.Value(k), c.Origin(k.Name)}
				}
				return a.printJSON(m)
			}
			state := "not there"
			if c.FileRead {
				state = "read"
			}
			fmt.Fprintf(a.Out, "# file: %s (%s)\n", c.File, state)
			w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
			for _, k := range config.Keys {
				fmt.Fprintf(w, "%s: %s\t# %s\n", k.Name, c.Value(k), c.Origin(k.Name))
			}
			return w.Flush()
		},
	}
	a.configFlags(cmd.Flags(), serveKeys...)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

func (a *App) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Example: "  firebreak version --json",
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return a.printJSON(a.Build)
			}
			b := a.Build
			line := "firebreak " + b.Version
			if b.Revision != "" {
				line += " (" + b.Revision + ")"
			}
			if b.GVisor != "" {
				line += ", gVisor " + b.GVisor
			}
			_, err := fmt.Fprintf(a.Out, "%s, %s %s/%s\n", line, b.Go, b.OS, b.Arch)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

func (a *App) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the API until it is told to stop",
		Long: `Serve listens on a TCP address and on a local socket and owns its data directory.
Over TCP every call needs a key; the first one is written, readable by its owner
only, to api-key in the data directory. On the socket the caller's uid is the
credential.

On SIGTERM or Ctrl-C it finishes what is under way and stops. Its sandboxes run
on and the next serve takes them over; with --stop-sandboxes they are destroyed.`,
		Example: `  firebreak serve
  firebreak serve --listen 0.0.0.0:7878 --log-format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			if a.Serve == nil {
				return sandbox.Errorf("serve", sandbox.KindUnsupported, "this build cannot serve").WithHint("run it on Linux")
			}
			return a.Serve(cmd.Context(), ServeOptions{Config: c, Log: a.Err, Ready: a.printServing})
		},
	}
	a.configFlags(cmd.Flags(), serveKeys...)
	return cmd
}

// printServing tells a person how to reach the server.
func (a *App) printServing(s Serving) {
	var b strings.Builder
	fmt.Fprintf(&b, "firebreak %s is ready; sandboxes by %s\n", a.Build.Version, s.Backend)
	fmt.Fprintf(&b, "  data    %s\n", s.Data)
	if s.Socket != "" {
		fmt.Fprintf(&b, "  socket  %s    (curl --unix-socket %s -X POST http://localhost/sandboxes)\n", s.Socket, s.Socket)
	}
	if s.URL != "" {
		fmt.Fprintf(&b, "  URL     %s\n  key     %s\n", s.URL, s.KeyFile)
		fmt.Fprintf(&b, "  try     curl -H \"Authorization: Bearer $(cat %s)\" -X POST %s/v1/sandboxes\n", s.KeyFile, s.URL)
	}
	if s.E2B != "" {
		fmt.Fprintf(&b, "  E2B     export E2B_API_URL=%s\n          export E2B_SANDBOX_URL=%s\n", s.E2B, s.E2B)
		fmt.Fprint(&b, "          export E2B_API_KEY=$(firebreak key create --e2b)\n")
	}
	fmt.Fprint(a.Err, b.String())
}

// Check is one thing doctor looked at.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, weak (works, but something is not enforced), failed
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // the command or step that mends it
	// Isolates marks the checks of which one must be ok or weak for code to be run.
	Isolates bool `json:"isolates,omitempty"`
}

func (a *App) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what is enforced on this machine, what is not, and how to mend it",
		Long: `Doctor looks at the kernel, cgroups, the embedded programs, templates, disk and
server, and boots a real sandbox. Exit code 0 if something here can isolate code,
1 otherwise.`,
		Example: "  firebreak doctor\n  firebreak doctor --json | jq '.checks[] | select(.status != \"ok\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			var checks []Check
			if a.Examine != nil {
				checks = a.Examine(cmd.Context(), c)
			}
			checks = append(checks, a.checkServer(cmd.Context())...)
			return a.printChecks(checks, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// checkServer asks the server, if there is one, what it enforces.
func (a *App) checkServer(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := a.remote(ctx)
	if err == nil && s == nil {
		return []Check{{Name: "server", Status: "ok", Detail: "none on the local socket; run brings its own"}}
	}
	if err != nil {
		return []Check{{Name: "server", Status: "failed", Detail: err.Error(), Fix: "check FIREBREAK_URL and FIREBREAK_API_KEY"}}
	}
	defer s.close()
	backends, auto, err := s.Backends(ctx)
	if err != nil {
		return []Check{{Name: "server", Status: "failed", Detail: err.Error(), Fix: "check FIREBREAK_URL and FIREBREAK_API_KEY"}}
	}
	checks := []Check{{Name: "server", Status: "ok", Detail: "answers; auto takes " + cmp.Or(auto, "nothing")}}
	for _, b := range backends {
		if b.GetIsolation() == sandbox.IsolationNone.String() {
			continue // a model for tests
		}
		c := Check{Name: "server: " + b.GetName(), Status: "ok", Isolates: b.GetAvailable()}
		c.Detail = fmt.Sprintf("%s, enforces %s", b.GetIsolation(), cmp.Or(strings.Join(b.GetLimits(), ", "), "no limit"))
		if !b.GetAvailable() {
			c.Status, c.Detail, c.Fix = "failed", b.GetReason(), b.GetHint()
		} else if len(b.GetNotes()) > 0 {
			c.Status, c.Detail = "weak", c.Detail+"; "+strings.Join(b.GetNotes(), "; ")
		}
		checks = append(checks, c)
	}
	return checks
}

func (a *App) printChecks(checks []Check, asJSON bool) error {
	isolates := false
	for _, c := range checks {
		isolates = isolates || c.Isolates && c.Status != "failed"
	}
	if asJSON {
		if err := a.printJSON(map[string]any{"isolates": isolates, "checks": checks}); err != nil {
			return err
		}
	} else {
		for _, c := range checks {
			fmt.Fprintf(a.Out, "%-7s %-22s %s\n", c.Status, c.Name, oneLine(c.Detail))
			if c.Fix != "" {
				fmt.Fprintf(a.Out, "%-7s %-22s mend: %s\n", "", "", oneLine(c.Fix))
			}
		}
		if isolates {
			fmt.Fprintln(a.Out, "\nCode can be isolated here.")
		} else {
			fmt.Fprintln(a.Out, "\nNothing here can isolate code.")
		}
	}
	if !isolates {
		return exitError{exitFailed}
	}
	return nil
}

// UninstallOptions says what to remove.
type UninstallOptions struct {
	DryRun    bool
	KeepAudit bool
	Out       func(string) // told about each thing removed
}

func (a *App) uninstallCommand() *cobra.Command {
	var yes, keep bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove everything Firebreak has put on this machine",
		Long: `Uninstall destroys leftover sandboxes and removes what is in the data directory:
state, templates, keys and unpacked programs. It refuses while a server owns the
directory. Without --yes it only says what it would do. The program itself stays.

The audit log stays, too: somebody may have to answer for what was done, and only
--keep-audit=false removes the proof. Files that are not Firebreak's are left alone.`,
		Example: "  firebreak uninstall\n  firebreak uninstall --yes\n  firebreak uninstall --yes --keep-audit=false",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			if a.Uninstall == nil {
				return sandbox.Errorf("uninstall", sandbox.KindUnsupported, "nothing is ever installed on this system")
			}
			return a.Uninstall(cmd.Context(), c, UninstallOptions{DryRun: !yes, KeepAudit: keep, Out: func(s string) { fmt.Fprintln(a.Out, s) }})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&keep, "keep-audit", true, "leave the audit log")
	return cmd
}
