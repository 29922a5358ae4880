package e2b

import (
	"context"
	"encoding/base64"
	"path"
	"strings"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/filesystem"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// changes are E2B's words for what happens to a file.
var changes = map[string]filesystem.EventType{
	"create": filesystem.EventType_EVENT_TYPE_CREATE, "write": filesystem.EventType_EVENT_TYPE_WRITE,
	"remove": filesystem.EventType_EVENT_TYPE_REMOVE, "rename": filesystem.EventType_EVENT_TYPE_RENAME,
	"chmod": filesystem.EventType_EVENT_TYPE_CHMOD,
}

// watched says whose files a watch is about. There are no network mounts, so
// watching them, too, changes nothing.
type watched struct {
	dir     string // absolute
	entries bool   // describe what changed
}

// WatchDir implements filesystemconnect.FilesystemHandler.
func (f files) WatchDir(ctx context.Context, r *connect.Request[filesystem.WatchDirRequest], st *connect.ServerStream[filesystem.WatchDirResponse]) error {
	return f.s.rpcError(ctx, f.watch(ctx, r, st))
}

func (f files) watch(ctx context.Context, r *connect.Request[filesystem.WatchDirRequest], st *connect.ServerStream[filesystem.WatchDirResponse]) error {
	v := visitOf(ctx)
	dir, err := f.directory(ctx, r.Msg.GetPath())
	if err != nil {
		return err
	}
	w := watched{dir: dir.GetPath(), entries: r.Msg.GetIncludeEntry()}
	req := &v1.WatchFilesRequest{Id: v.id, Path: file(r.Msg.GetPath()), Recursive: r.Msg.GetRecursive(), User: v.user}
	if err := f.s.rules.Check(req); err != nil {
		return err
	}
	ctx, cancel := f.s.untilDrain(ctx)
	defer cancel()
	var out *pinger[*filesystem.WatchDirResponse]
	defer func() {
		if out != nil {
			out.stop()
		}
	}()
	return f.s.api.WatchFiles(ctx, req, func(e *v1.FileEvent) error {
		if out == nil { // the first says that it has begun
			if err := st.Send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Start{Start: &filesystem.WatchDirResponse_StartEvent{}}}); err != nil {
				return err
			}
			out = newPinger(pingOf(r.Header()), st.Send, &filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Keepalive{Keepalive: &filesystem.WatchDirResponse_KeepAlive{}}})
		}
		if e.GetType() == "start" {
			return nil
		}
		change, err := f.change(ctx, w, e)
		if err != nil {
			return err
		}
		return out.send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Filesystem{Filesystem: change}})
	})
}

// directory describes what is to be watched. Errors: KindNotDirectory.
func (f files) directory(ctx context.Context, p string) (*v1.FileInfo, error) {
	dir, err := f.stat(ctx, p)
	if err == nil && dir.GetType() != "directory" && dir.GetType() != "symlink" {
		err = sandbox.Errorf("watch", sandbox.KindNotDirectory, "path %s not a directory", dir.GetPath())
	}
	return dir, err
}

// change converts an event. E2B's protocol has no word for events that were
// missed, so the watch ends with an error instead: who watches has to look again.
func (f files) change(ctx context.Context, w watched, e *v1.FileEvent) (*filesystem.FilesystemEvent, error) {
	kind, ok := changes[e.GetType()]
	if !ok {
		return nil, sandbox.Errorf("watch", sandbox.KindCapacity, "too much changed at once: events of the directory were missed (%s)", e.GetType()).
			WithHint("list the directory and watch it again")
	}
	out := &filesystem.FilesystemEvent{Name: e.GetPath(), Type: kind}
	if w.entries && kind != filesystem.EventType_EVENT_TYPE_REMOVE && kind != filesystem.EventType_EVENT_TYPE_RENAME {
		if info, err := f.stat(ctx, path.Join(w.dir, e.GetPath())); err == nil { // else it is gone again
			out.Entry = entry(info, "")
		}
	}
	return out, nil
}

// CreateWatcher implements filesystemconnect.FilesystemHandler.
func (f files) CreateWatcher(ctx context.Context, r *connect.Request[filesystem.CreateWatcherRequest]) (*connect.Response[filesystem.CreateWatcherResponse], error) {
	v := visitOf(ctx)
	dir, err := f.directory(ctx, r.Msg.GetPath())
	if err != nil {
		return nil, f.s.rpcError(ctx, err)
	}
	w, err := checked(ctx, f.s, f.s.api.CreateWatcher, &v1.CreateWatcherRequest{Id: v.id, Path: file(r.Msg.GetPath()), Recursive: r.Msg.GetRecursive(), User: v.user})
	id := w.GetWatcher()
	if r.Msg.GetIncludeEntry() {
		id += described + base64.RawURLEncoding.EncodeToString([]byte(dir.GetPath()))
	}
	return connect.NewResponse(&filesystem.CreateWatcherResponse{WatcherId: id}), f.s.rpcError(ctx, err)
}

// described stands, in a watcher's id, between our own and the directory: the events
// of such a watcher describe their files. Nobody else has to remember it, and whoever
// changes it sees what a call of Stat would say.
const described = "~"

// watcher takes such an id apart.
func watcher(id string) (string, watched) {
	id, dir, entries := strings.Cut(id, described)
	path, err := base64.RawURLEncoding.DecodeString(dir)
	return id, watched{dir: string(path), entries: entries && err == nil}
}

// GetWatcherEvents implements filesystemconnect.FilesystemHandler.
func (f files) GetWatcherEvents(ctx context.Context, r *connect.Request[filesystem.GetWatcherEventsRequest]) (*connect.Response[filesystem.GetWatcherEventsResponse], error) {
	id, w := watcher(r.Msg.GetWatcherId())
	got, err := checked(ctx, f.s, f.s.api.GetWatcherEvents, &v1.GetWatcherEventsRequest{Id: visitOf(ctx).id, Watcher: id})
	out := &filesystem.GetWatcherEventsResponse{}
	for _, e := range got.GetEvents() {
		change, e := f.change(ctx, w, e)
		if e != nil && err == nil {
			err = e
		}
		out.Events = append(out.Events, change)
	}
	return connect.NewResponse(out), f.s.rpcError(ctx, err)
}

// RemoveWatcher implements filesystemconnect.FilesystemHandler.
func (f files) RemoveWatcher(ctx context.Context, r *connect.Request[filesystem.RemoveWatcherRequest]) (*connect.Response[filesystem.RemoveWatcherResponse], error) {
	id, _ := watcher(r.Msg.GetWatcherId())
	_, err := checked(ctx, f.s, f.s.api.RemoveWatcher, &v1.RemoveWatcherRequest{Id: visitOf(ctx).id, Watcher: id})
	return connect.NewResponse(&filesystem.RemoveWatcherResponse{}), f.s.rpcError(ctx, err)
}
