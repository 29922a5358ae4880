package service

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// CreateRun starts a run and returns at once; the run goes on whatever happens
// to the caller. It is idempotent under an idempotency key.
func (s *Service) CreateRun(ctx context.Context, req *v1.CreateRunRequest) (*v1.Run, error) {
	const method = "RunService.CreateRun"
	who, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	r, err := s.runRequest(ctx, method, p, req)
	if err != nil {
		return nil, err
	}
	r.ID = sandbox.NewRunID()
	id, err := s.once(ctx, who, "run", req, string(r.ID), func(ctx context.Context) error {
		_, err := s.Orchestrator.CreateRun(ctx, who, r)
		return err
	}, func(context.Context, string) error { return nil }) // recovery has ended it
	if err != nil {
		return nil, err
	}
	return s.run(ctx, who, id)
}

func (s *Service) runRequest(ctx context.Context, method string, who auth.Principal, req *v1.CreateRunRequest) (r orchestrator.RunRequest, err error) {
	p := req.GetProgram()
	if p == nil {
		return r, sandbox.Errorf("run", sandbox.KindInvalid, "program is missing")
	}
	sb := req.GetSandbox()
	if sb == nil {
		sb = &v1.CreateSandboxRequest{}
	}
	if r.Sandbox, err = s.createRequest(ctx, method, who, sb); err != nil {
		return r, err
	}
	r.Exec = orchestrator.ExecRequest{Code: p.Code, Command: p.Command, Args: p.GetArgs(), Pack: p.GetLanguagePack(),
		Dir: p.GetCwd(), Env: p.GetEnv(), User: p.GetUser()}
	if r.Sandbox.Pack == "" { // so that the template is one that can run it
		r.Sandbox.Pack = p.GetLanguagePack()
	}
	if r.Exec.Timeout, err = optionalMillis("run", "program.timeout_ms", p.TimeoutMs); err != nil {
		return r, err
	}
	stdin, err := oneOf("run", "program.stdin", p.GetStdin(), p.GetStdinData())
	if err != nil {
		return r, err
	}
	r.Stdin = []byte(stdin)
	for _, in := range req.GetInputs() {
		content, err := oneOf("run", "inputs.text", in.GetText(), in.GetData())
		if err != nil {
			return r, err
		}
		mode, err := parseMode(in.GetMode())
		if err != nil {
			return r, err
		}
		if err := needs("run", "inputs.path", in.GetPath()); err != nil {
			return r, err
		}
		r.Inputs = append(r.Inputs, orchestrator.Input{Path: in.GetPath(), Data: []byte(content), Mode: mode})
	}
	r.Artifacts, r.Await = req.GetArtifacts(), req.GetAwaitInputs()
	r.Spec, err = runSpec(req)
	return r, err
}

// runSpec is the request as its record keeps it: without what may be secret or
// large.
func runSpec(req *v1.CreateRunRequest) (json.RawMessage, error) {
	kept := proto.CloneOf(req)
	if kept.Sandbox != nil {
		blank(kept.Sandbox.Env)
		if n := kept.Sandbox.Network; n != nil { // the sandbox's record has the policy
			blank(n.Documents)
			n.Document = head(n.Document)
		}
	}
	blank(kept.Program.Env)
	kept.Program.Stdin, kept.Program.StdinData = "", nil
	if kept.Program.Code != nil {
		kept.Program.Code = proto.String(head(kept.Program.GetCode()))
	}
	for _, in := range kept.Inputs {
		in.Text, in.Data = "", nil
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(kept)
	return b, sandbox.Wrap("run", "", err)
}

// head is as much of a text as a record keeps.
func head(s string) string {
	if len(s) > 4<<10 {
		s = strings.ToValidUTF8(s[:4<<10], "")
	}
	return s
}

func blank(env map[string]string) {
	for k := range env {
		env[k] = ""
	}
}

// run returns the run as its caller sees it.
func (s *Service) run(ctx context.Context, who orchestrator.Caller, id string) (*v1.Run, error) {
	r, err := s.Orchestrator.GetRun(ctx, who.Tenant, id, 0)
	if err != nil {
		return nil, err
	}
	return s.toRun(r)
}

// StartRun executes a run that awaits its inputs.
func (s *Service) StartRun(ctx context.Context, req *v1.StartRunRequest) (*v1.Run, error) {
	who, _, err := s.allow(ctx, "RunService.StartRun")
	if err != nil {
		return nil, err
	}
	r, err := s.Orchestrator.StartRun(ctx, who, req.GetId())
	if err != nil {
		return nil, err
	}
	return s.toRun(r)
}

// GetRun returns a run, waiting for its end up to wait_ms.
func (s *Service) GetRun(ctx context.Context, req *v1.GetRunRequest) (*v1.Run, error) {
	who, _, err := s.allow(ctx, "RunService.GetRun")
	if err != nil {
		return nil, err
	}
	wait, err := millis("run", "wait_ms", req.GetWaitMs())
	if err != nil {
		return nil, err
	}
	r, err := s.Orchestrator.GetRun(ctx, who.Tenant, req.GetId(), wait)
	if err != nil {
		return nil, err
	}
	return s.toRun(r)
}

// CancelRun ends a run early and returns it ended.
func (s *Service) CancelRun(ctx context.Context, req *v1.CancelRunRequest) (*v1.Run, error) {
	who, _, err := s.allow(ctx, "RunService.CancelRun")
	if err != nil {
		return nil, err
	}
	r, err := s.Orchestrator.CancelRun(ctx, who, req.GetId())
	if err != nil {
		return nil, err
	}
	return s.toRun(r)
}

// OpenArtifact opens a collected artifact of a run. path is as Run.artifacts
// names it. The reader also implements io.Seeker.
func (s *Service) OpenArtifact(ctx context.Context, runID, path string) (io.ReadCloser, *v1.Artifact, error) {
	who, _, err := s.allow(ctx, "RunService.ReadArtifact")
	if err != nil {
		return nil, nil, err
	}
	f, a, err := s.Orchestrator.OpenArtifact(ctx, who, runID, path)
	if err != nil {
		return nil, nil, err
	}
	return f, &v1.Artifact{Path: a.Path, Size: a.Size, Sha256: a.SHA256}, nil
}

func (s *Service) toRun(r orchestrator.Run) (*v1.Run, error) {
	stdout, stderr, err := s.Orchestrator.RunOutput(r.ID)
	if err != nil {
		return nil, err
	}
	rep := r.Report
	out := &v1.Run{
		Id: string(r.ID), SandboxId: string(r.Sandbox), State: string(rep.Phase), Backend: rep.Backend, TemplateDigest: rep.TemplateDigest,
		StdoutTruncated: rep.StdoutTruncated, StderrTruncated: rep.StderrTruncated,
		ExitCode: int32(r.ExitCode), Reason: string(r.Reason), Detail: text(r.Detail), ResultJson: string(r.Result),
		Usage: toUsage(rep.Usage), Receipt: toReceipt(rep.Receipt), Limits: toLimits(rep.Limits, rep.Explicit, rep.Enforced),
		TimingsMs: &v1.RunTimings{Create: ms(r.Timings["create"]), Execute: ms(r.Timings["execute"]), Destroy: ms(r.Timings["destroy"])},
		CreatedAt: stamp(r.Created), EndedAt: stamp(r.Ended), Notes: rep.Notes,
		Audit: &v1.AuditRange{First: int64(rep.First), Last: int64(rep.Last)},
	}
	out.Egress, out.EgressMore = toFlows(rep.Egress)
	if rep.Backend != "" {
		out.Isolation = rep.Isolation.String()
	}
	out.Stdout, out.StdoutData = both(stdout)
	out.Stderr, out.StderrData = both(stderr)
	for _, a := range rep.Artifacts {
		out.Artifacts = append(out.Artifacts, &v1.Artifact{Path: a.Path, Size: a.Size, Sha256: a.SHA256, Error: text(a.Error)})
	}
	if rep.Error != nil {
		out.Error = &v1.RunError{Kind: string(rep.Error.Kind), Message: text(rep.Error.Message), Hint: text(rep.Error.Hint)}
	}
	return out, nil
}

// both returns output as text and, only where that loses something, as bytes.
func both(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return text(string(b)), b
}
