package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
)

func (a *App) logsCommand() *cobra.Command {
	var followed bool
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print what programs in a sandbox have printed",
		Long: `Logs prints the output that is kept of a sandbox's programs, stdout on stdout
and stderr on stderr, also after its end. With -f it goes on until the sandbox has
ended.`,
		Example:           "  firebreak logs -f $id",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				for e, err := range s.Sandbox(args[0]).Events(cmd.Context(), client.WatchOptions{NoFollow: !followed}) {
					switch {
					case err != nil:
					case e.GetType() == "stdout":
						_, err = a.Out.Write(output(e))
					case e.GetType() == "stderr":
						_, err = a.Err.Write(output(e))
					case e.GetType() == "truncated":
						a.say("output is missing here: %s", e.GetDetail())
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&followed, "follow", "f", false, "go on until the sandbox has ended")
	return cmd
}

func output(e *v1.Event) []byte {
	if len(e.GetData()) > 0 {
		return e.GetData()
	}
	return []byte(e.GetText())
}

func (a *App) eventsCommand() *cobra.Command {
	var followed, asJSON bool
	var after int64
	cmd := &cobra.Command{
		Use:   "events ID",
		Short: "Print what happened in and to a sandbox",
		Long: `Events prints one line for each event: state changes, programs started and ended,
output, limits, what it wanted to reach, the receipt. With -f it goes on until the sandbox has ended.`,
		Example:           "  firebreak events $id\n  firebreak events -f --json --after 12 $id",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				for e, err := range s.Sandbox(args[0]).Events(cmd.Context(), client.WatchOptions{After: after, NoFollow: !followed}) {
					if err != nil {
						return err
					}
					if err := a.printEvent(e, asJSON); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&followed, "follow", "f", false, "go on until the sandbox has ended")
	fs.BoolVar(&asJSON, "json", false, "print each event as a JSON object on a line of its own")
	fs.Int64Var(&after, "after", 0, "only events after this id")
	return cmd
}

// eventOut is an event as the API shows it.
type eventOut struct {
	ID       int64     `json:"id"`
	Time     time.Time `json:"time"`
	Type     string    `json:"type"`
	PID      int64     `json:"pid"`
	Text     string    `json:"text"`
	Data     []byte    `json:"data,omitempty"`
	State    string    `json:"state"`
	Reason   string    `json:"reason"`
	Detail   string    `json:"detail"`
	ExitCode *int32    `json:"exit_code"`
	Egress   *flowOut  `json:"egress,omitempty"`
}

func (a *App) printEvent(e *v1.Event, asJSON bool) error {
	if asJSON {
		line, err := json.Marshal(eventOut{e.GetId(), e.GetTime().AsTime(), e.GetType(), e.GetPid(), e.GetText(), e.GetData(),
			e.GetState(), e.GetReason(), e.GetDetail(), e.ExitCode, flowJSON(e.GetEgress())})
		if err != nil {
			return err
		}
		return a.showJSON(append(line, '\n'))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %5d  %-9s", e.GetTime().AsTime().Local().Format("15:04:05.000"), e.GetId(), e.GetType())
	if e.GetPid() != 0 {
		fmt.Fprintf(&b, " pid %d", e.GetPid())
	}
	if f := e.GetEgress(); f != nil {
		fmt.Fprintf(&b, " %s %s %s", f.GetKind(), flowTo(f), f.GetDecision())
	}
	for _, s := range []string{e.GetState(), e.GetReason(), e.GetDetail()} {
		if s != "" {
			b.WriteString(" " + s)
		}
	}
	if e.ExitCode != nil {
		fmt.Fprintf(&b, " exit code %d", *e.ExitCode)
	}
	if out := output(e); len(out) > 0 && string(out) != "{}" {
		fmt.Fprintf(&b, " %q", out)
	}
	_, err := fmt.Fprintln(a.Out, visible(b.String()))
	return err
}
