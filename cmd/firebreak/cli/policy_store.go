package cli

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// What follows manages the policies a server keeps.

func (a *App) policySet() *cobra.Command {
	var ifDigest string
	cmd := &cobra.Command{
		Use:   "set NAME FILE|-",
		Short: "Store a policy on the server under a name",
		Long: `Set stores a policy (- is standard input) under NAME, in place of what was there, for
--policy NAME and for the include of other policies. What is no policy is refused with
the line. What it includes has to be built in or stored already.

A sandbox keeps the policy it began with: firebreak network ID --policy NAME updates it.`,
		Example: `  firebreak policy set build build.yaml
  firebreak policy show build | sed s/8443/443/ | firebreak policy set build -`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !policy.ValidName(args[0]) {
				return sandbox.Errorf("policy", sandbox.KindInvalid, "%.80q is not a name: lower-case letters, digits, dots and hyphens", args[0])
			}
			text, err := a.policyText(args[1])
			if err != nil {
				return err
			}
			return a.withSession(cmd, func(s *session) error {
				p, err := s.SetPolicy(cmd.Context(), args[0], text, ifDigest)
				if err != nil {
					return err
				}
				for _, w := range p.GetWarnings() {
					a.say("warning: %s", w)
				}
				_, err = fmt.Fprintf(a.Out, "%s version %d sha256:%s\n", visible(p.GetName()), p.GetVersion(), visible(p.GetDigest()))
				return sandbox.Wrap("print", "", err)
			})
		},
	}
	cmd.Flags().StringVar(&ifDigest, "if-digest", "", "only if what is there has this SHA-256; none: only if nothing is there")
	return cmd
}

// policyText reads a policy and checks that it is one by itself, so that the
// error names the file.
func (a *App) policyText(file string) (string, error) {
	in := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", sandbox.Errorf("policy", sandbox.KindInvalid, "%w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxPolicyFile))
	if err != nil {
		return "", sandbox.Errorf("policy", sandbox.KindInvalid, "%w", err)
	}
	_, err = policy.Parse(file, text)
	return string(text), err
}

func (a *App) policyLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List stored and built-in policies", Args: cobra.NoArgs,
		Example: "  firebreak policy ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/policies", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				list, err := s.Policies(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tVERSION\tSET\tBY\tSHA256")
				for _, p := range list {
					version, by := strconv.FormatInt(p.GetVersion(), 10), p.GetPrincipal()
					if p.GetBuiltIn() {
						version, by = "built in", "-"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", visible(p.GetName()), version, date(p.GetUpdatedAt()), visible(by), visible(p.GetDigest()[:min(12, len(p.GetDigest()))]))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func (a *App) policyShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Print a stored or built-in policy as it was written",
		Long:  `Show prints the text of a policy. Built-in ones need no server.`,
		Example: `  firebreak policy show pypi
  firebreak policy show build > build.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if text, err := policy.PresetText(args[0]); err == nil && !asJSON {
				return a.showText(string(text))
			}
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/policies/"+url.PathEscape(args[0]), nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				p, err := s.Policy(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.showText(p.GetText())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func (a *App) policyRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Forget stored policies; sandboxes that began with them keep them", Args: cobra.MinimumNArgs(1),
		Example: "  firebreak policy rm build",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				var errs []error
				for _, name := range args {
					if err := s.RemovePolicy(cmd.Context(), name); err != nil {
						errs = append(errs, err)
					} else {
						fmt.Fprintln(a.Out, visible(name))
					}
				}
				return a.all(errs)
			})
		},
	}
}
