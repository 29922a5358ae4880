package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) contextCommand() *cobra.Command {
	c := group("context", "List and look after the warm interpreters of a sandbox", a.contextLs(), a.contextRm(),
		a.contextDo("restart", "Give contexts fresh interpreters, with empty state", `Restart ends each interpreter with all it started, and starts a fresh one under the
same id. It is also the way back for one that is dead.`, func(sb *client.Sandbox, ctx context.Context, id string) error {
			_, err := sb.RestartContext(ctx, id)
			return err
		}),
		a.contextDo("interrupt", "Interrupt what contexts run; their state stays", `Interrupt ends the turn that a context runs, as Ctrl-C does: its eval ends with 137,
variables and files stay. One that runs nothing is left as it is.`, (*client.Sandbox).InterruptContext))
	c.Long = "Contexts are the interpreters that eval uses: see `firebreak eval --help`. Python and node\nare made by the first eval; CONTEXT is an id of ls."
	return c
}

func (a *App) contextLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "ls ID",
		Aliases:           []string{"list"},
		Short:             "List the contexts of a sandbox, those that died lately included",
		Example:           "  firebreak context ls $id\n  firebreak context ls --json $id",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					return a.contextsJSON(cmd.Context(), s, args[0])
				}
				return a.listContexts(cmd.Context(), s.Sandbox(args[0]))
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

func (a *App) listContexts(ctx context.Context, sb *client.Sandbox) error {
	all, err := sb.Contexts(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tLANGUAGE\tSTATE\tPID\tTURNS\tWAITING\tAGE\tEND")
	for _, c := range all {
		end := c.GetReason()
		if c.GetDetail() != "" {
			end += " (" + c.GetDetail() + ")"
		}
		fmt.Fprintln(w, visible(fmt.Sprintf("%s\t%s\t%s\t%d\t%d\t%d\t%s\t%s", c.GetId(), c.GetLanguage(), c.GetState(), c.GetPid(), c.GetTurns(), c.GetWaiting(),
			age(time.Since(c.GetCreatedAt().AsTime())), cmp.Or(end, "-"))))
	}
	return w.Flush()
}

// contextsJSON prints the contexts exactly as the API shows them.
func (a *App) contextsJSON(ctx context.Context, s *session, id string) error {
	body, err := s.JSON(ctx, "/v1/sandboxes/"+url.PathEscape(id)+"/contexts", nil)
	if err != nil {
		return err
	}
	var list struct {
		Contexts []json.RawMessage `json:"contexts"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return sandbox.Errorf("context ls", sandbox.KindProtocol, "%w", err)
	}
	return a.printJSON(append([]json.RawMessage{}, list.Contexts...))
}

func (a *App) contextRm() *cobra.Command {
	return a.contextDo("rm", "End contexts with all they started, and forget them", "Rm ends each interpreter; an eval that it runs ends with 125.", (*client.Sandbox).DeleteContext)
}

// contextDo is a command that does one thing to each context named.
func (a *App) contextDo(name, short, long string, do func(*client.Sandbox, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               name + " ID CONTEXT...",
		Short:             short,
		Long:              long,
		Example:           "  firebreak context " + name + " $id python",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				var errs []error
				for _, id := range args[1:] { // one that fails must not keep the others from it
					if err := do(s.Sandbox(args[0]), cmd.Context(), id); err != nil {
						errs = append(errs, err)
					}
				}
				return a.all(errs)
			})
		},
	}
}

// completeContexts completes a sandbox, and then its contexts.
func (a *App) completeContexts(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.sandboxNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	s, err := a.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer s.close()
	all, err := s.Sandbox(args[0]).Contexts(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, c := range all {
		if strings.HasPrefix(c.GetId(), prefix) {
			ids = append(ids, cobra.CompletionWithDesc(c.GetId(), c.GetLanguage()+", "+c.GetState()))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
