package cli

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) bindingCommand() *cobra.Command {
	return group("binding", "Say what a secret may be used for", a.bindingAdd(), a.bindingLs(), a.bindingRm())
}

func (a *App) bindingAdd() *cobra.Command {
	var b client.Binding
	var port uint16
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "add NAME --secret SECRET --host HOST",
		Short: "Let sandboxes use a secret for one host, without seeing it",
		Long: `Add stores a binding under NAME, in place of what was there: a secret and the only use
that may be made of it. A sandbox that is given the binding sends requests to
http://NAME.binding.internal; they go on to HOST with the secret added, if their method
and their path are the binding's.

The secret goes into Authorization as a bearer token, or --as basic (--field is the
user), header (--field is its name) or query (--field is the parameter).

With --placeholder programs need no other URL: they find something in that variable
which, sent to https://HOST where the secret goes, becomes the secret there. It is
different in each sandbox, and means nothing anywhere else.

With --git a binding is for one repository, and what git's own programs ask of it: they
clone http://NAME.binding.internal/OWNER/REPO, and push to the refs of --git-push. The
secret is sent as the password of x-access-token.

Whoever can make sandboxes can give them the binding: what the host lets the secret do,
code that nobody reviewed can do through it.`,
		Example: `  firebreak binding add openai --secret openai --host api.openai.com --path /v1
  firebreak binding add weather --secret weather --host api.example.com --method GET --as query --field key
  firebreak binding add registry --secret registry --host pkgs.example.com --as header --field X-Api-Key --tier user-kernel
  firebreak binding add openai --secret openai --host api.openai.com --path /v1 --placeholder OPENAI_API_KEY
  firebreak binding add gh --secret ghtoken --host github.com --git owner/repo --git-push 'refs/heads/agent/*'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.Name, b.Port = args[0], int(port)
			return a.withSession(cmd, func(s *session) error {
				kept, err := s.AddBinding(cmd.Context(), b)
				if err != nil {
					return err
				}
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/bindings/"+kept.GetName(), nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				_, err = fmt.Fprintf(a.Out, "%s version %d: http://%s.binding.internal is %s\n", visible(kept.GetName()), kept.GetVersion(), visible(kept.GetName()), visible(upstream(kept)))
				return sandbox.Wrap("print", "", err)
			})
		},
	}
	bindingFlags(cmd, &b, &port, &asJSON)
	return cmd
}

// bindingFlags are those that say what a binding is.
func bindingFlags(cmd *cobra.Command, b *client.Binding, port *uint16, asJSON *bool) {
	fs := cmd.Flags()
	fs.StringVar(&b.Secret, "secret", "", "the secret's name")
	fs.StringVar(&b.Host, "host", "", "where requests go: one name")
	fs.Uint16Var(port, "port", 0, "its port (default 443, or 80 with --plain)")
	fs.BoolVar(&b.Plain, "plain", false, "without TLS: the secret crosses the network in the clear")
	fs.StringArrayVar(&b.Methods, "method", nil, "a method that may be used (repeatable; default GET, HEAD, POST, PUT, PATCH, DELETE)")
	fs.StringVar(&b.Path, "path", "", "what paths begin with, by whole segments (default /)")
	fs.StringVar(&b.As, "as", "", "where the secret goes: bearer, basic, header or query (default bearer)")
	fs.StringVar(&b.Field, "field", "", "the header or the parameter; for basic the user")
	fs.StringVar(&b.Tier, "tier", "", "the weakest isolation class of a sandbox that may use it")
	fs.StringVar(&b.Git, "git", "", "the one repository that it is for, OWNER/NAME")
	fs.StringArrayVar(&b.GitPush, "git-push", nil, "a ref that may be pushed to, or refs/heads/agent/* (repeatable; default none)")
	fs.StringVar(&b.Placeholder, "placeholder", "", "the variable that is to hold what stands for the secret in requests to https://HOST")
	fs.BoolVar(asJSON, "json", false, "print what the API shows")
	_ = cmd.MarkFlagRequired("secret")
	_ = cmd.MarkFlagRequired("host")
	complete := func(flag string, words ...string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	complete("as", "bearer", "basic", "header", "query")
	complete("tier", "shared-kernel", "user-kernel", "hypervisor", "confidential")
}

// upstream is where a binding's requests go.
func upstream(b *v1.Binding) string {
	scheme, usual := "https", int32(443)
	if b.GetPlain() {
		scheme, usual = "http", 80
	}
	port := ""
	if b.GetPort() != usual {
		port = fmt.Sprint(":", b.GetPort())
	}
	return scheme + "://" + b.GetHost() + port + strings.TrimSuffix(b.GetPath(), "/")
}

func (a *App) bindingLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List bindings", Args: cobra.NoArgs,
		Example: "  firebreak binding ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/bindings", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				list, err := s.Bindings(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tSECRET\tUPSTREAM\tMETHODS\tAS\tPLACEHOLDER\tTIER\tSET\tBY")
				for _, b := range list {
					uses := strings.Join(b.GetMethods(), ",")
					if b.GetGit() != "" {
						uses = strings.Join(append([]string{"fetch"}, b.GetGitPush()...), ",")
					}
					as := strings.TrimSpace(b.GetAs() + " " + b.GetField())
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", visible(b.GetName()), visible(b.GetSecret()), visible(upstream(b)),
						visible(cmp.Or(uses, "usual")), visible(as), visible(cmp.Or(b.GetPlaceholder(), "-")), visible(cmp.Or(b.GetTier(), "any")), date(b.GetUpdatedAt()), visible(b.GetPrincipal()))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func (a *App) bindingRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Forget bindings", Args: cobra.MinimumNArgs(1),
		Example: "  firebreak binding rm openai",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				return a.each(args, func(name string) error { return s.RemoveBinding(cmd.Context(), name) })
			})
		},
	}
}
