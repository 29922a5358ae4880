package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

type evalFlags struct {
	code, context, language string
	env                     []string
	timeout                 time.Duration
	json                    bool
}

// maxEval is how much code a turn takes.
const maxEval = 8 << 20

func (a *App) evalCommand() *cobra.Command {
	var f evalFlags
	cmd := &cobra.Command{
		Use:   "eval [flags] ID -c CODE | ID FILE | ID -",
		Short: "Run code in a warm interpreter of a sandbox",
		Long: `Eval runs code in an interpreter that stays: what one eval defines, the next one
knows. It prints what the code prints and the text of what it shows, the value of
the last expression among it. Without --context it is the language's own context,
which the first eval makes.

It ends with 0, 1 when the code raised an exception, 124 over --timeout, 137 when
the code was interrupted or a limit killed the interpreter, 125 when that died.
Ctrl-C interrupts the code; the interpreter keeps its state.`,
		Example: `  firebreak eval $id -c 'x = 6'
  firebreak eval $id -c 'x * 7'
  firebreak eval $id --language node script.js
  firebreak eval $id --json - < plot.py`,
		ValidArgsFunction: a.completeSandboxes(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.eval(cmd, args, &f) },
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.code, "code", "c", "", "run CODE itself")
	fs.StringVar(&f.context, "context", "", "id of a context (default the language's own)")
	fs.StringVarP(&f.language, "language", "l", "", "python or node (default the sandbox's, else python)")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set K=V during this eval, or pass K on from here (repeatable)")
	fs.DurationVar(&f.timeout, "timeout", 0, "wall-clock limit, such as 30s; 0: none (default: the server's)")
	fs.BoolVar(&f.json, "json", false, "print one JSON object instead: stdout, stderr, results in every form, error")
	_ = cmd.RegisterFlagCompletionFunc("language", cobra.FixedCompletions([]string{"python", "node"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *App) eval(cmd *cobra.Command, args []string, f *evalFlags) error {
	id, code, err := a.evalArgs(cmd, args, f)
	if err != nil {
		return err
	}
	return a.withSession(cmd, func(s *session) error {
		if f.json {
			return a.evalJSON(cmd, s.Sandbox(id), code)
		}
		tail := &lastByte{w: a.Err}
		end, err := s.Sandbox(id).Eval(cmd.Context(), code, client.TurnHandler{Stdout: a.Out, Stderr: tail,
			Result: func(r *v1.EvalResult) error { return a.printResult(r) },
			Error:  func(e *v1.EvalError) error { return printFailure(tail, e) }})
		if err != nil {
			tail.newline()
			return err
		}
		return a.evaluated(end, tail)
	})
}

// evalArgs reads the sandbox's id and the code.
func (a *App) evalArgs(cmd *cobra.Command, args []string, f *evalFlags) (id string, c client.Code, err error) {
	usage := func(what string) error {
		return sandbox.Errorf("", sandbox.KindInvalid, "%s", what).WithHint("firebreak eval ID -c CODE, or firebreak eval ID FILE; - is standard input")
	}
	hasCode := cmd.Flags().Changed("code")
	switch {
	case len(args) == 0:
		return "", c, usage("a sandbox is needed")
	case hasCode && len(args) > 1:
		return "", c, usage("either -c or a file")
	case !hasCode && len(args) != 2:
		return "", c, usage("one file with code is needed")
	}
	c.Source, c.Context, c.Timeout = f.code, f.context, never(cmd.Flags().Changed("timeout"), f.timeout)
	if c.Language, err = parseLanguage(f.language); err != nil {
		return "", c, err
	}
	if c.Env, err = parseEnv(f.env, a.Lookup); err != nil {
		return "", c, err
	}
	if f.timeout < 0 {
		return "", c, sandbox.Errorf("--timeout", sandbox.KindInvalid, "%s is negative", f.timeout)
	}
	if !hasCode {
		c.Source, err = a.readSource(args[1])
	}
	return args[0], c, err
}

func (a *App) readSource(name string) (string, error) {
	if name == "-" {
		b, err := readAll(a.In, maxEval, "standard input")
		return string(b), err
	}
	f, err := os.Open(name)
	if err != nil {
		return "", sandbox.Errorf("", sandbox.KindInvalid, "%s", oneLine(err.Error())).WithHint("the file with the code is read here, not in the sandbox")
	}
	defer f.Close()
	b, err := readAll(f, maxEval, name)
	return string(b), err
}

// printResult prints the form of a result that a terminal can show.
func (a *App) printResult(r *v1.EvalResult) error {
	text := r.GetText()
	for _, other := range []string{r.GetMarkdown(), r.GetHtml(), r.GetJsonJson(), r.GetLatex(), r.GetSvg()} {
		if text == "" {
			text = other
		}
	}
	if text == "" {
		text = "[a result that is no text; --json shows it]"
	}
	_, err := a.Out.Write(append(bytes.TrimSuffix([]byte(text), []byte("\n")), '\n'))
	return err
}

func printFailure(w *lastByte, e *v1.EvalError) error {
	w.newline()
	text := e.GetTraceback()
	if text == "" {
		text = e.GetName() + ": " + e.GetValue()
	}
	_, err := w.Write(append(bytes.TrimSuffix([]byte(text), []byte("\n")), '\n'))
	return err
}

// evalCode is the exit code for a turn's end.
func evalCode(end client.TurnEnd) int {
	code := 0
	if end.Failed {
		code = exitFailed
	}
	return exitCode(string(end.Reason), code)
}

// evaluated says how a turn ended, and makes that our exit code.
func (a *App) evaluated(end client.TurnEnd, tail *lastByte) error {
	code := evalCode(end)
	if end.Reason != sandbox.ReasonDone {
		what := "interrupted"
		if !end.Alive {
			what = "the interpreter has ended"
		}
		tail.newline()
		a.say("%s: %s (%s)", what, end.Reason, oneLine(end.Detail))
		code = max(code, exitFailed)
	}
	if code != 0 {
		return exitError{code}
	}
	return nil
}

// evalOut is a turn as the API shows it.
type evalOut struct {
	Stdout       string         `json:"stdout"`
	StdoutData   []byte         `json:"stdout_data,omitempty"`
	Stderr       string         `json:"stderr"`
	StderrData   []byte         `json:"stderr_data,omitempty"`
	Results      []resultOut    `json:"results"`
	Error        *failureOut    `json:"error"`
	Count        int64          `json:"execution_count"`
	Duration     float64        `json:"duration_ms"`
	Reason       sandbox.Reason `json:"reason"`
	Detail       string         `json:"detail"`
	Context      string         `json:"context"`
	ContextAlive bool           `json:"context_alive"`
}

type failureOut struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"`
}

// resultOut has the forms that there are.
type resultOut map[string]any

func (a *App) evalJSON(cmd *cobra.Command, sb *client.Sandbox, c client.Code) error {
	var out, errs bytes.Buffer
	o := evalOut{Results: []resultOut{}}
	end, err := sb.Eval(cmd.Context(), c, client.TurnHandler{Stdout: &out, Stderr: &errs,
		Result: func(r *v1.EvalResult) error { o.Results = append(o.Results, formsOf(r)); return nil },
		Error: func(e *v1.EvalError) error {
			o.Error = &failureOut{e.GetName(), e.GetValue(), e.GetTraceback()}
			return nil
		}})
	if err != nil {
		return err
	}
	o.Stdout, o.StdoutData = textOrData(out.Bytes())
	o.Stderr, o.StderrData = textOrData(errs.Bytes())
	o.Count, o.Reason, o.Detail, o.Context, o.ContextAlive = end.Count, end.Reason, end.Detail, end.Context, end.Alive
	o.Duration = float64(end.Duration) / float64(time.Millisecond)
	if err := a.printJSON(o); err != nil {
		return err
	}
	if code := evalCode(end); code != 0 {
		return exitError{code}
	}
	return nil
}

func formsOf(r *v1.EvalResult) resultOut {
	o := resultOut{"is_main_result": r.GetIsMainResult()}
	for name, v := range map[string]string{"text": r.GetText(), "html": r.GetHtml(), "markdown": r.GetMarkdown(), "svg": r.GetSvg(), "png": r.GetPng(),
		"jpeg": r.GetJpeg(), "pdf": r.GetPdf(), "latex": r.GetLatex(), "javascript": r.GetJavascript()} {
		if v != "" {
			o[name] = v
		}
	}
	for name, v := range map[string]string{"json": r.GetJsonJson(), "data": r.GetDataJson(), "chart": r.GetChartJson()} {
		if json.Valid([]byte(v)) {
			o[name] = json.RawMessage(v)
		}
	}
	if len(r.GetExtra()) > 0 {
		o["extra"] = r.GetExtra()
	}
	return o
}
