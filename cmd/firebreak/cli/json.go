package cli

import (
	"encoding/json"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// printJSON prints v, indented for people and on one line for programs.
func (a *App) printJSON(v any) error {
	enc := json.NewEncoder(a.Out)
	enc.SetEscapeHTML(false)
	if terminal(a.Out) {
		enc.SetIndent("", "  ")
	}
	return sandbox.Wrap("print", "", enc.Encode(v))
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
	Egress          []struct{}      `json:"egress"` // nothing has a network yet
	Receipt         *receiptOut     `json:"receipt"`
	Audit           auditOut        `json:"audit"`
	Notes           []string        `json:"notes"`
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

type receiptOut struct {
	Objects []objectOut `json:"objects"`
	Clean   bool        `json:"clean"`
	Time    time.Time   `json:"time"`
}

type objectOut struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Gone   bool   `json:"gone"`
	Detail string `json:"detail,omitempty"`
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
		Artifacts: []artifactOut{}, Egress: []struct{}{}, Notes: append([]string{}, r.GetNotes()...),
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
	o := &receiptOut{Objects: []objectOut{}, Clean: r.GetClean(), Time: r.GetTime().AsTime()}
	for _, x := range r.GetObjects() {
		o.Objects = append(o.Objects, objectOut{x.GetKind(), x.GetName(), x.GetGone(), x.GetDetail()})
	}
	return o
}
