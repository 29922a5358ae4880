package server

import (
	"context"
	"io"
	"net"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/service"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// API is the operations a Server puts on the wire. *service.Service is one; each
// part is small so that a test can fake what it needs.
//
// Every method authorises nothing by itself that the Server has not checked
// already, but may check again. A send function is called from the goroutine
// that called the method; its error ends the operation.
type API interface {
	Sandboxes
	Snapshots
	Ports
	Streams
	Processes
	Contexts
	Files
	FileWatches
	FileURLs
	Contents
	Runs
	Templates
	Policies
	Secrets
	Quotas
	System
	Evidence
	Refusals
}

// Evidence shows the audit log.
type Evidence interface {
	GetCheckpoint(context.Context, *v1.GetCheckpointRequest) (*v1.Checkpoint, error)
	ListEntries(context.Context, *v1.ListEntriesRequest) (*v1.ListEntriesResponse, error)
	WatchEntries(context.Context, *v1.WatchEntriesRequest, func(*v1.AuditEntry) error) error
	GetProof(context.Context, *v1.GetProofRequest) (*v1.Proof, error)
	ExportEvidence(context.Context, *v1.ExportEvidenceRequest) (*v1.ExportEvidenceResponse, error)
}

// Refusals are told of calls that were refused because of who made them.
type Refusals interface {
	// Refused may count instead of keeping each, and does not wait for long.
	Refused(context.Context, service.Refusal)
}

// Sandboxes is their life.
type Sandboxes interface {
	CreateSandbox(context.Context, *v1.CreateSandboxRequest) (*v1.Sandbox, error)
	GetSandbox(context.Context, *v1.GetSandboxRequest) (*v1.Sandbox, error)
	GetMetrics(context.Context, *v1.GetMetricsRequest) (*v1.SandboxMetrics, error)
	ListSandboxes(context.Context, *v1.ListSandboxesRequest) (*v1.ListSandboxesResponse, error)
	DestroySandbox(context.Context, *v1.DestroySandboxRequest) (*v1.DestroySandboxResponse, error)
	SetTimeout(context.Context, *v1.SetTimeoutRequest) (*v1.Sandbox, error)
	UpdateNetwork(context.Context, *v1.UpdateNetworkRequest) (*v1.UpdateNetworkResponse, error)
}

// Snapshots is sandboxes that are kept.
type Snapshots interface {
	PauseSandbox(context.Context, *v1.PauseSandboxRequest) (*v1.Sandbox, error)
	ResumeSandbox(context.Context, *v1.ResumeSandboxRequest) (*v1.Sandbox, error)
	ForkSandbox(context.Context, *v1.ForkSandboxRequest) (*v1.ForkSandboxResponse, error)
	CreateSnapshot(context.Context, *v1.CreateSnapshotRequest) (*v1.Snapshot, error)
	ListSnapshots(context.Context, *v1.ListSnapshotsRequest) (*v1.ListSnapshotsResponse, error)
	RemoveSnapshot(context.Context, *v1.RemoveSnapshotRequest) (*v1.RemoveSnapshotResponse, error)
}

// Streams is the operations that answer with a stream of messages.
type Streams interface {
	Exec(context.Context, *v1.ExecRequest, func(*v1.ExecEvent) error) error
	WatchEvents(context.Context, *v1.WatchEventsRequest, func(*v1.Event) error) error
	WatchRun(context.Context, *v1.WatchRunRequest, func(*v1.Event) error) error
	StreamProcess(context.Context, *v1.StreamProcessRequest, func(*v1.Event) error) error
	BuildTemplate(context.Context, *v1.BuildTemplateRequest, func(*v1.BuildTemplateEvent) error) error
}

// Processes is the programs of a sandbox.
type Processes interface {
	StartProcess(context.Context, *v1.StartProcessRequest) (*v1.Process, error)
	ListProcesses(context.Context, *v1.ListProcessesRequest) (*v1.ListProcessesResponse, error)
	GetProcess(context.Context, *v1.GetProcessRequest) (*v1.Process, error)
	KillProcess(context.Context, *v1.KillProcessRequest) (*v1.Process, error)
	SignalProcess(context.Context, *v1.SignalProcessRequest) (*v1.Process, error)
	WriteStdin(context.Context, *v1.WriteStdinRequest) (*v1.Process, error)
	ResizeProcess(context.Context, *v1.ResizeProcessRequest) (*v1.Process, error)
}

// Contexts is the warm interpreters of a sandbox.
type Contexts interface {
	CreateContext(context.Context, *v1.CreateContextRequest) (*v1.Context, error)
	ListContexts(context.Context, *v1.ListContextsRequest) (*v1.ListContextsResponse, error)
	GetContext(context.Context, *v1.GetContextRequest) (*v1.Context, error)
	DeleteContext(context.Context, *v1.DeleteContextRequest) (*v1.Context, error)
	Eval(context.Context, *v1.EvalRequest, func(*v1.EvalEvent) error) error
	InterruptContext(context.Context, *v1.InterruptContextRequest) (*v1.Context, error)
	RestartContext(context.Context, *v1.RestartContextRequest) (*v1.Context, error)
}

// Ports connects to servers in sandboxes.
type Ports interface {
	DialPort(ctx context.Context, id string, port int) (net.Conn, error)
}

// Files is everything about files but their content.
type Files interface {
	StatFile(context.Context, *v1.StatFileRequest) (*v1.FileInfo, error)
	ListFiles(context.Context, *v1.ListFilesRequest) (*v1.ListFilesResponse, error)
	MakeDirectory(context.Context, *v1.MakeDirectoryRequest) (*v1.FileInfo, error)
	MoveFile(context.Context, *v1.MoveFileRequest) (*v1.FileInfo, error)
	RemoveFile(context.Context, *v1.RemoveFileRequest) (*v1.RemoveFileResponse, error)
}

// FileWatches is what happens to files.
type FileWatches interface {
	WatchFiles(context.Context, *v1.WatchFilesRequest, func(*v1.FileEvent) error) error
	CreateWatcher(context.Context, *v1.CreateWatcherRequest) (*v1.Watcher, error)
	GetWatcherEvents(context.Context, *v1.GetWatcherEventsRequest) (*v1.GetWatcherEventsResponse, error)
	RemoveWatcher(context.Context, *v1.RemoveWatcherRequest) (*v1.RemoveWatcherResponse, error)
}

// FileURLs are URLs that open one file without a key.
type FileURLs interface {
	SignFile(context.Context, *v1.SignFileRequest) (*v1.SignedURL, error)
	// FileURLHolder returns on whose behalf a request comes whose URL is query.
	// plain is what is left of that: the file and the user.
	FileURLHolder(ctx context.Context, id, method, query string) (p auth.Principal, plain string, err error)
}

// Contents is raw bytes in and out.
type Contents interface {
	// OpenFile reads a part of a file; length 0 is to the end. The info
	// describes the whole file. The caller closes the reader.
	OpenFile(ctx context.Context, id, path, user string, offset, length int64) (io.ReadCloser, *v1.FileInfo, error)
	// WriteFile stores r as the file that req names. The data of req is none of it.
	WriteFile(ctx context.Context, req *v1.WriteFileRequest, r io.Reader) (*v1.FileInfo, error)
	// ReadArchive writes a directory to w as a tar file, and tells left what is
	// not in it. An error before it wrote anything is one about the directory.
	ReadArchive(ctx context.Context, req *v1.ReadArchiveRequest, w io.Writer, left func(string) error) error
	// WriteArchive unpacks a tar file into a directory.
	WriteArchive(ctx context.Context, id, path, user string, r io.Reader) (*v1.WrittenArchive, error)
	// OpenArtifact opens a collected artifact of a run. Where the reader is an
	// io.Seeker, ranges are served by seeking.
	OpenArtifact(ctx context.Context, runID, path string) (io.ReadCloser, *v1.Artifact, error)
}

// Runs is create, execute to completion, destroy.
type Runs interface {
	CreateRun(context.Context, *v1.CreateRunRequest) (*v1.Run, error)
	StartRun(context.Context, *v1.StartRunRequest) (*v1.Run, error)
	GetRun(context.Context, *v1.GetRunRequest) (*v1.Run, error)
	CancelRun(context.Context, *v1.CancelRunRequest) (*v1.Run, error)
}

// Templates is what sandboxes start from.
type Templates interface {
	ListTemplates(context.Context, *v1.ListTemplatesRequest) (*v1.ListTemplatesResponse, error)
	RemoveTemplate(context.Context, *v1.RemoveTemplateRequest) (*v1.RemoveTemplateResponse, error)
	CollectTemplates(context.Context, *v1.CollectTemplatesRequest) (*v1.CollectTemplatesResponse, error)
	// UploadArchive stores r for a build.
	UploadArchive(ctx context.Context, r io.Reader) (*v1.UploadArchiveResponse, error)
}

// Policies is where sandboxes may connect, by name.
type Policies interface {
	ListPolicies(context.Context, *v1.ListPoliciesRequest) (*v1.ListPoliciesResponse, error)
	GetPolicy(context.Context, *v1.GetPolicyRequest) (*v1.Policy, error)
	SetPolicy(context.Context, *v1.SetPolicyRequest) (*v1.Policy, error)
	RemovePolicy(context.Context, *v1.RemovePolicyRequest) (*v1.RemovePolicyResponse, error)
}

// Secrets is what sandboxes may use and never see, and what for.
type Secrets interface {
	SetSecret(context.Context, *v1.SetSecretRequest) (*v1.Secret, error)
	ListSecrets(context.Context, *v1.ListSecretsRequest) (*v1.ListSecretsResponse, error)
	RemoveSecret(context.Context, *v1.RemoveSecretRequest) (*v1.RemoveSecretResponse, error)
	AddBinding(context.Context, *v1.AddBindingRequest) (*v1.Binding, error)
	ListBindings(context.Context, *v1.ListBindingsRequest) (*v1.ListBindingsResponse, error)
	GetBinding(context.Context, *v1.GetBindingRequest) (*v1.Binding, error)
	RemoveBinding(context.Context, *v1.RemoveBindingRequest) (*v1.RemoveBindingResponse, error)
}

// Quotas is what tenants may have.
type Quotas interface {
	GetQuota(context.Context, *v1.GetQuotaRequest) (*v1.GetQuotaResponse, error)
	GetPool(context.Context, *v1.GetPoolRequest) (*v1.GetPoolResponse, error)
}

// System is the server itself and its keys.
type System interface {
	ListBackends(context.Context, *v1.ListBackendsRequest) (*v1.ListBackendsResponse, error)
	GetVersion(context.Context, *v1.GetVersionRequest) (*v1.GetVersionResponse, error)
	CreateKey(context.Context, *v1.CreateKeyRequest) (*v1.CreateKeyResponse, error)
	ListKeys(context.Context, *v1.ListKeysRequest) (*v1.ListKeysResponse, error)
	DeleteKey(context.Context, *v1.DeleteKeyRequest) (*v1.DeleteKeyResponse, error)
}

// Authenticator turns a credential into a principal; *auth.Authenticator is one.
type Authenticator interface {
	// Bearer authenticates an API key. Errors: KindUnauthenticated.
	Bearer(ctx context.Context, token string) (auth.Principal, error)
	// Peer authenticates the caller of the local socket by its uid. Errors:
	// KindDenied.
	Peer(uid int) (auth.Principal, error)
}

var (
	_ API           = (*service.Service)(nil)
	_ Authenticator = (*auth.Authenticator)(nil)
)
