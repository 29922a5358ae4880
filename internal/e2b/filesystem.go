package e2b

import (
	"context"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/filesystem"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// registerFilesystem enters the file service.
func (s *Server) registerFilesystem(mux *http.ServeMux) {
	path, h := filesystemconnect.NewFilesystemHandler(files{s}, s.rpcOptions()...)
	mux.Handle(path, h)
}

// files is envd's file service.
type files struct{ s *Server }

var _ filesystemconnect.FilesystemHandler = files{}

// homeless makes a path relative to the home that names it with a tilde: that is
// where relative paths start.
func homeless(p string) string {
	if p == "~" {
		return ""
	}
	return strings.TrimPrefix(p, "~/")
}

// file is a path as the service takes it; the home itself is ".".
func file(p string) string {
	if p = homeless(p); p == "" {
		return "."
	}
	return p
}

// checked calls fn with a request that obeys the rules of its proto.
func checked[Q proto.Message, R any](ctx context.Context, s *Server, fn func(context.Context, Q) (R, error), req Q) (R, error) {
	if err := s.rules.Check(req); err != nil {
		var none R
		return none, err
	}
	return fn(ctx, req)
}

func (f files) stat(ctx context.Context, p string) (*v1.FileInfo, error) {
	v := visitOf(ctx)
	return checked(ctx, f.s, f.s.api.StatFile, &v1.StatFileRequest{Id: v.id, Path: file(p), User: v.user})
}

// Stat implements filesystemconnect.FilesystemHandler.
func (f files) Stat(ctx context.Context, r *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	info, err := f.stat(ctx, r.Msg.GetPath())
	return connect.NewResponse(&filesystem.StatResponse{Entry: entry(info, "")}), f.s.rpcError(ctx, err)
}

// MakeDir implements filesystemconnect.FilesystemHandler. To E2B a directory that
// exists is an error, which its clients turn into false.
func (f files) MakeDir(ctx context.Context, r *connect.Request[filesystem.MakeDirRequest]) (*connect.Response[filesystem.MakeDirResponse], error) {
	v := visitOf(ctx)
	info, err := f.stat(ctx, r.Msg.GetPath())
	switch {
	case err == nil && info.GetType() == "directory":
		err = sandbox.Errorf("make directory", sandbox.KindExists, "directory already exists: %s", info.GetPath())
	case err == nil && info.GetType() != "symlink":
		err = sandbox.Errorf("make directory", sandbox.KindNotDirectory, "path already exists but it is not a directory: %s", info.GetPath())
	case err == nil || sandbox.KindOf(err) == sandbox.KindNotFound:
		info, err = checked(ctx, f.s, f.s.api.MakeDirectory, &v1.MakeDirectoryRequest{Id: v.id, Path: file(r.Msg.GetPath()), User: v.user})
	}
	return connect.NewResponse(&filesystem.MakeDirResponse{Entry: entry(info, "")}), f.s.rpcError(ctx, err)
}

// Move implements filesystemconnect.FilesystemHandler. What is missing above the
// destination is made.
func (f files) Move(ctx context.Context, r *connect.Request[filesystem.MoveRequest]) (*connect.Response[filesystem.MoveResponse], error) {
	v, to := visitOf(ctx), file(r.Msg.GetDestination())
	info, err := f.stat(ctx, r.Msg.GetSource())
	if err == nil {
		if dir := path.Dir(to); dir != "." && dir != "/" {
			_, err = checked(ctx, f.s, f.s.api.MakeDirectory, &v1.MakeDirectoryRequest{Id: v.id, Path: dir, User: v.user})
		}
	}
	if err == nil {
		info, err = checked(ctx, f.s, f.s.api.MoveFile, &v1.MoveFileRequest{Id: v.id, From: file(r.Msg.GetSource()), To: to, User: v.user})
	}
	return connect.NewResponse(&filesystem.MoveResponse{Entry: entry(info, "")}), f.s.rpcError(ctx, err)
}

// ListDir implements filesystemconnect.FilesystemHandler.
func (f files) ListDir(ctx context.Context, r *connect.Request[filesystem.ListDirRequest]) (*connect.Response[filesystem.ListDirResponse], error) {
	out, err := f.list(ctx, file(r.Msg.GetPath()), int32(min(r.Msg.GetDepth(), 1<<16)))
	return connect.NewResponse(out), f.s.rpcError(ctx, err)
}

func (f files) list(ctx context.Context, p string, depth int32) (*filesystem.ListDirResponse, error) {
	v := visitOf(ctx)
	dir, err := f.stat(ctx, p)
	if err != nil {
		return nil, err
	}
	if dir.GetType() != "directory" && dir.GetType() != "symlink" {
		return nil, sandbox.Errorf("list", sandbox.KindNotDirectory, "path is not a directory: %s", dir.GetPath())
	}
	list, err := checked(ctx, f.s, f.s.api.ListFiles, &v1.ListFilesRequest{Id: v.id, Path: p, Depth: depth, User: v.user})
	if err != nil {
		return nil, err
	}
	if list.GetTruncated() {
		return nil, sandbox.Errorf("list", sandbox.KindTooLarge, "the directory has more than %d entries", len(list.GetFiles())).
			WithHint("list fewer levels, or use a command")
	}
	out := &filesystem.ListDirResponse{}
	for _, info := range list.GetFiles() {
		out.Entries = append(out.Entries, entry(info, dir.GetPath()))
	}
	return out, nil
}

// Remove implements filesystemconnect.FilesystemHandler: whole trees, and what is
// not there is no error.
func (f files) Remove(ctx context.Context, r *connect.Request[filesystem.RemoveRequest]) (*connect.Response[filesystem.RemoveResponse], error) {
	v := visitOf(ctx)
	_, err := checked(ctx, f.s, f.s.api.RemoveFile, &v1.RemoveFileRequest{Id: v.id, Path: file(r.Msg.GetPath()), User: v.user, Recursive: true})
	if sandbox.KindOf(err) == sandbox.KindNotFound && f.s.lives(ctx) {
		err = nil
	}
	return connect.NewResponse(&filesystem.RemoveResponse{}), f.s.rpcError(ctx, err)
}

// lives reports whether the sandbox of a visit does: what was not found was in it.
func (s *Server) lives(ctx context.Context) bool {
	sb, err := s.api.GetSandbox(ctx, &v1.GetSandboxRequest{Id: visitOf(ctx).id})
	return err == nil && sb.GetState() == "running"
}

// fileTypes are E2B's words for what a path is.
var fileTypes = map[string]filesystem.FileType{"file": filesystem.FileType_FILE_TYPE_FILE,
	"directory": filesystem.FileType_FILE_TYPE_DIRECTORY, "symlink": filesystem.FileType_FILE_TYPE_SYMLINK}

// accounts are the guest's users by number, as far as every guest has them.
var accounts = map[int64]string{0: "root", 1000: "user"}

func account(id int64) string {
	if name := accounts[id]; name != "" {
		return name
	}
	return strconv.FormatInt(id, 10)
}

// entry converts; dir is what a path in a listing is relative to. Nil stays nil.
func entry(info *v1.FileInfo, dir string) *filesystem.EntryInfo {
	if info == nil {
		return nil
	}
	bits, err := strconv.ParseUint(info.GetMode(), 8, 32)
	if err != nil {
		bits = 0
	}
	p := info.GetPath()
	if dir != "" {
		p = path.Join(dir, p)
	}
	out := &filesystem.EntryInfo{Name: info.GetName(), Path: p, Type: fileTypes[info.GetType()], Size: info.GetSize(), Mode: uint32(bits),
		Permissions: permissions(info.GetType(), uint32(bits)), Owner: account(info.GetUid()), Group: account(info.GetGid()), ModifiedTime: info.GetModifiedAt(), Metadata: info.GetMetadata()}
	if info.GetType() == "symlink" {
		out.SymlinkTarget = proto.String(info.GetLinkTarget())
	}
	return out
}

// permissions are as ls(1) shows them.
func permissions(kind string, bits uint32) string {
	mode := fs.FileMode(bits & 0o777)
	switch kind {
	case "directory":
		mode |= fs.ModeDir
	case "symlink":
		mode |= fs.ModeSymlink
	}
	return mode.String()
}
