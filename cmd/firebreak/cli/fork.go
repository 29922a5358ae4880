package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) forkCommand() *cobra.Command {
	var o client.ForkOptions
	var timeout, idle time.Duration
	var env []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "fork ID",
		Short: "Make sandboxes that go on where one is now",
		Long: `Fork copies a sandbox that runs, or is paused, with its memory: each child goes on with
the files, programs and interpreters of this moment, under an id of its own, and with
randomness of its own. The first goes on, too. It prints the children's ids, one a line;
those that could not be made, for want of quota for instance, are told of on standard
error, and the exit code says so. The others stand.`,
		Example: `  firebreak fork $id
  firebreak fork $id -n 8 --timeout 10m
  firebreak fork $id --name left --name right`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			o.Timeout = never(cmd.Flags().Changed("timeout"), timeout)
			o.IdleTimeout = never(cmd.Flags().Changed("idle-timeout"), idle)
			if o.Env, err = parseEnv(env, a.Lookup); err != nil {
				return err
			}
			return a.withSession(cmd, func(s *session) error {
				children, err := s.Sandbox(args[0]).Fork(cmd.Context(), o)
				if err != nil {
					return err
				}
				return a.printChildren(children, asJSON)
			})
		},
	}
	fs := cmd.Flags()
	fs.IntVarP(&o.Count, "count", "n", 0, "how many (default 1, or as many as there are names)")
	fs.StringArrayVar(&o.Names, "name", nil, "name of the next child, unique among live sandboxes; repeatable")
	fs.DurationVar(&timeout, "timeout", 0, "end each after this time; 0: never (default: as its parent)")
	fs.DurationVar(&idle, "idle-timeout", 0, "end each when unused for this long; 0: never (default: as its parent)")
	fs.StringArrayVarP(&env, "env", "e", nil, "set K=V, or pass K on from here, for programs that are started in them (repeatable)")
	fs.BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}

// childOut is what became of a child, as the API shows it, short.
type childOut struct {
	ID    string         `json:"sandbox_id,omitempty"`
	Name  string         `json:"name,omitempty"`
	Error *childErrorOut `json:"error,omitempty"`
}

type childErrorOut struct {
	Kind    sandbox.Kind `json:"kind"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

// printChildren tells what became of each child of a fork. Its error says why those
// that are missing are.
func (a *App) printChildren(children []client.Child, asJSON bool) error {
	out := make([]childOut, len(children))
	var errs []error
	for i, c := range children {
		if c.Err == nil {
			out[i] = childOut{ID: c.ID(), Name: c.Info.GetName()}
			continue
		}
		errs = append(errs, c.Err)
		e := &childErrorOut{Kind: sandbox.KindOf(c.Err), Message: c.Err.Error()}
		var typed *sandbox.Error
		if errors.As(c.Err, &typed) {
			e.Message, e.Hint = typed.Message(), typed.Hint
		}
		out[i].Error = e
	}
	if asJSON {
		return errors.Join(a.printJSON(map[string]any{"children": out}), a.all(errs))
	}
	for _, c := range out {
		if c.Error == nil {
			if _, err := fmt.Fprintln(a.Out, c.ID); err != nil {
				return err
			}
		}
	}
	return a.all(errs)
}
