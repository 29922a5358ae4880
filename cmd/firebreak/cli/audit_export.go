package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// exportFlags says what to export.
type exportFlags struct {
	sandbox, out, log string
	jsonl, force      bool
	after             uint64
}

func (a *App) auditExport() *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use:   "export (--sandbox ID | --jsonl [--after POSITION])",
		Short: "Write one sandbox's evidence, or records as lines, to a file",
		Long: `Export --sandbox writes everything the log proves about one sandbox into one file:
its records, each with its proof, the signed checkpoint, changes of keys, and the
receipt. ` + "`audit verify FILE --key KEY`" + ` checks it on any machine.

Export --jsonl writes each record as an object on a line of its own. The position of
the last line is the cursor to go on from with --after.

A server named by url or FIREBREAK_URL is asked; else the data directory is read,
and only for the receipt the server on the local socket, if there is one.`,
		Example: "  firebreak audit export --sandbox $id -o evidence.json\n  firebreak audit export --jsonl --after 1200 >> records.jsonl",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.jsonl == (f.sandbox != "") {
				return sandbox.Errorf("", sandbox.KindInvalid, "either --sandbox or --jsonl is needed").WithHint("`firebreak audit export --help` tells what they do")
			}
			if f.sandbox != "" {
				return a.checked(a.exportSandbox(cmd.Context(), f))
			}
			return a.checked(a.to(f.out, f.force, func(w io.Writer) error { return a.exportRecords(cmd.Context(), f, w) }))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.sandbox, "sandbox", "", "id of a sandbox: write its evidence")
	fs.BoolVar(&f.jsonl, "jsonl", false, "write records as lines of JSON")
	fs.Uint64Var(&f.after, "after", 0, "only records behind this position")
	fs.StringVarP(&f.out, "output", "o", "-", "file to write; -: standard output")
	fs.BoolVar(&f.force, "force", false, "replace an existing file")
	fs.StringVar(&f.log, "log", "", logFlag+"; default: the server's, for a sandbox whichever knows it")
	return cmd
}

// to has f write a new file, which appears when it is complete, or standard
// output.
func (a *App) to(path string, force bool, f func(io.Writer) error) (err error) {
	if path == "-" {
		return f(a.Out)
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return sandbox.Errorf("--output", sandbox.KindInvalid, "%s is there already", path).WithHint("--force replaces it")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".firebreak-*")
	if err != nil {
		return sandbox.Wrap("write", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	err = f(tmp)
	if serr := tmp.Sync(); err == nil {
		err = serr
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}

// asks reports whether a server was named, rather than a data directory.
func (a *App) asks() (bool, error) {
	c, err := a.config()
	return err == nil && c.URL != "", err
}

func (a *App) exportSandbox(ctx context.Context, f exportFlags) error {
	named, err := a.asks()
	if err != nil {
		return err
	}
	var file []byte
	if named && f.log == "" {
		file, err = a.remoteEvidence(ctx, f.sandbox)
	} else {
		file, err = a.localEvidence(ctx, f)
	}
	if err != nil {
		return err
	}
	return a.to(f.out, f.force, func(w io.Writer) error { _, err := w.Write(file); return err })
}

// remoteEvidence asks the server.
func (a *App) remoteEvidence(ctx context.Context, id string) ([]byte, error) {
	s, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	return s.Evidence(ctx, id)
}

// localEvidence reads the data directory.
func (a *App) localEvidence(ctx context.Context, f exportFlags) ([]byte, error) {
	dirs := []string{f.log}
	var err error
	if f.log != "" {
		dirs[0], err = a.logDir(f.log)
	} else {
		dirs, err = a.logDirs()
	}
	if err != nil {
		return nil, err
	}
	err = sandbox.Errorf("audit export", sandbox.KindNotFound, "no log knows it").WithID(f.sandbox)
	for _, dir := range dirs {
		e, cerr := collectSigned(ctx, dir, sandbox.ID(f.sandbox))
		if sandbox.KindOf(cerr) == sandbox.KindNotFound {
			continue
		}
		if cerr != nil {
			return nil, cerr
		}
		a.addReceipt(ctx, e)
		return e.Encode()
	}
	return nil, err
}

// signedWithin is how long a server takes to sign what it has recorded, at the
// longest; it means to do so within a second.
const signedWithin = 3 * time.Second

// collectSigned is audit.CollectEvidence for a log that may be written to just
// now: it waits for the newest record to be signed.
func collectSigned(ctx context.Context, dir string, id sandbox.ID) (*audit.Evidence, error) {
	for end := time.Now().Add(signedWithin); ; {
		e, err := audit.CollectEvidence(dir, id)
		if sandbox.KindOf(err) != sandbox.KindConflict || time.Now().After(end) {
			return e, err
		}
		select {
		case <-time.After(signedWithin / 15):
		case <-ctx.Done():
			return nil, sandbox.Wrap("audit export", string(id), ctx.Err())
		}
	}
}

// addReceipt adds the receipt, of which the log has the digest, if somebody still
// has it.
func (a *App) addReceipt(ctx context.Context, e *audit.Evidence) {
	r, err := a.receiptOf(ctx, e)
	if err == nil && r != nil && e.SetReceipt(*r) {
		return
	}
	if err != nil {
		a.say("without its receipt: %s", oneLine(err.Error()))
		return
	}
	a.say("without its receipt, which nobody has: the log has its digest")
}

func (a *App) receiptOf(ctx context.Context, e *audit.Evidence) (*sandbox.Receipt, error) {
	if s, err := a.remote(ctx); err == nil && s != nil {
		defer s.close()
		info, err := s.Sandbox(string(e.Sandbox)).Info(ctx)
		if err != nil {
			return nil, err
		}
		return fromReceipt(info.GetReceipt()), nil
	}
	c, err := a.config()
	if err != nil || a.Receipt == nil {
		return nil, err
	}
	return a.Receipt(ctx, c, e.Tenant(), e.Sandbox)
}

// exportRecords writes lines until there are no more records.
func (a *App) exportRecords(ctx context.Context, f exportFlags, w io.Writer) error {
	return a.records(ctx, f.log, f.after, false, func(_ recordOut, line []byte) error {
		_, err := fmt.Fprintf(w, "%s\n", line)
		return err
	})
}

// recordOut is what is shown of a record.
type recordOut struct {
	Position  uint64            `json:"position"`
	ID        uint64            `json:"id"` // its position, as the API has it
	Time      time.Time         `json:"time"`
	Tenant    string            `json:"tenant"`
	Sandbox   string            `json:"sandbox_id"`
	Principal string            `json:"principal"`
	Action    string            `json:"action"`
	Outcome   string            `json:"outcome"`
	Reason    string            `json:"reason"`
	Object    string            `json:"object"`
	Detail    map[string]string `json:"detail"`
}

// records calls f with each record behind a position, of the server that was
// named or of a log of the data directory, and if followed with those to come.
func (a *App) records(ctx context.Context, log string, after uint64, followed bool, f func(recordOut, []byte) error) error {
	named, err := a.asks()
	if err != nil {
		return err
	}
	if named && log == "" {
		return a.withRemote(ctx, func(s *session) error { return remoteRecords(ctx, s, after, followed, f) })
	}
	if log == "" {
		log = "server"
	}
	dir, err := a.logDir(log)
	if err != nil {
		return err
	}
	r, err := audit.NewReader(dir, sandbox.Position(after+1))
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		e, err := r.Next()
		switch {
		case errors.Is(err, io.EOF) && !followed:
			return nil
		case errors.Is(err, io.EOF):
			if !pause(ctx) {
				return nil
			}
			continue
		case err != nil:
			return err
		}
		line, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		if err := hand(line, f); err != nil {
			return err
		}
	}
}

func hand(line []byte, f func(recordOut, []byte) error) error {
	var out recordOut
	if err := json.Unmarshal(line, &out); err != nil {
		return sandbox.Wrap("read record", "", err)
	}
	if out.Position == 0 {
		out.Position = out.ID
	}
	return f(out, line)
}

// pause waits between two looks; false: ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(500 * time.Millisecond):
		return true
	}
}

// withRemote is withSession for what has no command.
func (a *App) withRemote(ctx context.Context, f func(*session) error) (err error) {
	s, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return f(s)
}

// remoteRecords pages through what the API shows of the tenant's records.
func remoteRecords(ctx context.Context, s *session, after uint64, followed bool, f func(recordOut, []byte) error) error {
	for {
		body, err := s.JSON(ctx, "/v1/audit/entries", url.Values{"after_id": {strconv.FormatUint(after, 10)}, "page_size": {"1000"}})
		if err != nil {
			return err
		}
		var page struct {
			Entries []json.RawMessage `json:"entries"`
			Next    uint64            `json:"next_after_id"`
			More    bool              `json:"more"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return sandbox.Wrap("read records", "", err)
		}
		for _, line := range page.Entries {
			if err := hand(line, f); err != nil {
				return err
			}
		}
		after = max(after, page.Next)
		if !page.More && (!followed || !pause(ctx)) {
			return nil
		}
	}
}

func (a *App) auditTail() *cobra.Command {
	var log string
	var followed, asJSON bool
	var n int
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Show the newest records, and with -f those to come",
		Long: `Tail shows the newest records, one on a line: those of the caller's tenant on a server
named by url or FIREBREAK_URL, else those of the data directory.`,
		Example: "  firebreak audit tail -n 50\n  firebreak audit tail -f",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if n < 0 {
				return sandbox.Errorf("--lines", sandbox.KindInvalid, "%d is negative", n)
			}
			return a.checked(a.tail(cmd.Context(), log, n, followed, asJSON))
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&followed, "follow", "f", false, "go on with what is recorded from now on")
	fs.IntVarP(&n, "lines", "n", 20, "how many of the newest records")
	fs.BoolVar(&asJSON, "json", false, "print each record as a JSON object on a line of its own")
	fs.StringVar(&log, "log", "", logFlag+"; default: the server's")
	return cmd
}

func (a *App) tail(ctx context.Context, log string, n int, followed, asJSON bool) error {
	type shown struct {
		record recordOut
		line   []byte
	}
	var last []shown
	after := uint64(0)
	err := a.records(ctx, log, 0, false, func(r recordOut, line []byte) error {
		if last = append(last, shown{r, line}); len(last) > n {
			last = last[1:]
		}
		after = r.Position
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range last {
		if err := a.printRecord(s.record, s.line, asJSON); err != nil {
			return err
		}
	}
	if !followed {
		return nil
	}
	return a.records(ctx, log, after, true, func(r recordOut, line []byte) error { return a.printRecord(r, line, asJSON) })
}

func (a *App) printRecord(r recordOut, line []byte, asJSON bool) error {
	if asJSON {
		return a.showJSON(append(slices.Clip(line), '\n'))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %6d  %-8s %-20s", r.Time.Local().Format("2006-01-02 15:04:05"), r.Position, r.Outcome, r.Action)
	for _, s := range []string{r.Sandbox, r.Object, r.Reason, r.Principal} {
		if s != "" {
			b.WriteString(" " + oneLine(s))
		}
	}
	_, err := fmt.Fprintln(a.Out, visible(b.String()))
	return err
}
