// Package cli is bin/firebreak's command tree: it reads arguments, calls a
// server through the client package, and presents answers. What the commands
// do is done by the server, which may run in this process.
//
//	app := &cli.App{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Lookup: os.LookupEnv, Local: node.Local}
//	os.Exit(app.Execute(ctx, os.Args[1:]))
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Exit codes beyond a program's own.
const (
	exitFailed      = 1   // a command other than run and exec failed
	exitUsage       = 2   // the command line, or a value in it, is wrong
	exitTimeout     = 124 // run, exec: wall-clock limit
	exitFirebreak   = 125 // run, exec: Firebreak itself failed, shell as well; serve: its evidence is not what was signed
	exitCannotRun   = 126 // run, exec: the command is there and cannot be executed
	exitNoCommand   = 127 // run, exec: there is no such command in the sandbox
	exitInterrupted = 130 // Ctrl-C
	exitKilled      = 137 // run, exec: another limit
	exitBrokenPipe  = 141 // nobody reads our output any more
)

// App is the program's surroundings. Everything it needs is a field, so that
// tests run the whole tree in process.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	Lookup   func(string) (string, bool) // environment
	Root     bool                        // whether we are root
	Build    Build

	// Local starts Firebreak in this process; nil where it cannot be.
	Local func(context.Context, LocalOptions) (Local, error)
	// Serve runs a server until ctx ends.
	Serve func(context.Context, ServeOptions) error
	// Examine looks at this machine for doctor.
	Examine func(context.Context, *config.Config) []Check
	// Backup copies the data directory into a file, and Restore makes it from
	// one.
	Backup  func(context.Context, *config.Config, BackupOptions) error
	Restore func(context.Context, *config.Config, RestoreOptions) (Restored, error)
	// Receipt is what the data directory has of a sandbox's receipt; nil if
	// nothing.
	Receipt func(context.Context, *config.Config, sandbox.TenantID, sandbox.ID) (*sandbox.Receipt, error)
	// Router is the router of another process' keeper, until ctx ends.
	Router func(context.Context) error
	// Uninstall removes what is installed outside the program itself.
	Uninstall func(context.Context, *config.Config, UninstallOptions) error

	flags  map[string]string // configuration given as flags
	file   string            // --config
	loaded *config.Config
	lent   atomic.Pointer[console] // to a program in a sandbox
}

// Build says which build this is.
type Build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go_version"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	GVisor   string `json:"runsc_version,omitempty"`
}

// Local is Firebreak running in this process.
type Local interface {
	// Dial connects to its API.
	Dial(context.Context) (net.Conn, error)
	// Key is the credential for it.
	Key() string
	// Evidence is the directory of its audit log.
	Evidence() string
	// Close destroys what is left, and removes everything but the evidence.
	Close() error
}

// LocalOptions says how to start a Local.
type LocalOptions struct {
	Config *config.Config
	// Progress, if not nil, is told about work that takes long.
	Progress func(string)
}

// ServeOptions says how to run a server.
type ServeOptions struct {
	Config *config.Config
	// Log is where the structured log goes.
	Log io.Writer
	// Ready is called once the server answers.
	Ready func(Serving)
}

// Serving is how a server can be reached.
type Serving struct {
	URL     string // empty without a TCP listener
	E2B     string // URL for E2B's clients; empty without
	Socket  string
	KeyFile string
	Backend string // what auto takes, or why nothing
	Data    string
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal os.Signal }

// Error implements error.
func (e interrupted) Error() string { return "interrupted" }

// Interrupted returns the cause to cancel Execute's context with when the
// process gets a signal.
func Interrupted(s os.Signal) error { return interrupted{s} }

// exitError ends the program with a code; the message, if any, was printed.
type exitError struct{ code int }

// Error implements error.
func (e exitError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// Execute runs one command line and returns the exit code.
func (a *App) Execute(ctx context.Context, args []string) int {
	a.flags = map[string]string{}
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.finish(ctx, cmd, err)
}

// finish prints err, if that has not been done, and picks the exit code.
func (a *App) finish(ctx context.Context, cmd *cobra.Command, err error) int {
	var exit exitError
	var sig interrupted
	var se *sandbox.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, syscall.EPIPE):
		return exitBrokenPipe
	case errors.As(context.Cause(ctx), &sig):
		if s, ok := sig.signal.(syscall.Signal); ok && s != syscall.SIGINT {
			return 128 + int(s)
		}
		return exitInterrupted
	case !errors.As(err, &se): // cobra's own: unknown command, missing argument
		se = sandbox.Errorf("", sandbox.KindInvalid, "%s", firstLine(err.Error())).
			WithHint("`%s --help` shows how", cmd.CommandPath())
		var wrong string
		if n, _ := fmt.Sscanf(err.Error(), "unknown command %q", &wrong); n == 1 {
			cmd.SuggestionsMinimumDistance = 2
			if near := cmd.SuggestionsFor(wrong); len(near) == 1 {
				se = se.WithHint("did you mean `%s %s`?", cmd.CommandPath(), near[0])
			}
		}
	}
	a.report(se)
	return codeOf(cmd, se)
}

// codeOf maps an error to an exit code.
func codeOf(cmd *cobra.Command, e *sandbox.Error) int {
	var start *startError
	var gap *audit.GapError
	switch {
	case e.Kind == sandbox.KindInvalid:
		return exitUsage
	case errors.As(e, &start):
		return start.code
	case cmd.Name() == "run" || cmd.Name() == "exec" || cmd.Name() == "eval" || cmd.Name() == "shell", cmd.Name() == "serve" && errors.As(e, &gap):
		return exitFirebreak
	}
	return exitFailed
}

// report prints an error as one line and, if there is one, its hint.
func (a *App) report(e *sandbox.Error) {
	head := e.Op
	if e.ID != "" {
		head = strings.TrimSpace(head + " " + e.ID)
	}
	if head != "" {
		head += ": "
	}
	a.say("%s%s", head, oneLine(e.Message()))
	hint := e.Hint
	if e.Kind == sandbox.KindUnauthenticated { // the server's own speaks of headers
		hint = "set FIREBREAK_API_KEY; the first key is in the file api-key of the server's data directory, `firebreak key create` there makes more"
	}
	if hint != "" {
		fmt.Fprintf(a.Err, "  hint: %s\n", oneLine(hint))
	}
}

// say prints one line on stderr.
func (a *App) say(format string, args ...any) {
	fmt.Fprintf(a.Err, "firebreak: %s\n", visible(fmt.Sprintf(format, args...)))
}

// visible replaces what a terminal obeys or reorders, and what ends a line: names
// and messages may come from hostile code.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && guest.Obeyed(r) {
			return '�'
		}
		return r
	}, s)
}

func oneLine(s string) string {
	return visible(strings.Join(strings.Fields(strings.ReplaceAll(s, "\n", " ")), " "))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// terminal reports whether w is one: progress and colours are for people.
func terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// config loads the configuration once.
func (a *App) config() (*config.Config, error) {
	if a.loaded != nil {
		return a.loaded, nil
	}
	c, err := config.Load(config.Source{Flags: a.flags, Lookup: a.Lookup, File: a.file, Root: a.Root})
	if err != nil {
		return nil, err
	}
	a.loaded = c
	return c, nil
}

// configFlag is a flag that sets a configuration key.
type configFlag struct {
	app  *App
	key  string
	kind string
}

// String implements pflag.Value.
func (f configFlag) String() string { return "" }

// Set implements pflag.Value.
func (f configFlag) Set(v string) error { f.app.flags[f.key] = v; return nil }

// Type implements pflag.Value.
func (f configFlag) Type() string { return f.kind }

// configFlags adds flags for configuration keys.
func (a *App) configFlags(fs *pflag.FlagSet, names ...string) {
	for _, k := range config.Keys {
		for _, n := range names {
			if k.Name != n {
				continue
			}
			kind := k.Kind
			f := fs.VarPF(configFlag{a, k.Name, cmp.Or(kind, "string")}, k.Flag(), "", k.Doc)
			if kind == "bool" {
				f.NoOptDefVal = "true"
			}
		}
	}
}

// flagError turns pflag's errors into ours.
func flagError(cmd *cobra.Command, err error) error {
	var se *sandbox.Error
	var bad *pflag.InvalidValueError
	if errors.As(err, &se) && errors.As(err, &bad) {
		c := *se
		c.Op, c.ID = "--"+bad.GetFlag().Name, ""
		return &c
	}
	e := sandbox.Errorf("", sandbox.KindInvalid, "%s", firstLine(err.Error())).
		WithHint("`%s --help` lists the flags", cmd.CommandPath())
	var unknown *pflag.NotExistError
	switch {
	case errors.As(err, &unknown):
		if near := nearestFlag(cmd, unknown.GetSpecifiedName()); near != "" {
			return e.WithHint("did you mean --%s?", near)
		}
	case errors.As(err, &bad) && bad.GetFlag().Value.Type() == "duration":
		return e.WithHint("write a number and a unit: 500ms, 30s, 1h30m")
	}
	return e
}

// nearestFlag is cmd's flag whose name is a typing error away from name, or "".
func nearestFlag(cmd *cobra.Command, name string) (near string) {
	best := 3 // further than that is another word
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if d := distance(name, f.Name); d < best && d < len(name) && !f.Hidden {
			best, near = d, f.Name
		}
	})
	return near
}

// distance is how many letters have to be put in, left out or changed to make
// b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
