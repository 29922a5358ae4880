package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/cmd/firebreak/config"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// evidence is a data directory with a log, and an App for it.
type evidence struct {
	t       *testing.T
	data    string
	receipt *sandbox.Receipt
}

func newEvidence(t *testing.T) *evidence {
	e := &evidence{t: t, data: t.TempDir()}
	r := sandbox.Receipt{Instance: "i1", Objects: []sandbox.Object{{Kind: "cgroup", Name: "/x", Gone: true}}}.Seal()
	e.receipt = &r
	e.record("server", sandbox.Record{Action: "sandbox.create", Sandbox: "sbone", Object: "a\x1b[31mred"},
		sandbox.Record{Action: "daemon.start"}, sandbox.Record{Action: "sandbox.receipt", Sandbox: "sbone", Digest: r.Digest()})
	return e
}

// record adds records to a log and closes it.
func (e *evidence) record(log string, records ...sandbox.Record) {
	e.t.Helper()
	l, err := audit.Open(filepath.Join(e.data, "audit", log), audit.Options{}, slog.New(slog.DiscardHandler))
	if err != nil {
		e.t.Fatal(err)
	}
	for _, r := range records {
		r.Outcome, r.Principal = sandbox.OutcomeAllowed, "uid:7"
		if _, err := l.Record(e.t.Context(), r); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *evidence) path(names ...string) string {
	return filepath.Join(append([]string{e.data, "audit"}, names...)...)
}

// app runs a command line and returns its exit code and what it printed.
func (e *evidence) app(ctx context.Context, args ...string) (int, string, string) {
	e.t.Helper()
	var out, errs bytes.Buffer
	app := &App{In: strings.NewReader(""), Out: &out, Err: &errs, Lookup: func(k string) (string, bool) {
		return map[string]string{"FIREBREAK_DATA": e.data, "FIREBREAK_SOCKET": filepath.Join(e.data, "none.sock")}[k], strings.HasPrefix(k, "FIREBREAK_")
	}, Receipt: func(_ context.Context, _ *config.Config, _ sandbox.TenantID, id sandbox.ID) (*sandbox.Receipt, error) {
		if id == "sbone" {
			return e.receipt, nil
		}
		return nil, nil
	}}
	code := app.Execute(ctx, append([]string{"audit"}, args...))
	return code, out.String(), errs.String()
}

// want runs a command line that should end with code and print something.
func (e *evidence) want(code int, says string, args ...string) string {
	e.t.Helper()
	got, out, errs := e.app(e.t.Context(), args...)
	if got != code || !strings.Contains(out+errs, says) {
		e.t.Fatalf("%q: exit code %d, stdout %q, stderr %q; want %d and %q", args, got, out, errs, code, says)
	}
	return out
}

// flip changes a byte of a file.
func (e *evidence) flip(path string, at int) {
	e.t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		b[at] ^= 1
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		e.t.Fatal(err)
	}
}

func TestAuditVerify(t *testing.T) {
	e := newEvidence(t)
	e.record("run-20260101t000000-abc", sandbox.Record{Action: "daemon.start"})
	key := strings.TrimSpace(e.want(0, "firebreak/", "key"))
	if out := e.want(0, "server: good", "verify"); strings.Count(out, ": good\n") != 2 || !strings.Contains(out, "bring one with --key") {
		t.Error(out)
	}
	e.want(0, "as given", "verify", e.path("server"), "--key", key)
	e.want(0, "as given", "verify", e.path("server"), "--key", e.path("key.pub"))
	var report struct {
		OK   bool
		Logs []struct {
			OK     bool
			Signed int
			Error  *errorOut
		}
	}
	out := e.want(0, "", "verify", "--json")
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.OK || len(report.Logs) != 2 || report.Logs[0].Signed != 3 {
		t.Errorf("%v %s", err, out)
	}
	pin := filepath.Join(t.TempDir(), "pin")
	raw, err := audit.ReadCheckpoint(e.path("server"))
	if err == nil {
		err = os.WriteFile(pin, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	e.record("server", sandbox.Record{Action: "daemon.start"})
	e.want(0, "continues the checkpoint of 3 records", "verify", e.path("server"), "--from", pin)

	e.want(2, "no public key", "verify", "--key", "nonsense")
	e.want(2, "quorum", "verify", e.path("server"), "--quorum", "2")
	e.want(2, "--from", "verify", e.path("server"), "--from", "no-such-file")
	e.want(125, "no such file", "verify", e.path("none"))
	other := newEvidence(t)
	e.want(1, "not signed by", "verify", e.path("server"), "--key", other.path("key.pub"))
	_, witness, err := audit.GenerateWitnessKey("witness.example")
	if err != nil {
		t.Fatal(err)
	}
	e.want(1, "cosigned", "verify", e.path("server"), "--witness", witness)

	seg := e.path("server", "00000000000000000001.log")
	e.flip(seg, 300)
	if out := e.want(1, "00000000000000000001.log at byte", "verify"); !strings.Contains(out, "server: BAD") || strings.Count(out, ": good\n") != 1 {
		t.Error(out)
	}
	if out := e.want(1, "", "verify", "--json"); json.Unmarshal([]byte(out), &report) != nil || report.OK || report.Logs[0].Error.Position == 0 {
		t.Error(out)
	}
	e.flip(seg, 300)
	e.want(0, "", "verify")
	// One log in the place of another.
	e.record("run-20260101t000000-abd", sandbox.Record{Action: "daemon.start"})
	if err := os.Rename(e.path("run-20260101t000000-abd"), e.path("run-20260101t000000-abe")); err != nil {
		t.Fatal(err)
	}
	e.want(1, "in the place of", "verify")
}

func TestAuditProve(t *testing.T) {
	e := newEvidence(t)
	out := e.want(0, `"payload"`, "prove", "inclusion", "2")
	var proof struct {
		Position, Size int
		Proof          []string
		Checkpoint     string
	}
	if err := json.Unmarshal([]byte(out), &proof); err != nil || proof.Position != 2 || len(proof.Proof) != 2 || proof.Checkpoint == "" {
		t.Errorf("%v %s", err, out)
	}
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte(proof.Checkpoint), 0o600); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(proof.Checkpoint, "\n")
	lines[2] = base64.StdEncoding.EncodeToString(make([]byte, 32)) // the root
	e.record("server", sandbox.Record{Action: "daemon.start"})
	if out := e.want(0, "", "prove", "consistency", pin); json.Unmarshal([]byte(out), &proof) != nil || proof.Size != 4 || len(proof.Proof) == 0 {
		t.Error(out)
	}
	e.want(0, "", "prove", "consistency", "2", "--log", "server")
	e.want(2, "", "prove", "inclusion", "none")
	e.want(2, "", "prove", "inclusion", "0")
	e.want(2, "", "prove", "consistency", "no-such-file")
	e.want(125, "covers 4 records", "prove", "inclusion", "5")
	e.want(1, "rolled back", "prove", "consistency", "5")
	if err := os.WriteFile(pin, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := e.app(t.Context(), "prove", "consistency", pin); code != 1 || !strings.Contains(errs, "does not continue") {
		t.Error(code, errs)
	}
}

func TestAuditExport(t *testing.T) {
	e := newEvidence(t)
	file := filepath.Join(t.TempDir(), "evidence.json")
	e.want(0, "", "export", "--sandbox", "sbone", "-o", file)
	key := strings.TrimSpace(e.want(0, "", "key"))
	e.want(0, "receipt: everything it had was removed", "verify", file, "--key", key)
	if out := e.want(0, "", "verify", file, "--key", key, "--json"); !strings.Contains(out, `"complete":true`) || !strings.Contains(out, `"ok":true`) {
		t.Error(out)
	}
	e.want(2, "is there already", "export", "--sandbox", "sbone", "-o", file)
	e.want(0, "", "export", "--sandbox", "sbone", "-o", file, "--force")
	e.want(125, "no log knows it", "export", "--sandbox", "sbtwo")
	e.want(2, "either", "export")
	e.want(2, "either", "export", "--sandbox", "x", "--jsonl")
	e.flip(file, 200)
	e.want(1, "", "verify", file, "--key", key)
	e.want(1, "", "verify", file, "--key", key, "--json")

	lines := strings.Split(strings.TrimSpace(e.want(0, "", "export", "--jsonl")), "\n")
	if len(lines) != 3 || strings.Contains(lines[0], "\x1b") {
		t.Errorf("%q", lines)
	}
	if out := e.want(0, "", "export", "--jsonl", "--after", "2"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"position":3`) {
		t.Error(out)
	}
	if out := e.want(0, "sandbox.receipt", "tail", "-n", "1"); strings.Count(out, "\n") != 1 || strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if code, out, errs := e.app(ctx, "tail", "-f"); code != 0 || strings.Count(out, "\n") != 3 || strings.ContainsRune(out, '\x1b') {
		t.Errorf("%d %q %q", code, out, errs)
	}
}

func TestAuditRotateAndAcknowledge(t *testing.T) {
	e := newEvidence(t)
	old := strings.TrimSpace(e.want(0, "", "key"))
	next := strings.TrimSpace(e.want(0, "", "rotate-key"))
	if old == next || next != strings.TrimSpace(e.want(0, "", "key")) {
		t.Fatal(old, next)
	}
	e.want(0, "changes of keys checked: 1", "verify", e.path("server"), "--key", old)
	e.want(0, "as given", "verify", e.path("server"), "--key", next)
	e.want(125, "", "acknowledge") // nothing is wrong
	seg := e.path("server", "00000000000000000001.log")
	fi, err := os.Stat(seg)
	if err == nil {
		err = os.Truncate(seg, fi.Size()-10)
	}
	if err != nil {
		t.Fatal(err)
	}
	e.want(1, "records are signed", "verify")
	e.want(125, "", "rotate-key")
	aside := strings.TrimSpace(e.want(0, "", "acknowledge"))
	if _, err := os.Stat(aside); err != nil {
		t.Fatal(err)
	}
	e.want(0, "server: good", "verify")
	if out := e.want(0, "", "export", "--jsonl"); !strings.Contains(out, "audit.gap") {
		t.Error(out)
	}
	e.want(1, "BAD", "verify", aside)
}

func TestAuditWitness(t *testing.T) {
	e := newEvidence(t)
	key := strings.TrimSpace(e.want(0, "", "key"))
	file := filepath.Join(t.TempDir(), "w.key")
	e.want(2, "--name makes it", "witness", "--listen", "127.0.0.1:0", "--key", file, "--log", key)
	e.want(2, "are needed", "witness")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	code, out, errs := e.app(ctx, "witness", "--listen", "127.0.0.1:0", "--key", file, "--name", "w.example", "--log", key)
	if code != 0 || !strings.HasPrefix(out, "w.example+") || !strings.Contains(errs, "witnessing on http://127.0.0.1:") {
		t.Errorf("%d %q %q", code, out, errs)
	}
}
