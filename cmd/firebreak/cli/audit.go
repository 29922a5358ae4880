package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func (a *App) auditCommand() *cobra.Command {
	return group("audit", "Check, prove and export the evidence", a.auditVerify(), a.auditProve(), a.auditExport(), a.auditTail(),
		a.auditKey(), a.auditRotateKey(), a.auditWitness(), a.auditAcknowledge())
}

// checked turns the error of a check into its exit code: 1 says that the evidence
// is bad, 125 that it could not be checked.
func (a *App) checked(err error) error {
	var bad *audit.EvidenceError
	var se *sandbox.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		a.say("%s", oneLine(err.Error()))
		return exitError{exitFailed}
	case !errors.As(err, &se):
		a.say("%s", oneLine(err.Error()))
		return exitError{exitFirebreak}
	case se.Kind == sandbox.KindInvalid:
		return err
	}
	a.report(se)
	return exitError{exitFirebreak}
}

// logDir is the directory of a log that is named like it, or is one.
func (a *App) logDir(name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		return name, nil
	}
	c, err := a.config()
	if err != nil {
		return "", err
	}
	return filepath.Join(c.Data, "audit", name), nil
}

// logDirs lists the logs of the data directory: the server's and those of runs,
// without what was kept aside of one that was not what was signed.
func (a *App) logDirs() (dirs []string, err error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.Data, "audit")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, sandbox.Wrap("audit", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() && (e.Name() == "server" || strings.HasPrefix(e.Name(), "run-")) && !strings.Contains(e.Name(), ".") {
			dirs = append(dirs, filepath.Join(dir, e.Name()))
		}
	}
	slices.SortFunc(dirs, func(a, b string) int { // the server's first
		return strings.Compare(strings.TrimPrefix(filepath.Base(a), "server"), strings.TrimPrefix(filepath.Base(b), "server"))
	})
	return dirs, nil
}

// keyText is a public key that was given, or is in a file that was named.
func keyText(s string) (string, error) {
	b, err := os.ReadFile(s)
	switch {
	case err == nil && len(b) <= 4096:
		s = string(b)
	case err == nil || !errors.Is(err, fs.ErrNotExist) && !strings.Contains(s, "+"):
		return "", sandbox.Errorf("read key", sandbox.KindInvalid, "%s holds no public key", s)
	}
	f := strings.Fields(s) // a witness may be named with its address in front
	if len(f) == 0 {
		return "", sandbox.Errorf("read key", sandbox.KindInvalid, "there is no public key")
	}
	return f[len(f)-1], nil
}

// verifyFlags is what a verifier brings along.
type verifyFlags struct {
	key, from string
	witnesses []string
	quorum    int
	json      bool
}

func (f *verifyFlags) options() (o audit.VerifyOptions, err error) {
	o.Quorum = f.quorum
	if f.key != "" {
		if o.Key, err = keyText(f.key); err != nil {
			return o, err
		}
	}
	for _, w := range f.witnesses {
		w, err := keyText(w)
		if err != nil {
			return o, err
		}
		o.Witnesses = append(o.Witnesses, w)
	}
	if f.from != "" {
		if o.From, err = os.ReadFile(f.from); err != nil {
			return o, sandbox.Errorf("--from", sandbox.KindInvalid, "%w", err)
		}
	}
	return o, nil
}

func (a *App) auditVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [DIR|FILE]",
		Short: "Check a log, or a file of evidence, without the server",
		Long: `Verify checks a log (a directory) or what ` + "`audit export --sandbox`" + ` wrote (a file);
without either, every log of the data directory. It reads every record and checks
sums, chain and tree, the signatures back to the key given with --key, what has
expired or was repaired, and says which record differs where one does.

Without --key it believes the key that lies beside the log: whoever can change the
log can change that, too. A checkpoint that was put aside earlier (--from) or a
witness (--witness) shows that the log was not rolled back.

Exit code: 0 good, 1 bad, 2 wrong usage, 125 it could not be checked.`,
		Example: `  firebreak audit verify
  firebreak audit verify --key /media/keys/audit.pub --from /media/keys/checkpoint /var/lib/firebreak/audit/server
  firebreak audit verify evidence.json --key firebreak/1a2b3c4d+5e6f7a8b+AbCd…`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if fi, err := os.Stat(args[0]); err != nil {
					return a.checked(sandbox.Wrap("audit verify", args[0], err))
				} else if !fi.IsDir() {
					return a.verifyEvidence(args[0], o, f.json)
				}
				return a.verifyLogs(args, o, f.json)
			}
			dirs, err := a.logDirs()
			if err == nil && len(dirs) == 0 {
				err = sandbox.Errorf("audit verify", sandbox.KindNotFound, "the data directory has no log yet")
			}
			if err != nil {
				return a.checked(err)
			}
			return a.verifyLogs(dirs, o, f.json)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.key, "key", "", "the log's public key, or a file with it, from elsewhere than the log")
	fs.StringVar(&f.from, "from", "", "file with a checkpoint that was put aside earlier")
	fs.StringArrayVar(&f.witnesses, "witness", nil, "public key of a witness, or a file with it (repeatable)")
	fs.IntVar(&f.quorum, "quorum", 0, "how many of them must have cosigned; 0: all")
	fs.BoolVar(&f.json, "json", false, "print one object")
	return cmd
}

// errorOut is an error in an object.
type errorOut struct {
	File     string `json:"file,omitempty"`
	Offset   int64  `json:"offset,omitempty"`
	Position uint64 `json:"position,omitempty"`
	What     string `json:"what"`
}

func errorOf(err error) *errorOut {
	var bad *audit.EvidenceError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &bad):
		return &errorOut{bad.File, bad.Offset, uint64(bad.Position), bad.What}
	}
	return &errorOut{What: err.Error()}
}

type logOut struct {
	OK       bool      `json:"ok"`
	Error    *errorOut `json:"error"`
	Unsigned int64     `json:"unsigned"` // records behind the checkpoint
	audit.Report
}

// verifyLogs checks logs one after the other; the worst decides the exit code.
func (a *App) verifyLogs(dirs []string, o audit.VerifyOptions, asJSON bool) error {
	var worst error
	out := []logOut{}
	for _, dir := range dirs {
		r, err := audit.VerifyLog(dir, o)
		if name := filepath.Base(filepath.Clean(dir)); err == nil && len(dirs) > 1 && !originOf(r.Origin, name) {
			err = &audit.EvidenceError{File: "checkpoint", What: fmt.Sprintf("this is the log %s, in the place of %s", r.Origin, name)}
		}
		if se := (*sandbox.Error)(nil); errors.As(err, &se) && se.Kind == sandbox.KindInvalid {
			return err
		}
		out = append(out, logOut{err == nil, errorOf(err), r.Unsigned(), r})
		if err != nil && (worst == nil || errors.As(err, new(*audit.EvidenceError))) {
			worst = err
		}
		if !asJSON {
			a.showLog(r, err)
		}
	}
	if asJSON {
		if err := a.printJSON(map[string]any{"ok": worst == nil, "logs": out}); err != nil {
			return err
		}
	}
	switch {
	case worst == nil:
		return nil
	case errors.As(worst, new(*audit.EvidenceError)):
		return exitError{exitFailed}
	}
	return exitError{exitFirebreak}
}

// originOf reports whether a log of that origin belongs into the directory name.
func originOf(origin, name string) bool {
	last := origin[strings.LastIndex(origin, "/")+1:]
	return last == name || strings.HasPrefix(last, name+".") // begun anew after a gap
}

func (a *App) showLog(r audit.Report, err error) {
	line := func(format string, args ...any) { fmt.Fprintf(a.Out, "  %s\n", visible(fmt.Sprintf(format, args...))) }
	if err != nil {
		verdict := "BAD"
		if !errors.As(err, new(*audit.EvidenceError)) {
			verdict = "not checked"
		}
		fmt.Fprintf(a.Out, "%s: %s\n", visible(r.Dir), verdict)
		line("%s", oneLine(err.Error()))
		return
	}
	fmt.Fprintf(a.Out, "%s: good\n", visible(r.Dir))
	if r.Records == 0 {
		line("no records yet")
		return
	}
	records := fmt.Sprintf("records %d-%d, all signed", r.First, r.Records)
	if n := r.Unsigned(); n > 0 {
		records = fmt.Sprintf("records %d-%d, the last %d not signed yet", r.First, r.Records, n)
	}
	if r.Torn > 0 {
		records += fmt.Sprintf("; behind them %d bytes of an interrupted write", r.Torn)
	}
	line("%s", records)
	if r.Expired > 0 {
		line("records 1-%d have expired, as the log says", r.Expired)
	}
	if r.Repairs > 0 {
		line("%d repairs, what was cut off is there", r.Repairs)
	}
	where := "beside the log: whoever can change it can change the key, so bring one with --key"
	if r.KeyOutside {
		where = "as given"
		if r.Rotations > 0 {
			where = fmt.Sprintf("which the one given leads to, changes of keys checked: %d", r.Rotations)
		}
	}
	line("log %s, key %s (%s)", r.Origin, r.Key, where)
	line("root %s of %d", r.Root, r.Signed)
	if r.Pinned > 0 {
		line("continues the checkpoint of %d records from outside", r.Pinned)
	}
	for _, c := range r.Cosigned {
		line("witness %s has seen %d records, at %s", c.Witness, c.Size, c.Time.Local().Format("2006-01-02 15:04:05"))
	}
}

// verifyEvidence checks a file.
func (a *App) verifyEvidence(path string, o audit.VerifyOptions, asJSON bool) error {
	if fi, err := os.Stat(path); err == nil && fi.Size() > audit.MaxEvidence {
		return a.checked(&audit.EvidenceError{File: path, What: "the evidence is too long"})
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return a.checked(sandbox.Wrap("audit verify", path, err))
	}
	var r audit.EvidenceReport
	e, err := audit.DecodeEvidence(b)
	if err == nil {
		r, err = e.Verify(o)
	}
	if asJSON {
		if perr := a.printJSON(struct {
			OK    bool      `json:"ok"`
			Error *errorOut `json:"error"`
			audit.EvidenceReport
		}{err == nil, errorOf(err), r}); perr != nil {
			return perr
		}
		if errors.As(err, new(*audit.EvidenceError)) {
			return exitError{exitFailed}
		}
	}
	if err != nil || asJSON {
		return a.checked(err)
	}
	line := func(format string, args ...any) { fmt.Fprintf(a.Out, "  %s\n", visible(fmt.Sprintf(format, args...))) }
	fmt.Fprintf(a.Out, "%s: good\n", visible(path))
	line("sandbox %s, %d records from %d to %d", r.Sandbox, r.Records, r.First, r.Last)
	if r.Complete {
		line("complete: nothing between its creation and its receipt is left out")
	} else {
		line("not shown to be complete: %s", r.Missing)
	}
	switch {
	case r.Receipt && r.Clean:
		line("receipt: everything it had was removed")
	case r.Receipt:
		line("receipt: something of it is left")
	default:
		line("receipt: not in the file")
	}
	where := "in the file itself: bring one with --key"
	if r.KeyOutside {
		where = "as given"
		if r.Rotations > 0 {
			where = fmt.Sprintf("which the one given leads to, changes of keys checked: %d", r.Rotations)
		}
	}
	line("log %s, key %s (%s)", r.Origin, r.Key, where)
	line("root %s of %d", r.Root, r.Signed)
	for _, c := range r.Cosigned {
		line("witness %s has seen it at %s", c.Witness, c.Time.Local().Format("2006-01-02 15:04:05"))
	}
	return nil
}
