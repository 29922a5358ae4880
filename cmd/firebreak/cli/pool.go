package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) poolCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Show which sandboxes are kept ready",
		Long: `Pool prints which sandboxes the server has ready before anybody asks for them: a
create of the same template and limits, without network rules and without an id or
a host name of its own, takes one of them and boots nothing. The keys pool_size
and pool_max of firebreak.yaml say how many are kept.`,
		Example: "  firebreak pool\n  firebreak pool --json | jq '.shelves[] | {ready, hits, misses}'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/pool", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				r, err := s.Pool(cmd.Context())
				if err != nil {
					return err
				}
				if !r.GetEnabled() {
					fmt.Fprintln(a.Out, "nothing is kept ready; pool_size in firebreak.yaml, or FIREBREAK_POOL_SIZE, says how many")
					return nil
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "TEMPLATE\tBACKEND\tMEMORY\tCPUS\tREADY\tMAKING\tWANTED\tHITS\tMISSES\tFAILED")
				for _, x := range r.GetShelves() {
					fmt.Fprintf(w, "%.19s\t%s\t%s\t%g\t%d\t%d\t%d\t%d\t%d\t%d\n", visible(x.GetTemplateDigest()), visible(x.GetBackend()), sandbox.FormatSize(x.GetMemoryBytes()),
						x.GetCpus(), x.GetReady(), x.GetMaking(), x.GetWanted(), x.GetHits(), x.GetMisses(), x.GetFailed())
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}
