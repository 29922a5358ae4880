package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// File paths are the sandbox's; relative ones start at the user's home. All
// operations act as the sandbox's user and fail with KindNotFound, KindDenied,
// KindIsDirectory, KindNotDirectory, KindExists, KindNoSpace or KindGone as the
// file system says.
//
// Bodies use the REST routes: raw bytes, no framing, no limit on size.

// WriteFile stores what r yields as path with mode (zero: 0644). Missing
// parent directories are made. It streams: memory does not depend on the size.
func (s *Sandbox) WriteFile(ctx context.Context, path string, r io.Reader, mode fs.FileMode) (*v1.FileInfo, error) {
	q := url.Values{"path": {path}}
	if mode != 0 {
		q.Set("mode", strconv.FormatUint(uint64(mode.Perm()), 8))
	}
	info := new(v1.FileInfo)
	return info, s.put(ctx, s.filesPath(), q, r, info)
}

// put sends a body and reads the answer.
func (s *Sandbox) put(ctx context.Context, path string, q url.Values, r io.Reader, to proto.Message) error {
	res, err := s.c.raw(ctx, http.MethodPut, path, q, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return unreachable(err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(answer, to); err != nil {
		return sandbox.Errorf("write", sandbox.KindProtocol, "the server's answer cannot be read: %w", err).WithID(s.id)
	}
	return nil
}

// WriteArchive unpacks the tar file that r yields into the directory path, which is
// made; files there of the same names are replaced. It streams. Symbolic links have
// to stay in the directory. Errors: also KindDenied and KindUnsupported for what an
// archive may not hold; what came before the entry that failed is stored.
func (s *Sandbox) WriteArchive(ctx context.Context, path string, r io.Reader) (*v1.WrittenArchive, error) {
	n := new(v1.WrittenArchive)
	return n, s.put(ctx, s.filesPath()+"/archive", url.Values{"path": {path}}, r, n)
}

// ReadArchive writes the directory path to w as a tar file, and tells left, if it
// is not nil, each path in it that is left out, and why: devices, links that lead
// out, names that are none elsewhere, what may not be read. It streams. After an
// error the archive is not whole.
func (s *Sandbox) ReadArchive(ctx context.Context, path string, w io.Writer, left func(string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := s.c.files.ReadArchive(ctx, connect.NewRequest(&v1.ReadArchiveRequest{Id: s.id, Path: path}))
	if err != nil {
		return fromConnect(ctx, err)
	}
	defer func() {
		cancel() // first: Close would otherwise wait for the rest
		_ = st.Close()
	}()
	for st.Receive() {
		for _, what := range st.Msg().GetLeftOut() {
			if left != nil {
				left(what)
			}
		}
		if _, err := w.Write(st.Msg().GetData()); err != nil {
			return sandbox.Wrap("read archive", s.id, err)
		}
	}
	return fromConnect(ctx, st.Err())
}

// ReadFile copies path to w and returns how many bytes it copied. It streams.
func (s *Sandbox) ReadFile(ctx context.Context, path string, w io.Writer) (int64, error) {
	res, err := s.c.raw(ctx, http.MethodGet, s.filesPath(), url.Values{"path": {path}}, nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	n, err := io.Copy(w, body{res.Body})
	if err != nil {
		return n, sandbox.Wrap("read", s.id, err)
	}
	return n, nil
}

// body tells errors of the connection from those of what is written to.
type body struct{ io.Reader }

// Read implements io.Reader.
func (b body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = unreachable(err)
	}
	return n, err
}

// ReadFileBytes is ReadFile for small files. Errors: KindTooLarge over limit.
func (s *Sandbox) ReadFileBytes(ctx context.Context, path string, limit int64) ([]byte, error) {
	res, err := s.c.raw(ctx, http.MethodGet, s.filesPath(), url.Values{"path": {path}}, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(body{res.Body}, limit+1)); err != nil {
		return nil, sandbox.Wrap("read", s.id, err)
	}
	if int64(b.Len()) > limit {
		return nil, sandbox.Errorf("read", sandbox.KindTooLarge, "%s is larger than %s", path, sandbox.FormatSize(limit)).WithID(s.id)
	}
	return b.Bytes(), nil
}

// Stat describes path without following a final symbolic link.
func (s *Sandbox) Stat(ctx context.Context, path string) (*v1.FileInfo, error) {
	return message(s.c.files.StatFile(ctx, connect.NewRequest(&v1.StatFileRequest{Id: s.id, Path: path})))
}

// SignFile returns a URL by which whoever has it reads (operation "read", by GET) or
// writes ("write", by PUT) the file path without a key, for the time life (whole
// seconds; zero: an hour; at most 7 days) or until the sandbox ends.
func (s *Sandbox) SignFile(ctx context.Context, path, operation string, life time.Duration) (string, error) {
	res, err := message(s.c.files.SignFile(ctx, connect.NewRequest(&v1.SignFileRequest{Id: s.id, Path: path, Operation: operation, ExpiresIn: int64(life / time.Second)})))
	if err != nil {
		return "", err
	}
	return s.c.base + res.GetUrl(), nil
}

// WatchFiles yields what changes in the directory path (empty: the home), and with
// recursive below it, after an event of type start. An event of type overflow says
// that changes are missing. It ends when the directory is removed or renamed; when
// the connection breaks, with an error: changes are missing then, too.
func (s *Sandbox) WatchFiles(ctx context.Context, path string, recursive bool) iter.Seq2[*v1.FileEvent, error] {
	return func(yield func(*v1.FileEvent, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		in, err := s.c.files.WatchFiles(ctx, connect.NewRequest(&v1.WatchFilesRequest{Id: s.id, Path: path, Recursive: recursive}))
		if err == nil {
			defer in.Close()
			for in.Receive() {
				if !yield(in.Msg(), nil) {
					return
				}
			}
			err = in.Err()
		}
		if err != nil {
			yield(nil, fromConnect(ctx, err))
		}
	}
}

// Watcher collects what changes in a directory for a caller who asks for it now and
// then. One that nobody asks ends after five minutes, and with the server's process.
type Watcher struct {
	s  *Sandbox
	id string
}

// CreateWatcher is WatchFiles for callers who poll.
func (s *Sandbox) CreateWatcher(ctx context.Context, path string, recursive bool) (*Watcher, error) {
	w, err := message(s.c.files.CreateWatcher(ctx, connect.NewRequest(&v1.CreateWatcherRequest{Id: s.id, Path: path, Recursive: recursive})))
	if err != nil {
		return nil, err
	}
	return &Watcher{s, w.GetWatcher()}, nil
}

// Events returns what has changed since it was last called, which may be nothing.
// With over, nothing more will come: the directory was removed or renamed. Errors:
// KindNotFound once the watcher has ended.
func (w *Watcher) Events(ctx context.Context) (events []*v1.FileEvent, over bool, err error) {
	res, err := message(w.s.c.files.GetWatcherEvents(ctx, connect.NewRequest(&v1.GetWatcherEventsRequest{Id: w.s.id, Watcher: w.id})))
	return res.GetEvents(), res.GetOver(), err
}

// Remove ends the watcher.
func (w *Watcher) Remove(ctx context.Context) error {
	_, err := w.s.c.files.RemoveWatcher(ctx, connect.NewRequest(&v1.RemoveWatcherRequest{Id: w.s.id, Watcher: w.id}))
	return fromConnect(ctx, err)
}

// ListFiles lists the directory path, depth levels deep (zero: one). truncated
// tells that there were more entries than one answer holds.
func (s *Sandbox) ListFiles(ctx context.Context, path string, depth int) (files []*v1.FileInfo, truncated bool, err error) {
	res, err := message(s.c.files.ListFiles(ctx, connect.NewRequest(&v1.ListFilesRequest{Id: s.id, Path: path, Depth: int32(depth)})))
	return res.GetFiles(), res.GetTruncated(), err
}

// Mkdir makes the directory path and its missing parents.
func (s *Sandbox) Mkdir(ctx context.Context, path string) (*v1.FileInfo, error) {
	return message(s.c.files.MakeDirectory(ctx, connect.NewRequest(&v1.MakeDirectoryRequest{Id: s.id, Path: path})))
}

// Move renames from to to.
func (s *Sandbox) Move(ctx context.Context, from, to string) (*v1.FileInfo, error) {
	return message(s.c.files.MoveFile(ctx, connect.NewRequest(&v1.MoveFileRequest{Id: s.id, From: from, To: to})))
}

// Remove removes path; with recursive, a directory and everything in it.
func (s *Sandbox) Remove(ctx context.Context, path string, recursive bool) error {
	_, err := s.c.files.RemoveFile(ctx, connect.NewRequest(&v1.RemoveFileRequest{Id: s.id, Path: path, Recursive: recursive}))
	return err
}

func (s *Sandbox) filesPath() string { return "/v1/sandboxes/" + url.PathEscape(s.id) + "/files" }

// message takes a Connect answer apart.
func message[T any](res *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// raw makes a REST call with a raw body and returns an answer below 400.
func (c *Client) raw(ctx context.Context, method, path string, q url.Values, content io.Reader) (*http.Response, error) {
	target := c.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, content)
	if err != nil {
		return nil, sandbox.Errorf("call", sandbox.KindInvalid, "%w", err)
	}
	(&headers{key: c.key, userAgent: c.userAgent}).set(req.Header)
	req.Header.Set("Accept-Encoding", "identity") // its length tells whether a file is whole
	if content != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := c.http.Do(req)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, sandbox.Wrap("call", "", context.Cause(ctx))
	case err != nil:
		return nil, unreachable(err)
	case res.StatusCode >= 400:
		defer res.Body.Close()
		return nil, fromREST(res)
	}
	return res, nil
}

// Healthy asks /readyz, which needs no key. Errors: KindUnavailable when
// nothing answers or the server is not ready.
func (c *Client) Healthy(ctx context.Context) error {
	res, err := c.raw(ctx, http.MethodGet, "/readyz", nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // lets the connection be used again
	if res.StatusCode != http.StatusOK {
		return sandbox.Errorf("connect", sandbox.KindUnavailable, "the server answered %s", res.Status)
	}
	return nil
}

// JSON fetches what the REST route path answers, byte for byte: for those who
// pass it on rather than read it.
func (c *Client) JSON(ctx context.Context, path string, q url.Values) (json.RawMessage, error) {
	res, err := c.raw(ctx, http.MethodGet, path, q, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return nil, unreachable(err)
	}
	if !json.Valid(answer) {
		return nil, sandbox.Errorf("call", sandbox.KindProtocol, "the answer to %s is not JSON", path)
	}
	return answer, nil
}
