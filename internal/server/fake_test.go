package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/orchestrator"
	"github.com/firebreak-dev/firebreak/internal/service"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testID = "sbaaaaaaaaaaaaaaaaaa"

// fake is an API with simple, real behaviour: files are kept, events replayed.
// A test changes a method by setting its hook.
type fake struct {
	mu       sync.Mutex
	files    map[string][]byte
	reqs     []proto.Message
	refusals []service.Refusal

	get    func(context.Context, *v1.GetSandboxRequest) (*v1.Sandbox, error)
	create func(context.Context, *v1.CreateSandboxRequest) (*v1.Sandbox, error)
	exec   func(context.Context, *v1.ExecRequest, func(*v1.ExecEvent) error) error
	watch  func(context.Context, *v1.WatchEventsRequest, func(*v1.Event) error) error
	open   func(offset, length int64) (io.ReadCloser, *v1.FileInfo, error)
	write  func(io.Reader) error
}

func (f *fake) saw(m proto.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reqs = append(f.reqs, proto.Clone(m))
}

func (f *fake) last() proto.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.reqs) == 0 {
		return nil
	}
	return f.reqs[len(f.reqs)-1]
}

func fullSandbox() *v1.Sandbox {
	at := timestamppb.New(time.Date(2026, 3, 4, 5, 6, 7, 890_000_000, time.UTC))
	return &v1.Sandbox{
		Id: testID, Name: "w\"x", State: "ended", Reason: "memory", Detail: "limit 64 MiB", Backend: "gvisor",
		Isolation: "user-kernel", Template: "host", TemplateDigest: "sha256:00", Metadata: map[string]string{"b": "2", "a": "ü\n"},
		Limits:    &v1.EffectiveLimits{MemoryBytes: &v1.EffectiveLimit{Value: 1 << 26, Enforced: true, Explicit: true}},
		TimeoutMs: 1<<53 + 1, CreatedAt: at, EndedAt: timestamppb.New(time.Unix(0, 0)),
		Usage:    &v1.Usage{CpuMs: 12.5, MemoryPeakBytes: 1 << 40},
		Receipt:  &v1.Receipt{Objects: []*v1.ReceiptObject{{Kind: "mount", Name: "/x", Gone: true}}, Clean: true, Time: at},
		CreateMs: 0.0000001,
	}
}

func (f *fake) CreateSandbox(ctx context.Context, r *v1.CreateSandboxRequest) (*v1.Sandbox, error) {
	f.saw(r)
	if f.create != nil {
		return f.create(ctx, r)
	}
	return &v1.Sandbox{Id: testID, State: "running", Name: r.Name}, nil
}

// DialPort is an echo.
func (f *fake) DialPort(_ context.Context, id string, port int) (net.Conn, error) {
	if port != 7 {
		return nil, sandbox.Errorf("port", sandbox.KindNotFound, "nothing listens on port %d in the sandbox", port).WithID(id)
	}
	ours, theirs := net.Pipe()
	go func() { _, _ = io.Copy(theirs, theirs); theirs.Close() }()
	return ours, nil
}

func (f *fake) GetMetrics(_ context.Context, r *v1.GetMetricsRequest) (*v1.SandboxMetrics, error) {
	return &v1.SandboxMetrics{IntervalMs: 5000, Samples: []*v1.MetricSample{{CpuMs: 1}}}, nil
}

func (f *fake) GetSandbox(ctx context.Context, r *v1.GetSandboxRequest) (*v1.Sandbox, error) {
	if f.get != nil {
		return f.get(ctx, r)
	}
	if r.Id != testID {
		return nil, sandbox.Errorf("get", sandbox.KindNotFound, "no such sandbox").WithID(r.Id).WithHint("`firebreak ls` lists them")
	}
	return fullSandbox(), nil
}

func (f *fake) ListSandboxes(_ context.Context, r *v1.ListSandboxesRequest) (*v1.ListSandboxesResponse, error) {
	f.saw(r)
	return &v1.ListSandboxesResponse{}, nil
}

func (f *fake) DestroySandbox(_ context.Context, r *v1.DestroySandboxRequest) (*v1.DestroySandboxResponse, error) {
	f.saw(r)
	return &v1.DestroySandboxResponse{Id: r.Id, State: "ended", Receipt: &v1.Receipt{Clean: true}}, nil
}

func (f *fake) PauseSandbox(_ context.Context, r *v1.PauseSandboxRequest) (*v1.Sandbox, error) {
	f.saw(r)
	return &v1.Sandbox{Id: r.Id, State: "paused"}, nil
}

func (f *fake) ResumeSandbox(_ context.Context, r *v1.ResumeSandboxRequest) (*v1.Sandbox, error) {
	f.saw(r)
	return &v1.Sandbox{Id: r.Id, State: "running"}, nil
}

func (f *fake) ForkSandbox(_ context.Context, r *v1.ForkSandboxRequest) (*v1.ForkSandboxResponse, error) {
	f.saw(r)
	return &v1.ForkSandboxResponse{}, nil
}

func (f *fake) CreateSnapshot(_ context.Context, r *v1.CreateSnapshotRequest) (*v1.Snapshot, error) {
	f.saw(r)
	return &v1.Snapshot{Id: "snaaaaaaaaaaaaaaaaaa", SandboxId: r.Id, Name: r.Name}, nil
}

func (f *fake) ListSnapshots(_ context.Context, r *v1.ListSnapshotsRequest) (*v1.ListSnapshotsResponse, error) {
	f.saw(r)
	return &v1.ListSnapshotsResponse{}, nil
}

func (f *fake) RemoveSnapshot(_ context.Context, r *v1.RemoveSnapshotRequest) (*v1.RemoveSnapshotResponse, error) {
	f.saw(r)
	return &v1.RemoveSnapshotResponse{}, nil
}

func (f *fake) SetTimeout(_ context.Context, r *v1.SetTimeoutRequest) (*v1.Sandbox, error) {
	f.saw(r)
	return &v1.Sandbox{Id: r.Id}, nil
}

func out(s string) *v1.ExecEvent {
	return &v1.ExecEvent{Event: &v1.ExecEvent_Stdout{Stdout: &v1.Output{Text: s}}}
}

func exit(e *v1.ProcessExit) *v1.ExecEvent { return &v1.ExecEvent{Event: &v1.ExecEvent_Exit{Exit: e}} }

func (f *fake) Exec(ctx context.Context, r *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
	f.saw(r)
	if f.exec != nil {
		return f.exec(ctx, r, send)
	}
	return sendAll(send,
		&v1.ExecEvent{Event: &v1.ExecEvent_Started{Started: &v1.ProcessStarted{Pid: 7}}, Id: 4},
		out("42\n"), exit(&v1.ProcessExit{Reason: "done", DurationMs: 13, ResultJson: `{"ok": 1}`}))
}

func sendAll[T any](send func(T) error, items ...T) error {
	for _, i := range items {
		if err := send(i); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) WatchEvents(ctx context.Context, r *v1.WatchEventsRequest, send func(*v1.Event) error) error {
	f.saw(r)
	if f.watch != nil {
		return f.watch(ctx, r, send)
	}
	for id := r.AfterId + 1; id <= 3; id++ {
		if err := send(&v1.Event{Id: id, Type: "stdout", Text: "line\n"}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) WatchRun(ctx context.Context, r *v1.WatchRunRequest, send func(*v1.Event) error) error {
	return f.WatchEvents(ctx, &v1.WatchEventsRequest{Id: r.Id, AfterId: r.AfterId}, send)
}

func (f *fake) StreamProcess(ctx context.Context, r *v1.StreamProcessRequest, send func(*v1.Event) error) error {
	return f.WatchEvents(ctx, &v1.WatchEventsRequest{Id: r.Id, AfterId: r.AfterId}, send)
}

func (f *fake) CreateContext(context.Context, *v1.CreateContextRequest) (*v1.Context, error) {
	return &v1.Context{Id: "cx1", State: "ready"}, nil
}
func (f *fake) ListContexts(context.Context, *v1.ListContextsRequest) (*v1.ListContextsResponse, error) {
	return &v1.ListContextsResponse{Contexts: []*v1.Context{{Id: "cx1"}}}, nil
}
func (f *fake) GetContext(context.Context, *v1.GetContextRequest) (*v1.Context, error) {
	return &v1.Context{Id: "cx1"}, nil
}
func (f *fake) DeleteContext(context.Context, *v1.DeleteContextRequest) (*v1.Context, error) {
	return &v1.Context{}, nil
}
func (f *fake) InterruptContext(context.Context, *v1.InterruptContextRequest) (*v1.Context, error) {
	return &v1.Context{}, nil
}
func (f *fake) RestartContext(context.Context, *v1.RestartContextRequest) (*v1.Context, error) {
	return &v1.Context{}, nil
}
func (f *fake) Eval(_ context.Context, _ *v1.EvalRequest, send func(*v1.EvalEvent) error) error {
	for _, e := range []*v1.EvalEvent{
		{Event: &v1.EvalEvent_Stdout{Stdout: &v1.Output{Text: "out"}}},
		{Event: &v1.EvalEvent_Result{Result: &v1.EvalResult{IsMainResult: true, Text: "42", JsonJson: `{"a": 1}`}}},
		{Event: &v1.EvalEvent_End{End: &v1.TurnEnd{Reason: "done", ExecutionCount: 1}}},
	} {
		if err := send(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) StartProcess(_ context.Context, r *v1.StartProcessRequest) (*v1.Process, error) {
	f.saw(r)
	return &v1.Process{Pid: 7, State: "running"}, nil
}
func (f *fake) ListProcesses(context.Context, *v1.ListProcessesRequest) (*v1.ListProcessesResponse, error) {
	return &v1.ListProcessesResponse{Processes: []*v1.Process{{Pid: 7, State: "running"}}}, nil
}
func (f *fake) GetProcess(_ context.Context, r *v1.GetProcessRequest) (*v1.Process, error) {
	f.saw(r)
	return &v1.Process{Pid: 7, State: "ended", Exit: &v1.ProcessExit{ExitCode: 3}}, nil
}
func (f *fake) KillProcess(context.Context, *v1.KillProcessRequest) (*v1.Process, error) {
	return &v1.Process{}, nil
}
func (f *fake) SignalProcess(context.Context, *v1.SignalProcessRequest) (*v1.Process, error) {
	return &v1.Process{}, nil
}
func (f *fake) ResizeProcess(context.Context, *v1.ResizeProcessRequest) (*v1.Process, error) {
	return &v1.Process{}, nil
}
func (f *fake) WriteStdin(context.Context, *v1.WriteStdinRequest) (*v1.Process, error) {
	return &v1.Process{}, nil
}

func (f *fake) BuildTemplate(_ context.Context, r *v1.BuildTemplateRequest, send func(*v1.BuildTemplateEvent) error) error {
	return sendAll(send,
		&v1.BuildTemplateEvent{Event: &v1.BuildTemplateEvent_Progress{Progress: &v1.BuildProgress{Stage: "fetch", Percent: 50}}},
		&v1.BuildTemplateEvent{Event: &v1.BuildTemplateEvent_Template{Template: &v1.Template{Name: r.Name, Digest: "sha256:11"}}})
}

func (f *fake) file(path string) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.files[path]
	return b, ok
}

func (f *fake) info(path string, b []byte) *v1.FileInfo {
	return &v1.FileInfo{Name: filepath.Base(path), Path: path, Type: "file", Size: int64(len(b)), Mode: "644"}
}

func (f *fake) StatFile(_ context.Context, r *v1.StatFileRequest) (*v1.FileInfo, error) {
	b, ok := f.file(r.Path)
	if !ok {
		return nil, sandbox.Errorf("stat", sandbox.KindNotFound, "no such file %s", r.Path)
	}
	return f.info(r.Path, b), nil
}

func (f *fake) ListFiles(_ context.Context, r *v1.ListFilesRequest) (*v1.ListFilesResponse, error) {
	f.saw(r)
	return &v1.ListFilesResponse{}, nil
}

func (f *fake) WatchFiles(ctx context.Context, r *v1.WatchFilesRequest, send func(*v1.FileEvent) error) error {
	f.saw(r)
	return sendAll(send, &v1.FileEvent{Type: "start"}, &v1.FileEvent{Type: "create", Path: "two\nlines"}, &v1.FileEvent{Type: "overflow"})
}

func (f *fake) SignFile(_ context.Context, r *v1.SignFileRequest) (*v1.SignedURL, error) {
	f.saw(r)
	return &v1.SignedURL{}, nil
}

func (f *fake) FileURLHolder(context.Context, string, string, string) (auth.Principal, string, error) {
	return auth.Principal{}, "", sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "not by the fake")
}

func (f *fake) CreateWatcher(_ context.Context, r *v1.CreateWatcherRequest) (*v1.Watcher, error) {
	f.saw(r)
	return &v1.Watcher{Watcher: "wa1"}, nil
}

func (f *fake) GetWatcherEvents(context.Context, *v1.GetWatcherEventsRequest) (*v1.GetWatcherEventsResponse, error) {
	return &v1.GetWatcherEventsResponse{}, nil
}

func (f *fake) RemoveWatcher(_ context.Context, r *v1.RemoveWatcherRequest) (*v1.RemoveWatcherResponse, error) {
	f.saw(r)
	return &v1.RemoveWatcherResponse{}, nil
}

func (f *fake) MakeDirectory(_ context.Context, r *v1.MakeDirectoryRequest) (*v1.FileInfo, error) {
	return &v1.FileInfo{Path: r.Path, Type: "directory"}, nil
}

func (f *fake) MoveFile(_ context.Context, r *v1.MoveFileRequest) (*v1.FileInfo, error) {
	return &v1.FileInfo{Path: r.To}, nil
}

func (f *fake) RemoveFile(_ context.Context, r *v1.RemoveFileRequest) (*v1.RemoveFileResponse, error) {
	f.saw(r)
	return &v1.RemoveFileResponse{}, nil
}

func (f *fake) GetCheckpoint(context.Context, *v1.GetCheckpointRequest) (*v1.Checkpoint, error) {
	return &v1.Checkpoint{Note: "o\n1\nr\n\n— s\n"}, nil
}
func (f *fake) ListEntries(context.Context, *v1.ListEntriesRequest) (*v1.ListEntriesResponse, error) {
	return &v1.ListEntriesResponse{}, nil
}
func (f *fake) WatchEntries(context.Context, *v1.WatchEntriesRequest, func(*v1.AuditEntry) error) error {
	return nil
}
func (f *fake) ExportEvidence(context.Context, *v1.ExportEvidenceRequest) (*v1.ExportEvidenceResponse, error) {
	return &v1.ExportEvidenceResponse{}, nil
}
func (f *fake) GetProof(context.Context, *v1.GetProofRequest) (*v1.Proof, error) {
	return &v1.Proof{}, nil
}

func (f *fake) Refused(_ context.Context, r service.Refusal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refusals = append(f.refusals, r)
}

type nopSeeker struct{ *bytes.Reader }

func (nopSeeker) Close() error { return nil }

func (f *fake) OpenFile(_ context.Context, id, path, user string, offset, length int64) (io.ReadCloser, *v1.FileInfo, error) {
	if f.open != nil {
		return f.open(offset, length)
	}
	b, ok := f.file(path)
	if !ok {
		return nil, nil, sandbox.Errorf("read file", sandbox.KindNotFound, "no such file %s", path).WithID(id)
	}
	info := f.info(path, b)
	b = b[min(offset, int64(len(b))):]
	if length > 0 {
		b = b[:min(length, int64(len(b)))]
	}
	return io.NopCloser(bytes.NewReader(b)), info, nil
}

func (f *fake) ReadArchive(_ context.Context, req *v1.ReadArchiveRequest, w io.Writer, left func(string) error) error {
	b, ok := f.file(req.GetPath())
	if !ok {
		return sandbox.Errorf("list", sandbox.KindNotFound, "no such directory %s", req.GetPath()).WithID(req.GetId())
	}
	if err := left("odd: it is a pipe"); err != nil {
		return err
	}
	_, err := w.Write(b)
	if err == nil && req.GetUser() == "broken" {
		err = sandbox.Errorf("pack", sandbox.KindConflict, "it changed while it was read")
	}
	return err
}

func (f *fake) WriteArchive(_ context.Context, id, path, user string, r io.Reader) (*v1.WrittenArchive, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[path] = b
	return &v1.WrittenArchive{Files: 1, Bytes: int64(len(b))}, nil
}

func (f *fake) WriteFile(_ context.Context, req *v1.WriteFileRequest, r io.Reader) (*v1.FileInfo, error) {
	if f.write != nil {
		return &v1.FileInfo{}, f.write(r)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[req.Path] = b
	info := f.info(req.Path, b)
	info.Metadata = req.Metadata
	return info, nil
}

func (f *fake) OpenArtifact(_ context.Context, run, path string) (io.ReadCloser, *v1.Artifact, error) {
	b, ok := f.file(path)
	if !ok {
		return nil, nil, sandbox.Errorf("read artifact", sandbox.KindNotFound, "no artifact %s", path).WithID(run)
	}
	return nopSeeker{bytes.NewReader(b)}, &v1.Artifact{Path: path, Size: int64(len(b)), Sha256: "ab"}, nil
}

func (f *fake) CreateRun(_ context.Context, r *v1.CreateRunRequest) (*v1.Run, error) {
	f.saw(r)
	return &v1.Run{Id: "rn1", State: "running"}, nil
}
func (f *fake) StartRun(context.Context, *v1.StartRunRequest) (*v1.Run, error) { return &v1.Run{}, nil }
func (f *fake) GetRun(context.Context, *v1.GetRunRequest) (*v1.Run, error) {
	return &v1.Run{Id: "rn1", State: "ended", ResultJson: `[1, {"a": "b"}]`, ExitCode: 3, Stdout: "hi"}, nil
}
func (f *fake) CancelRun(context.Context, *v1.CancelRunRequest) (*v1.Run, error) {
	return &v1.Run{}, nil
}
func (f *fake) ListTemplates(context.Context, *v1.ListTemplatesRequest) (*v1.ListTemplatesResponse, error) {
	return &v1.ListTemplatesResponse{}, nil
}
func (f *fake) CollectTemplates(context.Context, *v1.CollectTemplatesRequest) (*v1.CollectTemplatesResponse, error) {
	return &v1.CollectTemplatesResponse{Templates: []string{"sha256:22"}}, nil
}

func (f *fake) UploadArchive(_ context.Context, r io.Reader) (*v1.UploadArchiveResponse, error) {
	n, err := io.Copy(io.Discard, r)
	return &v1.UploadArchiveResponse{Id: "up1", SizeBytes: n}, err
}

func (f *fake) RemoveTemplate(context.Context, *v1.RemoveTemplateRequest) (*v1.RemoveTemplateResponse, error) {
	return &v1.RemoveTemplateResponse{}, nil
}
func (f *fake) ListBackends(context.Context, *v1.ListBackendsRequest) (*v1.ListBackendsResponse, error) {
	return &v1.ListBackendsResponse{}, nil
}
func (f *fake) UpdateNetwork(_ context.Context, r *v1.UpdateNetworkRequest) (*v1.UpdateNetworkResponse, error) {
	return &v1.UpdateNetworkResponse{Network: &v1.SandboxNetwork{Generation: 2, Mode: r.GetId()}}, nil
}
func (f *fake) ListPolicies(context.Context, *v1.ListPoliciesRequest) (*v1.ListPoliciesResponse, error) {
	return &v1.ListPoliciesResponse{}, nil
}
func (f *fake) GetPolicy(_ context.Context, r *v1.GetPolicyRequest) (*v1.Policy, error) {
	return &v1.Policy{Name: r.GetName()}, nil
}
func (f *fake) SetPolicy(_ context.Context, r *v1.SetPolicyRequest) (*v1.Policy, error) {
	return &v1.Policy{Name: r.GetName(), Text: r.GetText()}, nil
}
func (f *fake) RemovePolicy(context.Context, *v1.RemovePolicyRequest) (*v1.RemovePolicyResponse, error) {
	return &v1.RemovePolicyResponse{}, nil
}
func (f *fake) SetSecret(_ context.Context, r *v1.SetSecretRequest) (*v1.Secret, error) {
	return &v1.Secret{Name: r.GetName(), Reference: r.GetReference()}, nil
}
func (f *fake) ListSecrets(context.Context, *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error) {
	return &v1.ListSecretsResponse{}, nil
}
func (f *fake) RemoveSecret(context.Context, *v1.RemoveSecretRequest) (*v1.RemoveSecretResponse, error) {
	return &v1.RemoveSecretResponse{}, nil
}
func (f *fake) AddBinding(_ context.Context, r *v1.AddBindingRequest) (*v1.Binding, error) {
	return &v1.Binding{Name: r.GetName(), Host: r.GetHost()}, nil
}
func (f *fake) ListBindings(context.Context, *v1.ListBindingsRequest) (*v1.ListBindingsResponse, error) {
	return &v1.ListBindingsResponse{}, nil
}
func (f *fake) GetBinding(_ context.Context, r *v1.GetBindingRequest) (*v1.Binding, error) {
	return &v1.Binding{Name: r.GetName()}, nil
}
func (f *fake) RemoveBinding(context.Context, *v1.RemoveBindingRequest) (*v1.RemoveBindingResponse, error) {
	return &v1.RemoveBindingResponse{}, nil
}
func (f *fake) GetPool(context.Context, *v1.GetPoolRequest) (*v1.GetPoolResponse, error) {
	return &v1.GetPoolResponse{Enabled: true}, nil
}

func (f *fake) GetQuota(context.Context, *v1.GetQuotaRequest) (*v1.GetQuotaResponse, error) {
	return &v1.GetQuotaResponse{}, nil
}
func (f *fake) GetVersion(context.Context, *v1.GetVersionRequest) (*v1.GetVersionResponse, error) {
	return &v1.GetVersionResponse{Version: "0"}, nil
}
func (f *fake) CreateKey(context.Context, *v1.CreateKeyRequest) (*v1.CreateKeyResponse, error) {
	return &v1.CreateKeyResponse{}, nil
}
func (f *fake) ListKeys(context.Context, *v1.ListKeysRequest) (*v1.ListKeysResponse, error) {
	return &v1.ListKeysResponse{}, nil
}
func (f *fake) DeleteKey(context.Context, *v1.DeleteKeyRequest) (*v1.DeleteKeyResponse, error) {
	return &v1.DeleteKeyResponse{}, nil
}

// keys is an Authenticator: a token is the one scope it has, "all" an owner.
type keys struct{}

func (keys) Bearer(_ context.Context, token string) (auth.Principal, error) {
	p := auth.Principal{Tenant: sandbox.DefaultTenant, ID: "key:" + token, Role: auth.Owner}
	switch {
	case token == "all":
	case knownScopes[auth.Scope(token)]:
		p.Scopes = []auth.Scope{auth.Scope(token)}
	default:
		return auth.Principal{}, sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "unknown API key")
	}
	return p, nil
}

func (keys) Peer(uid int) (auth.Principal, error) {
	if uid != os.Getuid() {
		return auth.Principal{}, errors.New("not us")
	}
	return auth.Principal{Tenant: sandbox.DefaultTenant, ID: "uid", Role: auth.Owner}, nil
}

// world is a Server that listens, and clients for it.
type world struct {
	t      testing.TB
	fake   *fake
	srv    *Server
	addr   string // host:port
	tcp    *Listener
	socket string
	log    *logBuffer
	stop   context.CancelFunc
	ended  chan error
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t testing.TB, f *fake) *world {
	t.Helper()
	if f.files == nil {
		f.files = map[string][]byte{}
	}
	w := &world{t: t, fake: f, log: &logBuffer{}, ended: make(chan error, 1)}
	level := slog.LevelDebug
	if _, isBench := t.(*testing.B); isBench {
		level = slog.LevelInfo
	}
	srv, err := New(Config{
		API: f, Auth: keys{}, Log: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: level})),
		Hosts: []string{"api.example"}, Drain: 300 * time.Millisecond,
		States: func(context.Context) (map[string]int, error) { return map[string]int{"running": 2}, nil },
		Egress: func() orchestrator.EgressStats {
			return orchestrator.EgressStats{Flows: map[[2]string]int64{{"connect", "deny"}: 7}, Upload: 5, Download: 6}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.srv = srv
	tcp, err := ListenTCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr, w.tcp = tcp.Addr().String(), tcp
	dir, err := os.MkdirTemp("", "fb") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.socket = filepath.Join(dir, "s")
	local, err := ListenUnix(w.socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.ended <- srv.Serve(ctx, tcp, local) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-w.ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return w
}

// answer is a REST answer, read to its end.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends one request as an owner; header pairs override.
func (w *world) do(method, path, body string, header ...string) answer {
	w.t.Helper()
	req, err := http.NewRequest(method, "http://"+w.addr+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = nil, 0
	}
	req.Header.Set("Authorization", "Bearer all")
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
		if header[i+1] == "" {
			req.Header.Del(header[i])
		}
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	res, err := c.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

// local returns a client for the unix socket.
func (w *world) local() *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", w.socket)
	}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}
