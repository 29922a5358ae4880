package cli

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

type shellFlags struct {
	createFlags            // of a sandbox for it alone; env is the program's, too
	user, cwd, tag, escape string
}

// loginShell is what a shell is where none is named.
var loginShell = []string{"/bin/sh", "-c", `command -v bash >/dev/null 2>&1 && exec bash -il || exec sh -i`}

func (a *App) shellCommand() *cobra.Command {
	var f shellFlags
	cmd := &cobra.Command{
		Use:   "shell [flags] [ID] [-- CMD ARG...]",
		Short: "A terminal in a sandbox, or in a new one",
		Long: `Shell starts CMD, or a shell, with a terminal of its own, and lends it yours: every
key goes there, ^C and ^Z included, the size follows, and the exit code is the
program's. When the connection breaks or the server is started again, it goes on
where it was.

Enter, then ~. detaches: the program goes on, and attach takes it up again. ~~ is one
~. When you close the terminal, or end shell with a signal, the program gets SIGHUP.

What the program prints reaches your terminal as it is, so it may do what that lets
programs do. Afterwards shell turns off what makes terminals talk by themselves, and
drops their answers: nothing from the sandbox is typed into your own shell.

Without ID it makes a sandbox, with the flags of create, and removes it at the end,
whatever that is; ~. ends it, too. Should shell itself be killed with SIGKILL, the
sandbox ends some minutes later. Without a server it starts what it needs.

Where standard input or output is no terminal, there is none in the sandbox either:
input and output are passed on as they come.`,
		Example: `  firebreak shell
  firebreak shell --memory 512MiB --git ./project -- python3
  firebreak shell $id
  firebreak shell --user root --cwd /srv $id -- python3
  echo 'ls -l' | firebreak shell $id`,
		ValidArgsFunction: a.completeSandboxes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.shell(cmd, args, &f)
		},
	}
	fs := cmd.Flags()
	f.add(fs)
	fs.StringVar(&f.user, "user", "", "user inside the sandbox (default user, uid 1000)")
	fs.StringVar(&f.cwd, "cwd", "", "working directory (default the home)")
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
	if dash < 0 {
		dash = len(args)
	}
	if dash > 1 {
		return sandbox.Errorf("", sandbox.KindInvalid, "a command comes after --").WithHint("firebreak shell [ID] -- CMD ARG...")
	}
	escape, err := escapeOf(f.escape)
	if err != nil {
		return err
	}
	argv := args[dash:]
	if len(argv) == 0 {
		argv = loginShell
	}
	l := loan{con: a.console(), escape: escape, hangup: true}
	program, err := a.shellProgram(argv, f, l.con)
	if err != nil {
		return err
	}
	if dash == 0 {
		return a.ownShell(cmd, f, program, l)
	}
	if flag := givenOf(cmd, new(createFlags).add); flag != "" {
		return sandbox.Errorf("--"+flag, sandbox.KindInvalid, "it is about a new sandbox, and %s is there", args[0]).WithHint("leave one of them out")
	}
	return a.withSession(cmd, func(s *session) error {
		return a.shellIn(cmd.Context(), s.Sandbox(args[0]), program, f.tag, l)
	})
}

// shellProgram is what runs with the terminal con; with pipes if that is nil.
func (a *App) shellProgram(argv []string, f *shellFlags, con *console) (c client.Command, err error) {
	c = client.Command{Path: argv[0], Args: argv[1:], Dir: f.cwd, User: f.user, Timeout: client.Never}
	if c.Env, err = parseEnv(f.env, a.Lookup); err != nil || con == nil {
		return c, err
	}
	size := con.size()
	c.PTY = &size
	if term, ok := a.Lookup("TERM"); ok && c.Env["TERM"] == "" {
		c.Env["TERM"] = term
	}
	return c, nil
}

// shellIn runs program in a sandbox, with the terminal if there is one.
func (a *App) shellIn(ctx context.Context, sb *client.Sandbox, program client.Command, tag string, l loan) error {
	l.id = sb.ID()
	p, err := sb.Start(ctx, program, client.StartOptions{Tag: tag, OpenStdin: true})
	if err != nil {
		return unstarted(program, err)
	}
	if l.con == nil {
		return a.pipe(ctx, p)
	}
	return a.converse(ctx, l, p)
}

// givenOf returns the first flag given of those that add makes and shell does not
// have for itself, or "".
func givenOf(cmd *cobra.Command, add func(*pflag.FlagSet)) (name string) {
	known := pflag.NewFlagSet("", pflag.ContinueOnError)
	add(known)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if name == "" && f.Name != "env" && known.Lookup(f.Name) != nil {
			name = f.Name
		}
	})
	return name
}

// hangupTime is how long a program whose person has gone may take to be told.
const hangupTime = 5 * time.Second

// loan is our terminal in the hands of a program.
type loan struct {
	con    *console
	escape byte
	id     string // of the sandbox
	hangup bool   // the program ends with us
	whole  bool   // and the sandbox
}

// converse lends the terminal to p until it ends.
func (a *App) converse(ctx context.Context, l loan, p *client.Process) error {
	var exit client.Exit
	err := l.con.attached(ctx, a, p, l.escape, func(ctx context.Context) (err error) {
		exit, err = p.Attach(ctx, l.con.out, nil)
		return err
	})
	switch {
	case err == nil:
		return a.ended(exit, &lastByte{w: a.Err})
	case errors.Is(err, errDetached) && l.whole:
		return nil
	case errors.Is(err, errDetached):
		a.say("detached; `firebreak attach %s %d` takes it up again", l.id, p.PID())
		return nil
	case ctx.Err() != nil && l.hangup:
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hangupTime)
		defer cancel()
		_ = p.CloseStdin(ctx) // SIGHUP; where nobody hears of it, it stays as after a detach
		return err
	}
	var se *sandbox.Error
	if errors.As(err, &se) && se.Kind == sandbox.KindUnavailable && !l.whole {
		return se.WithHint("the program may still run; `firebreak attach %s %d` takes it up again", l.id, p.PID())
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
