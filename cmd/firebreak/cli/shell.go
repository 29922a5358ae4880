package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

type shellFlags struct {
	user, cwd, tag, escape string
	env                    []string
}

// loginShell is what a shell is where none is named.
var loginShell = []string{"/bin/sh", "-c", `command -v bash >/dev/null 2>&1 && exec bash -il || exec sh -i`}

func (a *App) shellCommand() *cobra.Command {
	var f shellFlags
	cmd := &cobra.Command{
		Use:   "shell [flags] ID [-- CMD ARG...]",
		Short: "A terminal in a sandbox",
		Long: `Shell starts CMD, or a shell, with a terminal of its own, and lends it yours: every
key goes there, ^C and ^Z included, the size follows, and the exit code is the
program's. When the connection breaks or the server is started again, it goes on
where it was.

Enter, then ~. detaches: the program goes on, and attach takes it up again. ~~ is one
~. When you close the terminal, or end shell with a signal, the program gets SIGHUP.

What the program prints reaches your terminal as it is, so it may do what that lets
programs do. Afterwards shell turns off what makes terminals talk by themselves, and
drops their answers: nothing from the sandbox is typed into your own shell.

Where standard input or output is no terminal, there is none in the sandbox either:
input and output are passed on as they come.`,
		Example: `  firebreak shell $id
  firebreak shell --user root --cwd /srv $id -- python3
  echo 'ls -l' | firebreak shell $id`,
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.shell(cmd, args, &f)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.user, "user", "", "user inside the sandbox (default user, uid 1000)")
	fs.StringVar(&f.cwd, "cwd", "", "working directory (default the home)")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set K=V, or pass K on from here (repeatable)")
	fs.StringVar(&f.tag, "tag", "", "a name for it, to attach by")
	fs.StringVar(&f.escape, "escape", "~", "the character to detach with, or none")
	return cmd
}

// escapeOf reads --escape.
func escapeOf(s string) (byte, error) {
	switch {
	case s == "none":
		return 0, nil
	case len(s) == 1 && s[0] > ' ' && s[0] <= '~' && s[0] != '.':
		return s[0], nil
	}
	return 0, sandbox.Errorf("--escape", sandbox.KindInvalid, "%q is not one visible character other than a dot", s).
		WithHint("a character such as ~ or %%, or none")
}

func (a *App) shell(cmd *cobra.Command, args []string, f *shellFlags) error {
	dash := cmd.ArgsLenAtDash()
	if len(args) == 0 || dash == 0 {
		return sandbox.Errorf("", sandbox.KindInvalid, "a sandbox is needed").WithHint("firebreak shell ID; `firebreak create` makes one")
	}
	if dash < 0 && len(args) > 1 || dash > 1 {
		return sandbox.Errorf("", sandbox.KindInvalid, "a command comes after --").WithHint("firebreak shell ID -- CMD ARG...")
	}
	escape, err := escapeOf(f.escape)
	if err != nil {
		return err
	}
	argv := args[1:]
	if len(argv) == 0 {
		argv = loginShell
	}
	c := client.Command{Path: argv[0], Args: argv[1:], Dir: f.cwd, User: f.user, Timeout: client.Never}
	if c.Env, err = parseEnv(f.env, a.Lookup); err != nil {
		return err
	}
	con := a.console()
	if con != nil {
		size := con.size()
		c.PTY = &size
		if term, ok := a.Lookup("TERM"); ok && c.Env["TERM"] == "" {
			if c.Env == nil {
				c.Env = map[string]string{}
			}
			c.Env["TERM"] = term
		}
	}
	return a.withSession(cmd, func(s *session) error {
		p, err := s.Sandbox(args[0]).Start(cmd.Context(), c, client.StartOptions{Tag: f.tag, OpenStdin: true})
		if err != nil {
			return unstarted(c, err)
		}
		if con == nil {
			return a.pipe(cmd.Context(), p)
		}
		return a.converse(cmd.Context(), con, args[0], p, escape, true)
	})
}

// hangupTime is how long a program whose person has gone may take to be told.
const hangupTime = 5 * time.Second

// converse lends the terminal to p until it ends. With own, p ends with us.
func (a *App) converse(ctx context.Context, con *console, id string, p *client.Process, escape byte, own bool) error {
	var exit client.Exit
	err := con.attached(ctx, a, p, escape, func(ctx context.Context) (err error) {
		exit, err = p.Attach(ctx, con.out, nil)
		return err
	})
	switch {
	case err == nil:
		return a.ended(exit, &lastByte{w: a.Err})
	case errors.Is(err, errDetached):
		a.say("detached; `firebreak attach %s %d` takes it up again", id, p.PID())
		return nil
	case ctx.Err() != nil && own:
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hangupTime)
		defer cancel()
		_ = p.CloseStdin(ctx) // SIGHUP; where nobody hears of it, it stays as after a detach
		return err
	}
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnavailable {
		return se.WithHint("the program may still run; `firebreak attach %s %d` takes it up again", id, p.PID())
	}
	return err
}

// pipe is converse without a terminal.
func (a *App) pipe(ctx context.Context, p *client.Process) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with its input, or with the process that we are
		if typed(ctx, p, a.In, cancel) {
			_ = p.CloseStdin(ctx)
		}
	}()
	tail := &lastByte{w: a.Err}
	exit, err := p.Attach(ctx, a.Out, tail)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hangupTime)
		defer cancel()
		_, _ = p.Kill(ctx) // nobody is there to use it
	}
	if err != nil {
		tail.newline()
		return err
	}
	return a.ended(exit, tail)
}
