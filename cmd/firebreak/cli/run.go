package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/cmd/firebreak/gitsource"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxProgram and maxStdin bound what is read into memory and sent in one
// message. Larger inputs go through --input, which streams.
const (
	maxProgram = 4 << 20
	maxStdin   = 4 << 20
)

type runFlags struct {
	makeFlags
	code, language, user, cwd string
	inputs, artifacts         []string
	stdin, json, verbose      bool
}

func (a *App) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] FILE [ARG...] | - | -c CODE [ARG...] | -- CMD [ARG...]",
		Short: "Run code in a sandbox of its own, then remove it",
		Long: `Run makes a sandbox, runs a program in it, prints what it prints, and removes the
sandbox. Without a server it starts what it needs in this process and leaves
nothing but the audit record.

Flags come before FILE; what follows FILE is the program's. FILE is copied into
the home and run there by python3, node or sh, by its ending (.py .js .mjs .cjs .sh),
else by its first line (#!), else by python3. -c and - are python unless --language
says otherwise.

Stdout and stderr are the program's, unchanged and live. Exit code: the program's
own; 124 over the wall-clock limit; 137 killed by another limit, with one line
that says which on stderr; 125 Firebreak itself failed; 126, 127 the command cannot
be executed, or is not in the sandbox; 2 wrong usage; 130 Ctrl-C.

--input SRC[:DST] brings a file or directory from here; DST is relative to the
home, where the program starts. --artifact PATH[:DST] keeps a file or directory;
it is saved as its base name in the current directory, or as DST.

Without --allow, --policy or --binding there is no network device. What is denied is
said on stderr at the end, with the --allow that would permit it; --json lists all in
egress.

--binding NAME has the program make requests with a secret that it never gets: what it
sends to $NAME_BASE_URL, http://NAME.binding.internal, goes on to the host of the
binding with the secret added. It needs a server, which keeps secrets and bindings.

--git REPO[#REF[:SUBPATH]] brings the files of a commit into the home: of a branch,
a tag or a commit, HEAD by default, of a repository of this machine or behind an
https:// URL (http:// if that is written). FILE is then one of them. The commit that
REF was is the label git.commit, and in --json. Fetched are public addresses, without
credentials; --git-private names servers that are yours.

Code reports a result with firebreak.result({...}) (Python: import firebreak) or
by writing JSON to the file named in $FIREBREAK_RESULT; --json prints it.`,
		Example: `  firebreak run -c 'print(6*7)'
  firebreak run --memory 64MiB --timeout 10s job.py --its-own-flag
  echo 'console.log(1+1)' | firebreak run --language node -
  firebreak run --input data.csv --artifact plot.png analyse.py data.csv
  cat words.txt | firebreak run --stdin -- sort -u
  firebreak run --json job.py | jq .result
  firebreak run --allow api.example.com --policy pypi job.py
  firebreak run --binding openai job.py
  firebreak run --git ./project#v1.2:tools check.py --strict
  firebreak run --git https://github.com/o/project.git#v1.2 check.py
  firebreak run --image docker.io/library/golang:1.26 -- go version`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, args, &f)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false) // what follows FILE is the program's
	fs.StringVarP(&f.code, "code", "c", "", "run CODE itself")
	fs.StringVarP(&f.language, "language", "l", "", "python, node or shell")
	f.add(fs, "wall-clock limit of the program, such as 30s; 0: none (default: the server's)")
	a.configFlags(fs, "git_private")
	fs.StringArrayVarP(&f.inputs, "input", "i", nil, "bring SRC[:DST], a file or directory (repeatable)")
	fs.StringArrayVarP(&f.artifacts, "artifact", "a", nil, "keep PATH[:DST], a file or directory (repeatable)")
	fs.StringVar(&f.user, "user", "", "user inside the sandbox (default user, uid 1000)")
	fs.StringVar(&f.cwd, "cwd", "", "working directory (default the home; for a command in an image, what the image says)")
	fs.BoolVar(&f.stdin, "stdin", false, "pass standard input on to the program, at most 4 MiB")
	fs.BoolVar(&f.json, "json", false, "print one JSON object instead of the program's output")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "print what was not enforced, and how long things took")
	_ = cmd.RegisterFlagCompletionFunc("language", cobra.FixedCompletions([]string{"python", "node", "shell"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("backend", cobra.FixedCompletions([]string{"auto", "gvisor", "sim"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *App) run(cmd *cobra.Command, args []string, f *runFlags) error {
	err := a.runOnce(cmd, args, f)
	var exit exitError
	var se *sandbox.Error
	if !f.json || err == nil || errors.As(err, &exit) || cmd.Context().Err() != nil {
		return err
	}
	// A failure of Firebreak itself is the one object that --json prints.
	if !errors.As(sandbox.Wrap("run", "", err), &se) {
		return err
	}
	if perr := a.printJSON(errorJSON(se)); perr != nil {
		return perr
	}
	return exitError{codeOf(cmd, se)}
}

func (a *App) runOnce(cmd *cobra.Command, args []string, f *runFlags) (err error) {
	o, keep, tree, err := a.runOptions(cmd, args, f)
	if err != nil {
		return err
	}
	defer tree.Close()
	s, err := a.connectOrLocal(cmd.Context())
	if err != nil {
		return err
	}
	var end func() error // what is left to say once everything is gone
	defer func() {
		if cerr := s.close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
		if err == nil {
			err = end()
		}
	}()
	if err := a.useImage(cmd.Context(), s, f.image, &o.Sandbox); err != nil {
		return err
	}
	if f.json {
		end, err = a.runRecorded(cmd.Context(), s, o, keep, tree)
	} else {
		end, err = a.runLive(cmd.Context(), s, o, keep, f.verbose)
	}
	return err
}

// runRecorded has the server carry out the run and prints its record.
func (a *App) runRecorded(ctx context.Context, s *session, o client.RunOptions, keep artifacts, tree *gitsource.Tree) (end func() error, err error) {
	run, err := s.Run(ctx, o)
	if err == nil {
		err = unstarted(o.Program, client.RunError(run))
	}
	if err != nil {
		return nil, err
	}
	saved, err := keep.save(ctx, s, run)
	if err != nil {
		return nil, err
	}
	return func() error {
		out := runJSON(run, saved)
		out.Source = sourceJSON(tree)
		if err := a.printJSON(out); err != nil {
			return err
		}
		return a.verdict(exitCode(run.GetReason(), int(run.GetExitCode())), run.GetReceipt())
	}, nil
}

// runOptions turns the command line into a request.
func (a *App) runOptions(cmd *cobra.Command, args []string, f *runFlags) (o client.RunOptions, keep artifacts, tree *gitsource.Tree, err error) {
	defer func() {
		if err != nil {
			tree.Close()
		}
	}()
	if o.Sandbox, err = f.options(cmd, a.Lookup); err != nil {
		return o, nil, tree, err
	}
	if tree, err = a.gitTree(cmd, f.git, &o.Sandbox); err != nil {
		return o, nil, tree, err
	}
	o.Inputs = treeInputs(tree)
	var script *client.Input
	if o.Program, script, err = a.program(cmd, args, f, tree); err != nil {
		return o, nil, tree, err
	}
	o.Program.User, o.Program.Dir = f.user, f.cwd
	o.Program.Timeout = never(cmd.Flags().Changed("timeout"), f.timeout)
	if o.Program.Timeout == client.Never {
		o.Sandbox.Timeout = client.Never
	}
	for _, s := range f.inputs {
		t, err := parseInput(s)
		if err != nil {
			return o, nil, tree, err
		}
		in, err := collect(t)
		if err != nil {
			return o, nil, tree, err
		}
		o.Inputs = append(o.Inputs, in...)
	}
	if script != nil {
		o.Inputs = append(o.Inputs, *script)
	}
	// An image may have commands start elsewhere; where there are files to find,
	// the program starts beside them.
	if o.Program.Dir == "" && len(o.Inputs)+len(f.artifacts) > 0 {
		o.Program.Dir = "."
	}
	for _, s := range f.artifacts {
		t, err := parseArtifact(s)
		if err != nil {
			return o, nil, tree, err
		}
		keep = append(keep, t)
		o.Artifacts = append(o.Artifacts, t.src)
	}
	return o, keep, tree, nil
}

// program reads what is to be run. A FILE is also an input.
func (a *App) program(cmd *cobra.Command, args []string, f *runFlags, tree *gitsource.Tree) (c client.Command, script *client.Input, err error) {
	p, err := parseProgram(args, cmd.ArgsLenAtDash(), f.code, cmd.Flags().Changed("code"))
	if err != nil {
		return c, nil, err
	}
	if c.Language, err = parseLanguage(f.language); err != nil {
		return c, nil, err
	}
	c.Args = p.args
	switch p.form {
	case formCommand:
		c.Path, c.Args = p.args[0], p.args[1:]
		if c.Language != "" {
			return c, nil, sandbox.Errorf("--language", sandbox.KindInvalid, "a command has no language").WithHint("leave --language out, or use -c")
		}
	case formCode:
		c.Code = p.code
		c.Language = cmp.Or(c.Language, "python")
	case formStdin:
		if f.stdin {
			return c, nil, sandbox.Errorf("--stdin", sandbox.KindInvalid, "standard input is already the program").WithHint("put the program into a file or -c")
		}
		src, err := readAll(a.In, maxProgram, "the program")
		if err != nil {
			return c, nil, err
		}
		c.Code = string(src)
		c.Language = cmp.Or(c.Language, detectLanguage("", src), "python")
	case formFile:
		if c, script, err = fileProgram(c, p, f, tree); err != nil {
			return c, nil, err
		}
	}
	if f.stdin {
		if c.Stdin, err = readAll(a.In, maxStdin, "standard input"); err != nil {
			return c, nil, err
		}
	}
	return c, script, nil
}

// fileProgram runs a file as its interpreter runs files: under its own name in
// the home, with that name in messages, and with its arguments where the
// language expects those of a script. Of a tree it is there already.
func fileProgram(c client.Command, p program, f *runFlags, tree *gitsource.Tree) (client.Command, *client.Input, error) {
	src, err := readProgram(p.file, tree)
	if err != nil {
		return c, nil, err
	}
	if c.Language = cmp.Or(c.Language, detectLanguage(p.file, src)); c.Language == "" {
		if line, _, _ := strings.Cut(string(src[:min(len(src), 256)]), "\n"); strings.HasPrefix(line, "#!") {
			return c, nil, sandbox.Errorf("run", sandbox.KindInvalid, "%s: its first line is %q, no language known here", p.file, line).
				WithHint("bring it with --input %[1]s and name its interpreter: -- INTERPRETER %[1]s; or add --language python, node or shell", p.file)
		}
		if filepath.Ext(p.file) != "" {
			return c, nil, sandbox.Errorf("run", sandbox.KindInvalid, "%s: cannot tell the language", p.file).WithHint("add --language python, node or shell")
		}
		c.Language = "python"
	}
	var script *client.Input
	name := path.Clean(p.file)
	if tree == nil {
		name = filepath.Base(p.file)
		script = &client.Input{Path: name, Size: int64(len(src)), Mode: 0o644,
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(src)), nil }}
	}
	switch {
	case f.cwd != "" && f.user == "root":
		name = "/root/" + name
	case f.cwd != "":
		name = "/home/user/" + name
	case name[0] == '-':
		name = "./" + name
	}
	c.Path, c.Args = interpreter(c.Language, p.file, src), append([]string{name}, p.args...)
	if c.Language == "python" {
		c.Env = map[string]string{"PYTHONUNBUFFERED": "1"} // people watch, and what was printed before a kill counts
	}
	return c, script, nil
}

// interpreter is the program that runs a file.
func interpreter(language, name string, src []byte) string {
	switch language {
	case "python":
		return "python3"
	case "node":
		return "node"
	}
	line, _, _ := bytes.Cut(src, []byte("\n"))
	if filepath.Ext(name) == ".bash" || bytes.HasPrefix(line, []byte("#!")) && bytes.Contains(line, []byte("bash")) {
		return "bash"
	}
	return "sh"
}

func readProgram(name string, tree *gitsource.Tree) ([]byte, error) {
	if tree != nil {
		return readEntrypoint(name, tree)
	}
	file, err := os.Open(name)
	if err != nil {
		e := sandbox.Errorf("run", sandbox.KindInvalid, "%w", errors.Unwrap(err)).WithID(name)
		return nil, e.WithHint("FILE is a program here; write -c CODE for code itself, -- CMD for a command of the sandbox")
	}
	defer file.Close()
	if st, err := file.Stat(); err == nil && st.IsDir() {
		return nil, sandbox.Errorf("run", sandbox.KindInvalid, "is a directory").WithID(name).
			WithHint("bring it with --input %s and run a file of it", name)
	}
	return readAll(file, maxProgram, name)
}

func readAll(r io.Reader, limit int64, what string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, sandbox.Wrap("read", what, err)
	}
	if int64(len(data)) > limit {
		return nil, sandbox.Errorf("", sandbox.KindTooLarge, "%s is larger than %s", what, sandbox.FormatSize(limit)).
			WithHint("bring it as a file with --input")
	}
	return data, nil
}

// verdict is the exit code of a program whose sandbox is gone, unless something
// of it is not.
func (a *App) verdict(code int, r *v1.Receipt) error {
	if !r.GetClean() {
		for _, o := range r.GetObjects() {
			if !o.GetGone() {
				a.say("left behind: %s %s: %s", o.GetKind(), o.GetName(), o.GetDetail())
			}
		}
		return sandbox.Errorf("destroy", sandbox.KindInternal, "the sandbox was not removed completely").
			WithHint("the next run or server tries again; `firebreak doctor` tells more")
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

// exitCode maps how a program ended to our exit code. The server has already
// mapped what a limit killed; a program that met a limit and lived (a full
// disk) keeps its own.
func exitCode(reason string, code int) int {
	switch sandbox.Reason(reason) {
	case sandbox.ReasonTimeout:
		return exitTimeout
	case sandbox.ReasonCrashed, sandbox.ReasonLost:
		return exitFirebreak
	case sandbox.ReasonOperator, sandbox.ReasonIdle:
		return exitKilled
	}
	return code
}

// endLine says why a program did not end by itself, or what is to be said of one
// that did (a result that was ignored), or "".
func endLine(reason, detail string, code int) string {
	what := ""
	switch r := sandbox.Reason(reason); {
	case r == sandbox.ReasonDone || r == "":
		return detail
	case r == sandbox.ReasonCrashed:
		what = "the sandbox crashed"
	case r == sandbox.ReasonLost:
		what = "the sandbox was lost"
	case code == exitKilled || code == exitTimeout:
		what = "killed: " + reason
	default:
		what = "limit reached: " + reason
	}
	if detail != "" {
		what += " (" + detail + ")"
	}
	return what
}

// lastByte remembers how output ended, so that our own line can start one.
type lastByte struct {
	w    io.Writer
	last byte
}

// Write implements io.Writer.
func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.last = p[len(p)-1]
	}
	return l.w.Write(p)
}

func (l *lastByte) newline() {
	if l.last != 0 && l.last != '\n' {
		fmt.Fprintln(l.w)
		l.last = '\n'
	}
}

// artifacts is what --artifact asked to keep.
type artifacts []transfer

// save fetches what the run kept and returns where each went, by path in the
// sandbox.
func (as artifacts) save(ctx context.Context, s *session, run *v1.Run) (map[string]string, error) {
	saved := map[string]string{}
	for _, art := range run.GetArtifacts() {
		if art.GetError() != "" {
			continue
		}
		dst, rest, ok := as.destination(art.GetPath())
		if !ok {
			return saved, sandbox.Errorf("artifact", sandbox.KindProtocol, "the server kept %q, which nobody asked for", art.GetPath())
		}
		to, err := create(dst, rest)
		if err != nil {
			return saved, sandbox.Wrap("artifact", art.GetPath(), err)
		}
		_, err = s.ReadArtifact(ctx, run.GetId(), art.GetPath(), to)
		if err = to.commit(err); err != nil {
			return saved, sandbox.Wrap("artifact", art.GetPath(), err)
		}
		saved[art.GetPath()] = to.name
	}
	return saved, nil
}

// destination finds which --artifact a kept file belongs to. rest is the path
// below it, for a file of a directory.
func (as artifacts) destination(path string) (dst, rest string, ok bool) {
	best := -1
	for _, t := range as {
		below, in := inside(t.src, path)
		if in && len(t.src) > best {
			best, dst, rest, ok = len(t.src), t.dst, below, true
		}
	}
	return dst, rest, ok
}

// errorJSON is the API's own shape of an error.
func errorJSON(e *sandbox.Error) any {
	type body struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
		Op      string `json:"op"`
		ID      string `json:"id"`
	}
	return struct {
		Error body `json:"error"`
	}{body{string(e.Kind), e.Message(), e.Hint, e.Op, e.ID}}
}
