package cli

import (
	"cmp"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) keyCommand() *cobra.Command {
	return group("key", "Create, list and revoke API keys", a.keyCreate(), a.keyLs(), a.keyRm())
}

func (a *App) keyCreate() *cobra.Command {
	var name, role string
	var ttl time.Duration
	var asJSON, e2b bool
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make an API key and print it, this once",
		Long: `Create makes a key for the caller's tenant. The key itself is printed on standard
output, once, and stored nowhere.

Roles: owner (everything), admin (everything but the owner's keys), developer (run
code, read and write files, build templates), viewer (look, never touch).

With --e2b the key is spelt as E2B's SDKs demand, e2b_ and 40 hexadecimal digits.
It works everywhere, like any other.`,
		Example: "  firebreak key create --name ci --role developer --ttl 720h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl < 0 {
				return sandbox.Errorf("--ttl", sandbox.KindInvalid, "%s is negative", ttl)
			}
			return a.withSession(cmd, func(s *session) error {
				k, err := s.CreateKey(cmd.Context(), client.NewKey{Name: name, Role: role, TTL: ttl, E2B: e2b})
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(map[string]string{
						"id": k.GetKey().GetId(), "name": k.GetKey().GetName(), "role": k.GetKey().GetRole(), "secret": k.GetSecret(),
					})
				}
				if terminal(a.Err) {
					a.say("key %s (%s): keep it, it is shown only now", k.GetKey().GetId(), k.GetKey().GetRole())
				}
				_, err = fmt.Fprintln(a.Out, k.GetSecret())
				return err
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "what it is for")
	fs.StringVar(&role, "role", "developer", "owner, admin, developer or viewer")
	fs.DurationVar(&ttl, "ttl", 0, "how long it is good; 0: until it is revoked")
	fs.BoolVar(&e2b, "e2b", false, "spell it as E2B's SDKs demand")
	fs.BoolVar(&asJSON, "json", false, "print an object with id and secret")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"owner", "admin", "developer", "viewer"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *App) keyLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List API keys", Args: cobra.NoArgs,
		Example: "  firebreak key ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/keys", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				keys, err := s.Keys(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tNAME\tROLE\tCREATED\tUSED\tEXPIRES")
				for _, k := range keys {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.GetId(), visible(cmp.Or(k.GetName(), "-")), k.GetRole(),
						date(k.GetCreatedAt()), date(k.GetLastUsedAt()), date(k.GetExpiresAt()))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func date(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().Local().Format("2006-01-02 15:04")
}

func (a *App) keyRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm ID...", Aliases: []string{"revoke"}, Short: "Revoke API keys at once", Args: cobra.MinimumNArgs(1),
		Example: "  firebreak key rm k1abc",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				var errs []error
				for _, id := range args {
					if err := s.DeleteKey(cmd.Context(), id); err != nil {
						errs = append(errs, err)
					} else {
						fmt.Fprintln(a.Out, id)
					}
				}
				return a.all(errs)
			})
		},
	}
}
