package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *App) watchCommand() *cobra.Command {
	var recursive, asJSON bool
	cmd := &cobra.Command{
		Use:   "watch ID[:PATH]",
		Short: "Print what changes in a directory of a sandbox",
		Long: `Watch prints a line for each change in PATH (default the home), and with -r in all
below it: create, write, remove, rename, chmod, and the path from there. It begins
with start: what happens after that line is seen. A line that says overflow stands
where changes are missing. It ends when the directory is removed or renamed.`,
		Example:           "  firebreak watch -r $id:src",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			at := parseRemote(args[0])
			if at.id == "" {
				at = remotePath{id: args[0]}
			}
			return a.withSession(cmd, func(s *session) error {
				for e, err := range s.Sandbox(at.id).WatchFiles(cmd.Context(), at.path, recursive) {
					if err != nil {
						return err
					}
					line := fmt.Sprintf("%-8s %s", e.GetType(), visible(e.GetPath()))
					if asJSON {
						b, err := json.Marshal(map[string]string{"type": e.GetType(), "path": e.GetPath()})
						if err != nil {
							return err
						}
						line = string(harmless(b))
					}
					if _, err := fmt.Fprintln(a.Out, line); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&recursive, "recursive", "r", false, "watch directories below it, too")
	fs.BoolVar(&asJSON, "json", false, "print each change as a JSON object on a line of its own")
	return cmd
}
