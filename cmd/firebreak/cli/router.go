package cli

import (
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// routerCommand is the program of the process that dials for sandboxes. Nobody
// types it.
func (a *App) routerCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "router",
		Short: "Be the process that dials for sandboxes",
		Long: `Router is what servers start as a process of its own when a sandbox has a policy.
It serves the one that started it, which took its privileges first, and refuses
anybody else.`,
		Example: "  firebreak serve   # starts it where a sandbox needs it",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.Router == nil {
				return sandbox.Errorf("router", sandbox.KindUnsupported, "there is none here")
			}
			return a.Router(cmd.Context())
		},
	}
}
