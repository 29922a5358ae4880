package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// printJSON prints v, indented for people and on one line for programs.
func (a *App) printJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if terminal(a.Out) {
		enc.SetIndent("", "  ")
	}
	err := enc.Encode(v)
	if err == nil {
		err = a.showJSON(b.Bytes())
	}
	return sandbox.Wrap("print", "", err)
}

// showJSON prints a document that ends with a line: to a program as it is, to a
// terminal with escapes for what that would obey. encoding/json escapes C0 only.
func (a *App) showJSON(doc []byte) error {
	if terminal(a.Out) {
		doc = harmless(doc)
	}
	_, err := a.Out.Write(doc)
	return err
}

// harmless is the same JSON without a character that a terminal obeys. Outside
// strings there is none but the ends of lines.
func harmless(doc []byte) []byte {
	out := make([]byte, 0, len(doc))
	for _, r := range string(doc) {
		if r != '\n' && guest.Obeyed(r) { // all of them are below U+10000
			out = fmt.Appendf(out, `\u%04x`, r)
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return out
}

// The types below are the object of `run --json`. Every field is always there.

type runOut struct {
	RunID           string          `json:"run_id"`
	SandboxID       string          `json:"sandbox_id"`
	Backend         string          `json:"backend"`
	Isolation       string          `json:"isolation"`
	TemplateDigest  string          `json:"template_digest"`
	Stdout          string          `json:"stdout"`
	Stderr          string          `json:"stderr"`
	StdoutData      []byte          `json:"stdout_data,omitempty"` // base64, only where not UTF-8
	StderrData      []byte          `json:"stderr_data,omitempty"`
	StdoutTruncated bool            `json:"stdout_truncated"`
	StderrTruncated bool            `json:"stderr_truncated"`
	ExitCode        int             `json:"exit_code"`
	Reason          string          `json:"reason"`
	Detail          string          `json:"detail"`
	Result          json.RawMessage `json:"result"`
	Artifacts       []artifactOut   `json:"artifacts"`
	Usage           usageOut        `json:"usage"`
	Limits          map[string]any  `json:"limits"`
	Timings         timingsOut      `json:"timings_ms"`
	Egress          []flowOut       `json:"egress"`
	EgressMore      int64           `json:"egress_more"`
	Receipt         *receiptOut     `json:"receipt"`
	Audit           auditOut        `json:"audit"`
	Source          *sourceOut      `json:"source"` // null without --git
	Notes           []string        `json:"notes"`
}

// sourceOut is the commit that files came from.
type sourceOut struct {
	Repo    string `json:"repo"`
	Ref     string `json:"ref"`
	Commit  string `json:"commit"`
	Subpath string `json:"subpath"`
}

type artifactOut struct {
	Path    string `json:"path"`
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	SavedTo string `json:"saved_to,omitempty"`
	Error   string `json:"error,omitempty"`
}

type usageOut struct {
	CPU        float64 `json:"cpu_ms"`
	Memory     int64   `json:"memory_bytes"`
	MemoryPeak int64   `json:"memory_peak_bytes"`
	Overhead   int64   `json:"overhead_bytes"`
	Disk       int64   `json:"disk_bytes"`
	PIDs       int64   `json:"pids"`
	OOMKills   int64   `json:"oom_kills"`
}

type timingsOut struct {
	Create  float64 `json:"create"`
	Execute float64 `json:"execute"`
	Destroy float64 `json:"destroy"`
}

// receiptOut has the members of the API's receipt, so that it has the same
// digest.
type receiptOut struct {
	Objects  []objectOut `json:"objects"`
	Clean    bool        `json:"clean"`
	Time     *time.Time  `json:"time,omitempty"`
	Instance string      `json:"instance"`
}

type objectOut struct {
	Kind    string     `json:"kind"`
	Name    string     `json:"name"`
	Gone    bool       `json:"gone"`
	Detail  string     `json:"detail"`
	Check   string     `json:"check"`
	Checked *time.Time `json:"checked_at,omitempty"`
}

func timeJSON(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}

type auditOut struct {
	First int64 `json:"first"`
	Last  int64 `json:"last"`
}

// runJSON converts a run. saved is where artifacts went, by path.
func runJSON(r *v1.Run, saved map[string]string) runOut {
	o := runOut{
		RunID: r.GetId(), SandboxID: r.GetSandboxId(), Backend: r.GetBackend(), Isolation: r.GetIsolation(),
		TemplateDigest: r.GetTemplateDigest(),
		Stdout:         r.GetStdout(), Stderr: r.GetStderr(), StdoutData: r.GetStdoutData(), StderrData: r.GetStderrData(),
		StdoutTruncated: r.GetStdoutTruncated(), StderrTruncated: r.GetStderrTruncated(),
		ExitCode: exitCode(r.GetReason(), int(r.GetExitCode())), Reason: r.GetReason(), Detail: r.GetDetail(),
		Artifacts: []artifactOut{}, Egress: flowsJSON(r.GetEgress()), EgressMore: r.GetEgressMore(), Notes: append([]string{}, r.GetNotes()...),
		Usage: usageJSON(r.GetUsage()), Limits: limitsJSON(r.GetLimits()), Receipt: receiptJSON(r.GetReceipt()),
		Timings: timingsOut{r.GetTimingsMs().GetCreate(), r.GetTimingsMs().GetExecute(), r.GetTimingsMs().GetDestroy()},
		Audit:   auditOut{r.GetAudit().GetFirst(), r.GetAudit().GetLast()},
	}
	if j := json.RawMessage(r.GetResultJson()); json.Valid(j) { // hostile code wrote it
		o.Result = j
	}
	for _, a := range r.GetArtifacts() {
		o.Artifacts = append(o.Artifacts, artifactOut{a.GetPath(), a.GetSize(), a.GetSha256(), saved[a.GetPath()], a.GetError()})
	}
	return o
}

func usageJSON(u *v1.Usage) usageOut {
	return usageOut{u.GetCpuMs(), u.GetMemoryBytes(), u.GetMemoryPeakBytes(), u.GetOverheadBytes(), u.GetDiskBytes(), u.GetPids(), u.GetOomKills()}
}

func limitsJSON(l *v1.EffectiveLimits) map[string]any {
	type limit struct {
		Value    float64 `json:"value"`
		Enforced bool    `json:"enforced"`
		Explicit bool    `json:"explicit"`
	}
	m := map[string]any{}
	for name, e := range map[string]*v1.EffectiveLimit{
		"memory_bytes": l.GetMemoryBytes(), "cpus": l.GetCpus(), "pids": l.GetPids(), "disk_bytes": l.GetDiskBytes(),
	} {
		if e != nil {
			m[name] = limit{e.GetValue(), e.GetEnforced(), e.GetExplicit()}
		}
	}
	return m
}

func receiptJSON(r *v1.Receipt) *receiptOut {
	if r == nil {
		return nil
	}
	o := &receiptOut{Objects: []objectOut{}, Clean: r.GetClean(), Time: timeJSON(r.GetTime()), Instance: r.GetInstance()}
	for _, x := range r.GetObjects() {
		o.Objects = append(o.Objects, objectOut{x.GetKind(), x.GetName(), x.GetGone(), x.GetDetail(), x.GetCheck(), timeJSON(x.GetCheckedAt())})
	}
	return o
}

// fromReceipt is a receipt as the API shows it; nil for none.
func fromReceipt(r *v1.Receipt) *sandbox.Receipt {
	if r == nil {
		return nil
	}
	out := &sandbox.Receipt{Instance: sandbox.InstanceID(r.GetInstance()), Clean: r.GetClean(), Time: r.GetTime().AsTime()}
	for _, o := range r.GetObjects() {
		object := sandbox.Object{Kind: o.GetKind(), Name: o.GetName(), Gone: o.GetGone(), Check: o.GetCheck(), Detail: o.GetDetail()}
		if t := o.GetCheckedAt(); t != nil {
			object.Checked = t.AsTime()
		}
		out.Objects = append(out.Objects, object)
	}
	return out
}
