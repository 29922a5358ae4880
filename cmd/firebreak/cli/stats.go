package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// sampleOut is one line of --json: numbers stay numbers.
type sampleOut struct {
	Time        time.Time `json:"time"`
	CPUMs       float64   `json:"cpu_ms"`
	CPUs        float64   `json:"cpus"`
	MemoryBytes int64     `json:"memory_bytes"`
	DiskBytes   int64     `json:"disk_bytes"`
	PIDs        int64     `json:"pids"`
}

func (a *App) statsCommand() *cobra.Command {
	var asJSON bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "stats ID",
		Short: "Print what a sandbox used over its life",
		Long: `Stats prints the processors, memory, disk and tasks a sandbox used, evenly spread
over its life, also after its end. The memory is that of the whole sandbox, its
boundary included.`,
		Example:           "  firebreak stats $id\n  firebreak stats --since 10m --json $id",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				var start time.Time
				if since > 0 {
					start = time.Now().Add(-since)
				}
				m, err := s.Sandbox(args[0]).Metrics(cmd.Context(), start, time.Time{})
				if err != nil {
					return err
				}
				return a.printStats(m, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	cmd.Flags().DurationVar(&since, "since", 0, "only what is not older than this")
	return cmd
}

func (a *App) printStats(m *v1.SandboxMetrics, asJSON bool) error {
	if asJSON {
		out := make([]sampleOut, 0, len(m.GetSamples()))
		for _, s := range m.GetSamples() {
			out = append(out, sampleOut{s.GetTime().AsTime(), s.GetCpuMs(), s.GetCpus(), s.GetMemoryBytes(), s.GetDiskBytes(), s.GetPids()})
		}
		return a.printJSON(out)
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tCPUS\tMEMORY\tDISK\tTASKS")
	for _, s := range m.GetSamples() {
		fmt.Fprintf(w, "%s\t%.2f\t%s\t%s\t%d\n", s.GetTime().AsTime().Local().Format(time.TimeOnly), s.GetCpus(),
			sandbox.FormatSize(s.GetMemoryBytes()), sandbox.FormatSize(s.GetDiskBytes()), s.GetPids())
	}
	return w.Flush()
}
