package e2b

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/filesystem"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

var update = flag.Bool("update", false, "write the table of docs/guides/files.md")

// failure is what a caller sees of an error.
type failure struct {
	status        int          // of HTTP; 0: a Connect stream has none
	code          connect.Code // 0: plain HTTP has none
	kind          sandbox.Kind // ours only
	message, hint string
}

// trouble is a situation and the operations that meet it: "OP PATH [TO]", as the
// guest's root with a leading "root ".
type trouble struct {
	situation string
	kind      sandbox.Kind
	ops       []string
	e2b       bool // E2B's clients meet it, too
}

// fill makes what the troubles need.
const fill = `mkfifo fifo; ln -s loop loop; mkdir -p full/in taken; echo x >file
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
d=deep; for i in $(seq 140); do d=$d/d; done; mkdir -p $d`

func troubles() []trouble {
	const home, tmp = "/home/user", "/tmp"
	name, path := home+"/"+strings.Repeat("n", 256), home+strings.Repeat("/p", 2490)
	all := func(p string) []string { // what every operation says about p
		return []string{"read " + p, "write " + p, "stat " + p, "list " + p, "mkdir " + p, "move " + p + " " + home + "/x", "move " + home + "/file " + p, "remove " + p, "rmtree " + p, "watch " + p}
	}
	return []trouble{
		{"nothing is there", sandbox.KindNotFound, []string{"read /home/user/none", "stat /home/user/none", "list /home/user/none", "move /home/user/none /home/user/x", "watch /home/user/none"}, true},
		{"nothing is there to remove", sandbox.KindNotFound, []string{"remove /home/user/none", "rmtree /home/user/none"}, false},
		{"the name is taken", sandbox.KindExists, []string{"move /home/user/file /home/user/taken", "move /home/user/full /home/user/taken"}, true},
		{"a directory, where a file is needed", sandbox.KindIsDirectory, []string{"read /home/user/taken", "write /home/user/taken"}, true},
		{"a file, where a directory is needed", sandbox.KindNotDirectory, append(all(home+"/file/x"), "list /home/user/file", "mkdir /home/user/file", "watch /home/user/file"), true},
		{"no permission", sandbox.KindDenied, []string{"read /root/x", "write /etc/x", "list /root", "stat /root/x", "mkdir /etc/x", "move /home/user/file /etc/x", "remove /etc/passwd", "rmtree /etc/passwd", "watch /root"}, true},
		{"a file system that is read-only", sandbox.KindDenied, []string{"root write /usr/bin/x", "root mkdir /usr/bin/x", "root move /usr/bin/env /usr/bin/x", "root remove /usr/bin/env", "root rmtree /usr/bin/env"}, true},
		{"the disk is full", sandbox.KindNoSpace, []string{"fill /home/user/big"}, true},
		{"a name of more than 255 bytes", sandbox.KindInvalid, all(name), true},
		{"a path of more than 4095 bytes", sandbox.KindInvalid, all(path), true},
		{"no path: a NUL byte in it", sandbox.KindInvalid, all(home + "/a\x00b"), true},
		{"symbolic links in a circle", sandbox.KindInvalid, append(all(home+"/loop/x"), "read /home/user/loop", "write /home/user/loop", "watch /home/user/loop", "list /home/user/loop"), true},
		{"a FIFO, socket or device", sandbox.KindInvalid, []string{"read /home/user/fifo", "write /home/user/fifo", "read /home/user/socket", "write /home/user/socket", "read /dev/zero", "write /dev/null"}, true},
		{"a directory into itself", sandbox.KindInvalid, []string{"move /home/user/full /home/user/full/in/x"}, true},
		{"a directory to another file system", sandbox.KindInvalid, []string{"move /home/user/full /dev/shm/full"}, true},
		{"a mount point, or else in use", sandbox.KindConflict, []string{"root move /dev/shm /dev/x", "root remove /dev/shm", "root rmtree /dev/shm", "root move /usr/bin /x"}, true},
		{"a directory that is not empty", sandbox.KindConflict, []string{"remove /home/user/full"}, false},
		{"a tree that is too large to watch", sandbox.KindTooLarge, []string{"watch /home/user/deep"}, true},
	}
}

// surface does an operation its way.
type surface interface {
	do(ctx context.Context, user, op, path, to string) failure
}

// TestFileErrors provokes everything that goes wrong with files, by every operation
// over every surface: the kind, its codes and what a person is told are those of
// the guide, and nothing tells of the host.
func TestFileErrors(t *testing.T) {
	s := serve(t, "--allow-root")
	s.aboutThisMachine()
	key, err := os.ReadFile(filepath.Join(s.dir, "data/api-key"))
	if err != nil {
		t.Fatal(err)
	}
	own := &ours{t: t, url: s.api, key: strings.TrimSpace(string(key))}
	r := s.create(`{}`)
	own.id = r.SandboxID
	script, _ := json.Marshal(map[string]string{"code": fill, "language_pack": "shell"})
	if code, body := own.call(t.Context(), "POST", "/exec", string(script)); code != 200 || !strings.Contains(body, `"exit_code":0`) {
		t.Fatalf("%d %s", code, body)
	}
	other := &theirs{s: s, r: r, files: filesystemconnect.NewFilesystemClient(http.DefaultClient, s.url, connect.WithProtoJSON())}
	api := &wired{id: own.id, key: own.key, files: firebreakv1connect.NewFileServiceClient(http.DefaultClient, s.api)}
	var table strings.Builder
	table.WriteString("| situation | kind | HTTP | Connect | E2B | hint |\n|---|---|---|---|---|---|\n")
	for _, c := range troubles() {
		var rest, rpc, e2b failure
		for _, op := range c.ops {
			user := ""
			if strings.HasPrefix(op, "root ") {
				user, op = "root", op[5:]
			}
			verb, path, _ := strings.Cut(op, " ")
			path, to, _ := strings.Cut(path, " ")
			for what, via := range map[string]surface{"REST": own, "Connect": api, "E2B": other} {
				if what == "E2B" && !c.e2b {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				f := via.do(ctx, user, verb, path, to)
				cancel()
				at := fmt.Sprintf("%s: %.80s over %s: %+v", c.situation, op, what, f)
				if f == (failure{}) {
					continue // has no such operation, or means something else by it
				}
				if f.kind != c.kind && what != "E2B" || f.message == "" || strings.Contains(f.message+f.hint, s.dir) {
					t.Errorf("%s, want %s", at, c.kind)
				}
				seen := &rest
				switch what {
				case "Connect":
					seen = &rpc
				case "E2B":
					seen = &e2b
				}
				if what != "E2B" && f.hint == "" || seen.status != 0 && f.status != 0 && seen.status != f.status ||
					seen.code != 0 && f.code != 0 && seen.code != f.code || seen.hint != "" && what != "E2B" && seen.hint != f.hint {
					t.Errorf("%s, and %+v", at, *seen)
				}
				if f.status == 0 {
					f.status = seen.status
				}
				if f.code == 0 {
					f.code = seen.code
				}
				*seen = f
			}
		}
		if rest.hint != rpc.hint {
			t.Errorf("%s: over REST %q, over Connect %q", c.situation, rest.hint, rpc.hint)
		}
		foreign := "no error"
		if c.e2b {
			foreign = ""
			if e2b.code != 0 {
				foreign = "`" + e2b.code.String() + "`"
			}
			if e2b.status != 0 {
				foreign = strings.TrimPrefix(foreign+fmt.Sprintf(", %d", e2b.status), ", ")
			}
		}
		fmt.Fprintf(&table, "| %s | `%s` | %d | `%s` | %s | %s |\n", c.situation, c.kind, rest.status, rpc.code, foreign, rest.hint)
	}
	inGuide(t, table.String())
}

// inGuide compares the table with the guide's, which -update writes.
func inGuide(t *testing.T, table string) {
	t.Helper()
	const guide, begin, end = "../../../docs/guides/files.md", "<!-- errors -->\n", "<!-- /errors -->"
	b, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", guide)
	}
	switch {
	case old == table:
	case *update && !t.Failed():
		if err := os.WriteFile(guide, []byte(head+begin+table+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s says\n%s\nwhat happens is\n%s", guide, old, table)
	}
}

// plenty is more than a disk holds, as a body.
type plenty struct{}

func (plenty) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// content is what an operation writes.
func content(op string) io.Reader {
	if op == "fill" {
		return io.LimitReader(plenty{}, 4<<30)
	}
	return strings.NewReader("x")
}

// ours is REST.
type ours struct {
	t            *testing.T
	url, key, id string
}

func (o *ours) call(ctx context.Context, method, path, body string) (int, string) {
	return o.send(ctx, method, path, strings.NewReader(body))
}

func (o *ours) send(ctx context.Context, method, path string, body io.Reader) (int, string) {
	o.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, o.url+"/v1/sandboxes/"+o.id+path, body)
	if err != nil {
		o.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+o.key)
	return exchanged(o.t, req)
}

// exchanged sends req and returns the answer, of a stream its first piece.
func exchanged(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Errorf("%s %.100s: %v", req.Method, req.URL, err)
		return 0, ""
	}
	defer res.Body.Close()
	b := make([]byte, 64<<10)
	n, _ := io.ReadAtLeast(res.Body, b, 1)
	return res.StatusCode, string(b[:n])
}

func (o *ours) do(ctx context.Context, user, op, path, to string) failure {
	q := url.Values{"path": {path}, "user": {user}}
	in, _ := json.Marshal(map[string]string{"path": path, "user": user})
	var status int
	var body string
	switch op {
	case "read":
		status, body = o.call(ctx, "GET", "/files?"+q.Encode(), "")
	case "write", "fill":
		status, body = o.send(ctx, "PUT", "/files?"+q.Encode(), content(op))
	case "stat", "list", "watch":
		if op == "watch" {
			q.Set("recursive", "true")
		}
		status, body = o.call(ctx, "GET", "/files/"+op+"?"+q.Encode(), "")
	case "mkdir":
		status, body = o.call(ctx, "POST", "/files/mkdir", string(in))
	case "move":
		in, _ = json.Marshal(map[string]string{"from": path, "to": to, "user": user})
		status, body = o.call(ctx, "POST", "/files/move", string(in))
	case "remove", "rmtree":
		q.Set("recursive", fmt.Sprint(op == "rmtree"))
		status, body = o.call(ctx, "DELETE", "/files?"+q.Encode(), "")
	}
	var e struct {
		Error struct {
			Kind          sandbox.Kind
			Message, Hint string
		}
	}
	if _, data, ok := strings.Cut(body, "data: "); ok {
		body = data
	}
	if err := json.NewDecoder(strings.NewReader(body)).Decode(&e); err != nil || e.Error.Kind == "" {
		return failure{status: status, message: body}
	}
	return failure{status: status, kind: e.Error.Kind, message: e.Error.Message, hint: e.Error.Hint}
}

// wired is Connect.
type wired struct {
	id, key string
	files   firebreakv1connect.FileServiceClient
}

// request is a request with the key.
func request[T any](w *wired, msg *T) *connect.Request[T] {
	r := connect.NewRequest(msg)
	r.Header().Set("Authorization", "Bearer "+w.key)
	return r
}

func (w *wired) do(ctx context.Context, user, op, path, to string) failure {
	var err error
	switch op {
	case "read":
		in, e := w.files.ReadFile(ctx, request(w, &v1.ReadFileRequest{Id: w.id, Path: path, User: user}))
		if err = e; e == nil {
			in.Receive()
			err = in.Err()
			in.Close()
		}
	case "write", "fill":
		out := w.files.WriteFile(ctx)
		out.RequestHeader().Set("Authorization", "Bearer "+w.key)
		b, r := make([]byte, 1<<20), content(op)
		msg := &v1.WriteFileRequest{Id: w.id, Path: path, User: user}
		for err == nil {
			n, e := r.Read(b)
			if e != nil {
				break
			}
			msg.Data = b[:n]
			err = out.Send(msg)
			msg = &v1.WriteFileRequest{}
		}
		_, err = out.CloseAndReceive()
	case "stat":
		_, err = w.files.StatFile(ctx, request(w, &v1.StatFileRequest{Id: w.id, Path: path, User: user}))
	case "list":
		_, err = w.files.ListFiles(ctx, request(w, &v1.ListFilesRequest{Id: w.id, Path: path, User: user}))
	case "watch":
		in, e := w.files.WatchFiles(ctx, request(w, &v1.WatchFilesRequest{Id: w.id, Path: path, User: user, Recursive: true}))
		if err = e; e == nil {
			in.Receive()
			err = in.Err()
			in.Close()
		}
	case "mkdir":
		_, err = w.files.MakeDirectory(ctx, request(w, &v1.MakeDirectoryRequest{Id: w.id, Path: path, User: user}))
	case "move":
		_, err = w.files.MoveFile(ctx, request(w, &v1.MoveFileRequest{Id: w.id, From: path, To: to, User: user}))
	case "remove", "rmtree":
		_, err = w.files.RemoveFile(ctx, request(w, &v1.RemoveFileRequest{Id: w.id, Path: path, User: user, Recursive: op == "rmtree"}))
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return failure{message: fmt.Sprint(err)}
	}
	f := failure{code: ce.Code(), message: ce.Message()}
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if e, ok := v.(*v1.ErrorDetail); ok {
				f.kind, f.hint = sandbox.Kind(e.GetKind()), e.GetHint()
			}
		}
	}
	return f
}

// theirs is E2B's wire.
type theirs struct {
	s     *server
	r     reach
	files filesystemconnect.FilesystemClient
}

func (h *theirs) head(user string, head http.Header) {
	head.Set("E2b-Sandbox-Id", h.r.SandboxID)
	head.Set("E2b-Sandbox-Port", "49983")
	head.Set("X-Access-Token", h.r.EnvdAccessToken)
	if user != "" {
		head.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

func foreign[T any](h *theirs, user string, msg *T) *connect.Request[T] {
	r := connect.NewRequest(msg)
	h.head(user, r.Header())
	return r
}

func (h *theirs) do(ctx context.Context, user, op, path, to string) failure {
	var err error
	switch op {
	case "read", "write", "fill":
		method, in := "GET", io.Reader(nil)
		if op != "read" {
			method, in = "POST", content(op)
		}
		req, err := http.NewRequestWithContext(ctx, method, h.s.url+"/files?"+url.Values{"path": {path}}.Encode(), in)
		if err != nil {
			h.s.t.Fatal(err)
		}
		h.head(user, req.Header)
		if op != "read" {
			req.Header.Set("Content-Type", "application/octet-stream")
		}
		status, body := exchanged(h.s.t, req)
		var e struct{ Message string }
		_ = json.Unmarshal([]byte(body), &e)
		return failure{status: status, message: e.Message}
	case "stat":
		_, err = h.files.Stat(ctx, foreign(h, user, &filesystem.StatRequest{Path: path}))
	case "list":
		_, err = h.files.ListDir(ctx, foreign(h, user, &filesystem.ListDirRequest{Path: path, Depth: 1}))
	case "watch":
		in, e := h.files.WatchDir(ctx, foreign(h, user, &filesystem.WatchDirRequest{Path: path, Recursive: true}))
		if err = e; e == nil {
			in.Receive()
			err = in.Err()
			in.Close()
		}
	case "mkdir":
		_, err = h.files.MakeDir(ctx, foreign(h, user, &filesystem.MakeDirRequest{Path: path}))
	case "move":
		_, err = h.files.Move(ctx, foreign(h, user, &filesystem.MoveRequest{Source: path, Destination: to}))
	case "rmtree":
		_, err = h.files.Remove(ctx, foreign(h, user, &filesystem.RemoveRequest{Path: path}))
	default:
		return failure{}
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return failure{message: fmt.Sprint(err)}
	}
	return failure{code: ce.Code(), message: ce.Message()}
}
