package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) psCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ps ID",
		Short: "List the programs of a sandbox",
		Long: `Ps lists the programs that run in a sandbox, those of exec and those that were
started with exec --detach, and before them those that ended lately.`,
		Example:           "  firebreak ps $id\n  firebreak ps --json $id",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				list, err := s.Sandbox(args[0]).Processes(cmd.Context())
				if err != nil {
					return err
				}
				return a.printProcesses(list, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array")
	return cmd
}

// processOut is a process as the API shows it.
type processOut struct {
	PID        int64     `json:"pid"`
	Tag        string    `json:"tag"`
	Program    string    `json:"program"`
	User       string    `json:"user"`
	StartedAt  time.Time `json:"started_at"`
	TimeoutMS  int64     `json:"timeout_ms"`
	Background bool      `json:"background"`
	StdinOpen  bool      `json:"stdin_open"`
	State      string    `json:"state"`
	ExitCode   *int32    `json:"exit_code"`
	Reason     string    `json:"reason"`
	Detail     string    `json:"detail"`
}

func (a *App) printProcesses(list []*v1.Process, asJSON bool) error {
	if asJSON {
		out := make([]processOut, 0, len(list))
		for _, p := range list {
			o := processOut{p.GetPid(), p.GetTag(), p.GetProgram(), p.GetUser(), p.GetStartedAt().AsTime(), p.GetTimeoutMs(), p.GetBackground(),
				p.GetStdinOpen(), p.GetState(), nil, p.GetExit().GetReason(), p.GetExit().GetDetail()}
			if p.GetExit() != nil {
				o.ExitCode = &p.GetExit().ExitCode
			}
			out = append(out, o)
		}
		return a.printJSON(out)
	}
	w := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PID\tTAG\tPROGRAM\tSTATE\tAGE\tEND")
	for _, p := range list {
		end := ""
		if x := p.GetExit(); x != nil {
			end = fmt.Sprintf("%s, exit code %d", x.GetReason(), x.GetExitCode())
		}
		fmt.Fprintln(w, visible(fmt.Sprintf("%d\t%s\t%s\t%s\t%s\t%s", p.GetPid(), p.GetTag(), p.GetProgram(), p.GetState(),
			time.Since(p.GetStartedAt().AsTime()).Round(time.Second), end)))
	}
	return w.Flush()
}

func (a *App) attachCommand() *cobra.Command {
	var escape string
	var watch bool
	cmd := &cobra.Command{
		Use:   "attach [flags] ID PROCESS",
		Short: "Follow a program of a sandbox to its end",
		Long: `Attach prints what is kept of a program's output, and what it prints from now on,
until it ends; its exit code is the program's. PROCESS is a pid or a tag. Ctrl-C ends
attach, not the program.

A program with a terminal, of shell, gets yours: every key goes there, ^C included.
Enter, then ~. detaches. With --no-stdin you only watch, as you do where standard
input or output is no terminal. What it prints reaches your terminal as it is.`,
		Example:           "  firebreak exec --detach --tag web $id -- python3 -m http.server\n  firebreak attach $id web",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				p, err := s.Sandbox(args[0]).Process(cmd.Context(), args[1])
				if err != nil {
					return err
				}
				if con := a.console(); con != nil && p.Info().GetStdinOpen() && p.Info().GetPty() != nil && !watch {
					key, err := escapeOf(escape)
					if err != nil {
						return err
					}
					return a.converse(cmd.Context(), loan{con: con, escape: key, id: args[0]}, p)
				}
				tail := &lastByte{w: a.Err}
				exit, err := p.Attach(cmd.Context(), a.Out, tail)
				if err != nil {
					tail.newline()
					return err
				}
				return a.ended(exit, tail)
			})
		},
	}
	cmd.Flags().BoolVar(&watch, "no-stdin", false, "pass no keys on to a program with a terminal")
	cmd.Flags().StringVar(&escape, "escape", "~", "the character to detach with, or none")
	return cmd
}

// ended says how a program ended, and makes its exit code ours.
func (a *App) ended(exit client.Exit, tail *lastByte) error {
	code := exitCode(string(exit.Reason), exit.Code)
	if line := endLine(string(exit.Reason), exit.Detail, code); line != "" {
		tail.newline()
		a.say("%s", line)
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

func (a *App) killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use:               "kill ID PROCESS",
		Short:             "Kill a program of a sandbox, or send it a signal",
		Long:              "Kill ends a program, named by pid or tag, with all its descendants. With --signal it sends that instead, to the program's group.",
		Example:           "  firebreak kill $id web\n  firebreak kill -s INT $id 12",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd, func(s *session) error {
				p, err := s.Sandbox(args[0]).Process(cmd.Context(), args[1])
				if err != nil {
					return err
				}
				if signal != "" {
					return p.Signal(cmd.Context(), signal)
				}
				if x := p.Info().GetExit(); x != nil {
					return sandbox.Errorf("kill", sandbox.KindGone, "process %d has ended: %s, exit code %d", p.PID(), x.GetReason(), x.GetExitCode())
				}
				_, err = p.Kill(cmd.Context())
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "the signal to send, such as TERM or 2")
	return cmd
}

// start is exec --detach: it prints the pid.
func (a *App) start(cmd *cobra.Command, sb *client.Sandbox, c client.Command, f *execFlags) error {
	p, err := sb.Start(cmd.Context(), c, client.StartOptions{Tag: f.tag})
	if err != nil {
		return unstarted(c, err)
	}
	if f.json {
		b, err := json.Marshal(map[string]any{"pid": p.PID(), "tag": p.Info().GetTag()})
		if err != nil {
			return err
		}
		return a.showJSON(append(b, '\n'))
	}
	_, err = io.WriteString(a.Out, fmt.Sprintln(p.PID()))
	return err
}
