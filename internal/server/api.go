package server

import (
	"context"
	"io"

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
	Streams
	Files
	Contents
	Runs
	Templates
	System
}

// Sandboxes is their life.
type Sandboxes interface {
	CreateSandbox(context.Context, *v1.CreateSandboxRequest) (*v1.Sandbox, error)
	GetSandbox(context.Context, *v1.GetSandboxRequest) (*v1.Sandbox, error)
	ListSandboxes(context.Context, *v1.ListSandboxesRequest) (*v1.ListSandboxesResponse, error)
	DestroySandbox(context.Context, *v1.DestroySandboxRequest) (*v1.DestroySandboxResponse, error)
	SetTimeout(context.Context, *v1.SetTimeoutRequest) (*v1.Sandbox, error)
}

// Streams is the operations that answer with a stream of messages.
type Streams interface {
	Exec(context.Context, *v1.ExecRequest, func(*v1.ExecEvent) error) error
	WatchEvents(context.Context, *v1.WatchEventsRequest, func(*v1.Event) error) error
	WatchRun(context.Context, *v1.WatchRunRequest, func(*v1.Event) error) error
	BuildTemplate(context.Context, *v1.BuildTemplateRequest, func(*v1.BuildTemplateEvent) error) error
}

// Files is everything about files but their content.
type Files interface {
	StatFile(context.Context, *v1.StatFileRequest) (*v1.FileInfo, error)
	ListFiles(context.Context, *v1.ListFilesRequest) (*v1.ListFilesResponse, error)
	MakeDirectory(context.Context, *v1.MakeDirectoryRequest) (*v1.FileInfo, error)
	MoveFile(context.Context, *v1.MoveFileRequest) (*v1.FileInfo, error)
	RemoveFile(context.Context, *v1.RemoveFileRequest) (*v1.RemoveFileResponse, error)
}

// Contents is raw bytes in and out.
type Contents interface {
	// OpenFile reads a part of a file; length 0 is to the end. The info
	// describes the whole file. The caller closes the reader.
	OpenFile(ctx context.Context, id, path, user string, offset, length int64) (io.ReadCloser, *v1.FileInfo, error)
	// WriteFile stores r as a file. mode is octal, empty for 644.
	WriteFile(ctx context.Context, id, path, mode, user string, r io.Reader) (*v1.FileInfo, error)
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
