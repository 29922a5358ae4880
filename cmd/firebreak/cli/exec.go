package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

type execFlags struct {
	code, language, user, cwd string
	env                       []string
	timeout                   time.Duration
	stdin, json, detach       bool
	tag                       string
}

func (a *App) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] ID -- CMD [ARG...] | ID -c CODE [ARG...]",
		Short: "Run a program in a sandbox",
		Long: `Exec starts a fresh process in a sandbox, prints what it prints, live and
unchanged, and ends with its exit code: 124 over --timeout, 137 killed by another
limit, 125 Firebreak itself failed. Ctrl-C kills the process, not the sandbox.`,
		Example: `  firebreak exec $id -- ls -l
  firebreak exec $id -c 'print(6*7)'
  firebreak exec $id --language shell -c 'echo $0 "$@"' a b
  tar c src | firebreak exec $id --stdin -- tar x
  firebreak exec $id --detach --tag web -- python3 -m http.server`,
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd, args, &f)
		},
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.code, "code", "c", "", "run CODE itself")
	fs.StringVarP(&f.language, "language", "l", "", "python, node or shell (default the sandbox's, else python)")
	fs.StringVar(&f.user, "user", "", "user inside the sandbox (default user, uid 1000)")
	fs.StringVar(&f.cwd, "cwd", "", "working directory (default the home)")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set K=V, or pass K on from here (repeatable)")
	fs.DurationVar(&f.timeout, "timeout", 0, "wall-clock limit, such as 30s; 0: none (default: the server's)")
	fs.BoolVar(&f.stdin, "stdin", false, "pass standard input on to the program, at most 4 MiB")
	fs.BoolVar(&f.json, "json", false, "print one JSON object instead of the program's output")
	fs.BoolVarP(&f.detach, "detach", "d", false, "leave it running in the background and print its pid (ps, attach, kill)")
	fs.StringVar(&f.tag, "tag", "", "a name for it, with --detach")
	_ = cmd.RegisterFlagCompletionFunc("language", cobra.FixedCompletions([]string{"python", "node", "shell"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *App) exec(cmd *cobra.Command, args []string, f *execFlags) error {
	id, c, err := a.execArgs(cmd, args, f)
	if err != nil {
		return err
	}
	return a.withSession(cmd, func(s *session) error {
		sb := s.Sandbox(id)
		if f.detach {
			return a.start(cmd, sb, c, f)
		}
		if f.json {
			return a.execJSON(cmd, sb, c)
		}
		tail := &lastByte{w: a.Err}
		exit, err := sb.Exec(cmd.Context(), c, a.Out, tail)
		if err != nil {
			tail.newline()
			return unstarted(c, err)
		}
		return a.ended(exit, tail)
	})
}

// startError marks the error of a command that could not be started, which
// shells have exit codes of their own for.
type startError struct {
	code int
	err  error
}

// Error implements error.
func (e *startError) Error() string { return e.err.Error() }

// unstarted marks err if it says that there is no such command, or that it
// cannot be executed. The same kinds come from a wrong --cwd and --user, so where
// those are given nothing is guessed.
func unstarted(c client.Command, err error) error {
	var se *sandbox.Error
	if c.Path == "" || c.Dir != "" || c.User != "" || !errors.As(err, &se) || se.Op == "find" {
		return err
	}
	marked := *se
	switch se.Kind {
	case sandbox.KindNotFound:
		marked.Err = &startError{exitNoCommand, errors.New(se.Message())}
		if se.Hint == "" {
			marked.Hint = "`firebreak template ls` lists what else a sandbox can start from"
		}
	case sandbox.KindDenied:
		marked.Err = &startError{exitCannotRun, errors.New(se.Message())}
	default:
		return err
	}
	return &marked
}

// execArgs reads the sandbox's id and the program.
func (a *App) execArgs(cmd *cobra.Command, args []string, f *execFlags) (id string, c client.Command, err error) {
	usage := func(format string, x ...any) error {
		return sandbox.Errorf("", sandbox.KindInvalid, format, x...).WithHint("firebreak exec ID -- CMD [ARG...], or firebreak exec ID -c CODE [ARG...]")
	}
	dash, hasCode := cmd.ArgsLenAtDash(), cmd.Flags().Changed("code")
	switch {
	case len(args) == 0 || dash == 0:
		return "", c, usage("a sandbox is needed")
	case !hasCode && dash > 1, !hasCode && dash < 0 && len(args) > 1:
		return "", c, usage("a command comes after --")
	case !hasCode && len(args) == 1:
		return "", c, usage("nothing to run")
	}
	id, args = args[0], args[1:]
	if c.Language, err = parseLanguage(f.language); err != nil {
		return "", c, err
	}
	if c.Env, err = parseEnv(f.env, a.Lookup); err != nil {
		return "", c, err
	}
	if hasCode {
		c.Code, c.Args = f.code, args
	} else {
		c.Path, c.Args = args[0], args[1:]
	}
	if f.timeout < 0 {
		return "", c, sandbox.Errorf("--timeout", sandbox.KindInvalid, "%s is negative", f.timeout)
	}
	if f.tag != "" && !f.detach {
		return "", c, sandbox.Errorf("--tag", sandbox.KindInvalid, "a tag is for a program in the background").WithHint("add --detach")
	}
	c.User, c.Dir, c.Timeout = f.user, f.cwd, never(cmd.Flags().Changed("timeout"), f.timeout)
	if f.stdin {
		if c.Stdin, err = readAll(a.In, maxStdin, "standard input"); err != nil {
			return "", c, err
		}
	}
	return id, c, nil
}

// execOut is the object of `exec --json`: the API's ExecResponse.
type execOut struct {
	Stdout     string          `json:"stdout"`
	Stderr     string          `json:"stderr"`
	StdoutData []byte          `json:"stdout_data,omitempty"`
	StderrData []byte          `json:"stderr_data,omitempty"`
	ExitCode   int             `json:"exit_code"`
	Duration   float64         `json:"duration_ms"`
	Reason     string          `json:"reason"`
	Detail     string          `json:"detail"`
	Result     json.RawMessage `json:"result"`
}

func (a *App) execJSON(cmd *cobra.Command, sb *client.Sandbox, c client.Command) error {
	var out, errs bytes.Buffer
	exit, err := sb.Exec(cmd.Context(), c, &out, &errs)
	if err != nil {
		return unstarted(c, err)
	}
	code := exitCode(string(exit.Reason), exit.Code)
	o := execOut{ExitCode: code, Duration: float64(exit.Duration) / float64(time.Millisecond), Reason: string(exit.Reason), Detail: exit.Detail}
	o.Stdout, o.StdoutData = textOrData(out.Bytes())
	o.Stderr, o.StderrData = textOrData(errs.Bytes())
	if json.Valid(exit.Result) {
		o.Result = exit.Result
	}
	if err := a.printJSON(o); err != nil {
		return err
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

// textOrData is text, and besides the exact bytes where they are not text.
func textOrData(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return string(bytes.ToValidUTF8(b, []byte("�"))), b
}
