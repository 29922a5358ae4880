package service

import (
	"context"
	"io"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var errSkeleton = sandbox.Errorf("service", sandbox.KindUnsupported, "not written yet")

// Config joins a Service to the rest. (Fields follow.)
type Config struct{}

// Service is the operations. It is safe for concurrent use.
type Service struct{}

// New returns a Service.
func New(c Config) (*Service, error) { return &Service{}, nil }

// WithIdempotencyKey returns a context whose create calls are idempotent under
// key. An empty key changes nothing.
func WithIdempotencyKey(ctx context.Context, key string) context.Context { return ctx }

// CreateSandbox makes a sandbox; see the proto.
func (s *Service) CreateSandbox(ctx context.Context, req *v1.CreateSandboxRequest) (*v1.Sandbox, error) {
	return nil, errSkeleton
}

// GetSandbox returns one sandbox by id, dead or alive, or by name, alive.
func (s *Service) GetSandbox(ctx context.Context, req *v1.GetSandboxRequest) (*v1.Sandbox, error) {
	return nil, errSkeleton
}

// ListSandboxes returns one page, newest first.
func (s *Service) ListSandboxes(ctx context.Context, req *v1.ListSandboxesRequest) (*v1.ListSandboxesResponse, error) {
	return nil, errSkeleton
}

// DestroySandbox ends a sandbox and returns its receipt; again: the same answer.
func (s *Service) DestroySandbox(ctx context.Context, req *v1.DestroySandboxRequest) (*v1.DestroySandboxResponse, error) {
	return nil, errSkeleton
}

// SetTimeout moves the moment the sandbox ends by itself.
func (s *Service) SetTimeout(ctx context.Context, req *v1.SetTimeoutRequest) (*v1.Sandbox, error) {
	return nil, errSkeleton
}

// Exec runs a process to its end. send gets started, then output, then exit,
// one at a time, from the calling goroutine; a slow send slows the process and
// nobody else. An error from send, or the end of ctx, kills the process.
func (s *Service) Exec(ctx context.Context, req *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
	return errSkeleton
}

// WatchEvents replays and follows a sandbox's events.
func (s *Service) WatchEvents(ctx context.Context, req *v1.WatchEventsRequest, send func(*v1.Event) error) error {
	return errSkeleton
}

// ReadFile streams a file; info travels in the first chunk, which may be empty.
func (s *Service) ReadFile(ctx context.Context, req *v1.ReadFileRequest, send func(*v1.FileChunk) error) error {
	return errSkeleton
}

// OpenFile is ReadFile as a reader, for surfaces with raw bodies. length 0 is to
// the end. The info describes the whole file. The caller closes the reader.
func (s *Service) OpenFile(ctx context.Context, id, path, user string, offset, length int64) (io.ReadCloser, *v1.FileInfo, error) {
	return nil, nil, errSkeleton
}

// WriteFile stores r as a file. mode is octal, empty for 644.
func (s *Service) WriteFile(ctx context.Context, id, path, mode, user string, r io.Reader) (*v1.FileInfo, error) {
	return nil, errSkeleton
}

// StatFile describes a file.
func (s *Service) StatFile(ctx context.Context, req *v1.StatFileRequest) (*v1.FileInfo, error) {
	return nil, errSkeleton
}

// ListFiles lists a directory.
func (s *Service) ListFiles(ctx context.Context, req *v1.ListFilesRequest) (*v1.ListFilesResponse, error) {
	return nil, errSkeleton
}

// MakeDirectory makes a directory and its parents.
func (s *Service) MakeDirectory(ctx context.Context, req *v1.MakeDirectoryRequest) (*v1.FileInfo, error) {
	return nil, errSkeleton
}

// MoveFile renames a file or directory.
func (s *Service) MoveFile(ctx context.Context, req *v1.MoveFileRequest) (*v1.FileInfo, error) {
	return nil, errSkeleton
}

// RemoveFile removes a file or directory.
func (s *Service) RemoveFile(ctx context.Context, req *v1.RemoveFileRequest) (*v1.RemoveFileResponse, error) {
	return nil, errSkeleton
}

// CreateRun starts a run and returns at once.
func (s *Service) CreateRun(ctx context.Context, req *v1.CreateRunRequest) (*v1.Run, error) {
	return nil, errSkeleton
}

// StartRun executes a run that awaits its inputs.
func (s *Service) StartRun(ctx context.Context, req *v1.StartRunRequest) (*v1.Run, error) {
	return nil, errSkeleton
}

// GetRun returns a run, waiting for its end up to wait_ms.
func (s *Service) GetRun(ctx context.Context, req *v1.GetRunRequest) (*v1.Run, error) {
	return nil, errSkeleton
}

// CancelRun ends a run early.
func (s *Service) CancelRun(ctx context.Context, req *v1.CancelRunRequest) (*v1.Run, error) {
	return nil, errSkeleton
}

// WatchRun replays and follows a run's events.
func (s *Service) WatchRun(ctx context.Context, req *v1.WatchRunRequest, send func(*v1.Event) error) error {
	return errSkeleton
}

// OpenArtifact opens a collected artifact of a run. path is as Run.artifacts
// names it. The reader also implements io.Seeker.
func (s *Service) OpenArtifact(ctx context.Context, runID, path string) (io.ReadCloser, *v1.Artifact, error) {
	return nil, nil, errSkeleton
}

// ListBackends reports what each backend enforces here, now.
func (s *Service) ListBackends(ctx context.Context, req *v1.ListBackendsRequest) (*v1.ListBackendsResponse, error) {
	return nil, errSkeleton
}

// ListTemplates lists what sandboxes may start from.
func (s *Service) ListTemplates(ctx context.Context, req *v1.ListTemplatesRequest) (*v1.ListTemplatesResponse, error) {
	return nil, errSkeleton
}

// BuildTemplate builds a template; the last event holds it.
func (s *Service) BuildTemplate(ctx context.Context, req *v1.BuildTemplateRequest, send func(*v1.BuildTemplateEvent) error) error {
	return errSkeleton
}

// RemoveTemplate removes a built template.
func (s *Service) RemoveTemplate(ctx context.Context, req *v1.RemoveTemplateRequest) (*v1.RemoveTemplateResponse, error) {
	return nil, errSkeleton
}

// GetVersion says what is running.
func (s *Service) GetVersion(ctx context.Context, req *v1.GetVersionRequest) (*v1.GetVersionResponse, error) {
	return nil, errSkeleton
}

// CreateKey makes a key, at most as strong as the caller.
func (s *Service) CreateKey(ctx context.Context, req *v1.CreateKeyRequest) (*v1.CreateKeyResponse, error) {
	return nil, errSkeleton
}

// ListKeys lists the tenant's keys.
func (s *Service) ListKeys(ctx context.Context, req *v1.ListKeysRequest) (*v1.ListKeysResponse, error) {
	return nil, errSkeleton
}

// DeleteKey revokes a key at once.
func (s *Service) DeleteKey(ctx context.Context, req *v1.DeleteKeyRequest) (*v1.DeleteKeyResponse, error) {
	return nil, errSkeleton
}
