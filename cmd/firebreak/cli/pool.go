package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) poolCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "Show which sandboxes are kept ready",
		Long: `Pool prints which sandboxes the server has ready before anybody asks for them: a
create or a run of the same template and limits, without network rules and a host
name of its own, takes one of them and boots nothing. The keys pool_size, pool_max,
pool_memory and pool_share of firebreak.yaml say how many are kept, and at what
cost. Below are the places, if there are any: boundaries without a guest, made ahead
for sandboxes that are paused and forked, and what memory they use; places_max
bounds them.`,
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
					return a.showPlaces(r.GetPlaces())
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "TEMPLATE\tBACKEND\tMEMORY\tCPUS\tREADY\tMAKING\tWANTED\tHITS\tMISSES\tFAILED")
				for _, x := range r.GetShelves() {
					fmt.Fprintf(w, "%.19s\t%s\t%s\t%g\t%d\t%d\t%d\t%d\t%d\t%d\n", visible(x.GetTemplateDigest()), visible(x.GetBackend()), sandbox.FormatSize(x.GetMemoryBytes()),
						x.GetCpus(), x.GetReady(), x.GetMaking(), x.GetWanted(), x.GetHits(), x.GetMisses(), x.GetFailed())
				}
				if err := w.Flush(); err != nil {
					return err
				}
				return a.showPlaces(r.GetPlaces())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	cmd.AddCommand(a.poolPrewarmCommand(), a.poolDrainCommand())
	return cmd
}

// showPlaces prints where what was saved can go on at once.
func (a *App) showPlaces(places []*v1.PoolPlaces) error {
	if len(places) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nPLACES FOR\tBACKEND\tMEMORY\tCPUS\tREADY\tMAKING\tWANTED\tUSED")
	for _, x := range places {
		fmt.Fprintf(w, "%.19s\t%s\t%s\t%g\t%d\t%d\t%d\t%s\n", visible(x.GetTemplateDigest()), visible(x.GetBackend()), sandbox.FormatSize(x.GetMemoryBytes()),
			x.GetCpus(), x.GetReady(), x.GetMaking(), x.GetWanted(), sandbox.FormatSize(x.GetUsedBytes()))
	}
	return w.Flush()
}

func (a *App) poolPrewarmCommand() *cobra.Command {
	var template string
	var count int
	cmd := &cobra.Command{
		Use:   "prewarm",
		Short: "Have sandboxes made ready",
		Long: `Prewarm has sandboxes of a template made ready, with the server's default limits,
before a burst that is known to come. It does not wait for them; "firebreak pool"
shows how far they are. They are kept like those that were asked for.`,
		Example: "  firebreak pool prewarm --template python --count 8",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				return s.Prewarm(cmd.Context(), count, &v1.CreateSandboxRequest{Template: template})
			})
		},
	}
	cmd.Flags().StringVar(&template, "template", "", "what they start from, by name or digest (default: the server's)")
	cmd.Flags().IntVar(&count, "count", 1, "how many")
	return cmd
}

func (a *App) poolDrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "drain",
		Short: "End the sandboxes that are ready",
		Long: `Drain ends the sandboxes that are ready and that nobody has taken, as for
maintenance, and prints how many those were. Sandboxes in use stay. What is asked
for afterwards is kept ready again.`,
		Example: "  firebreak pool drain",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				n, err := s.DrainPool(cmd.Context())
				if err == nil {
					fmt.Fprintln(a.Out, n)
				}
				return err
			})
		},
	}
}
