package cli

import (
	"cmp"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) pauseCommand() *cobra.Command {
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "pause ID...",
		Short: "Save sandboxes to disk and give their memory back",
		Long: `Pause stops a sandbox where it is and keeps it: files, programs and interpreters go on
with resume, or by themselves as soon as somebody uses the sandbox with exec, eval, cp
or the like. It takes disk meanwhile, and nothing else. Its life goes on: it ends when
it would have, unless --keep says how long it is kept. Its connections to the outside
end, and programs find them broken.`,
		Example:           "  firebreak pause $id\n  firebreak resume $id",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSandboxes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				return a.each(args, func(id string) error {
					_, err := s.Sandbox(id).PauseFor(cmd.Context(), never(cmd.Flags().Changed("keep"), keep))
					return err
				})
			})
		},
	}
	cmd.Flags().DurationVar(&keep, "keep", 0, "end it when it has been paused for this time, and give it its own time again when it goes on; 0: never (default: its time goes on)")
	return cmd
}

func (a *App) resumeCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "resume ID...",
		Short:             "Let paused sandboxes go on where they were",
		Example:           "  firebreak resume $id",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSandboxes(-1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				return a.each(args, func(id string) error {
					_, err := s.Sandbox(id).ResumeFor(cmd.Context(), never(cmd.Flags().Changed("timeout"), timeout))
					return err
				})
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "end it this long after; 0: never (default: what it was last given, if its time stood still)")
	return cmd
}

func (a *App) snapshotCommand() *cobra.Command {
	var name string
	var ttl time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "snapshot ID",
		Short: "Keep what a sandbox is now, to make others of it",
		Long: `Snapshot saves a sandbox, which goes on, and prints the snapshot's id. create --from
makes sandboxes of it, any number, each with the files, programs and interpreters of
that moment, whatever becomes of the first. It holds the sandbox's memory, and with it
whatever secret was there.`,
		Example: `  snap=$(firebreak snapshot $id --name warm)
  firebreak create --from warm
  firebreak snapshot ls
  firebreak snapshot rm warm`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				snap, err := s.Sandbox(args[0]).Snapshot(cmd.Context(), name, never(cmd.Flags().Changed("ttl"), ttl))
				if err != nil {
					return err
				}
				if asJSON {
					return a.printJSON(struct {
						ID      string `json:"id"`
						Name    string `json:"name"`
						Sandbox string `json:"sandbox_id"`
						Bytes   int64  `json:"bytes"`
						Digest  string `json:"digest"`
					}{snap.GetId(), snap.GetName(), snap.GetSandboxId(), snap.GetBytes(), snap.GetDigest()})
				}
				_, err = fmt.Fprintln(a.Out, snap.GetId())
				return err
			})
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "name, unique among snapshots; good wherever its id is")
	fs.DurationVar(&ttl, "ttl", 0, "remove it after this time; 0: never (default 720h)")
	fs.BoolVar(&asJSON, "json", false, "print it as a JSON object")
	cmd.AddCommand(a.snapshotLs(), a.snapshotRm())
	return cmd
}

func (a *App) snapshotLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List snapshots, newest first", Args: cobra.NoArgs,
		Example: "  firebreak snapshot ls",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withSession(cmd, func(s *session) error {
				if asJSON {
					body, err := s.JSON(cmd.Context(), "/v1/snapshots", nil)
					if err != nil {
						return err
					}
					return a.printJSON(body)
				}
				list, err := s.Snapshots(cmd.Context())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "ID\tNAME\tSANDBOX\tTEMPLATE\tSIZE\tAGE\tENDS")
				for _, k := range list {
					ends := "never"
					if k.GetExpiresAt() != nil {
						ends = "in " + age(time.Until(k.GetExpiresAt().AsTime()))
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.GetId(), visible(cmp.Or(k.GetName(), "-")), k.GetSandboxId(), visible(cmp.Or(k.GetTemplate(), "-")),
						sandbox.FormatSize(k.GetBytes()), age(time.Since(k.GetCreatedAt().AsTime())), ends)
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what the API shows")
	return cmd
}

func (a *App) snapshotRm() *cobra.Command {
	return &cobra.Command{
		Use: "rm SNAPSHOT...", Aliases: []string{"remove"}, Short: "Remove snapshots; sandboxes made of them live on", Args: cobra.MinimumNArgs(1),
		Example: "  firebreak snapshot rm warm",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				return a.each(args, func(id string) error { return s.RemoveSnapshot(cmd.Context(), id) })
			})
		},
	}
}
