package cli

import (
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) quotaCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "quota",
		Short: "Show how much the caller's tenant may have, and has",
		Long: `Quota prints what bounds the caller's tenant, what of it is in use and what is
left. What is over a quota is refused with the error "capacity" (HTTP 429) and a
time to retry after. The operator sets quotas with the keys tenant_… and tenants
of firebreak.yaml.`,
		Example: "  firebreak quota\n  firebreak quota --json | jq '.quotas[] | select(.name == \"memory\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/quota", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				r, err := s.Quota(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "QUOTA\tUSED\tLEFT\tLIMIT\tWHAT IT IS")
				for _, q := range r.GetQuotas() {
					used, left, limit := amount(q, q.GetUsed()), "-", "-"
					if q.Limit != nil {
						left, limit = amount(q, max(0, q.GetLimit()-q.GetUsed())), amount(q, q.GetLimit())
					}
					if momentary(q) {
						used, left = "", ""
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", visible(q.GetName()), used, left, limit, visible(q.GetDescription()))
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func amount(q *v1.Quota, n int64) string {
	switch q.GetUnit() {
	case "bytes":
		return sandbox.FormatSize(n)
	case "per_second":
		return strconv.FormatInt(n, 10) + "/s"
	}
	return strconv.FormatInt(n, 10)
}

// momentary tells quotas of which no use is reported.
func momentary(q *v1.Quota) bool { return q.GetUnit() == "per_second" || q.GetName() == "burst" }
