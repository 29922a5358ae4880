package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/sandbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTarget(t *testing.T) {
	for url, want := range map[string]string{
		"http://127.0.0.1:7878": "http://127.0.0.1:7878", "https://h/base/": "https://h/base", "unix:///run/x.sock": "http://firebreak",
	} {
		base, dial, err := target(Options{URL: url})
		if err != nil || base != want || (dial != nil) != (url[:4] == "unix") {
			t.Errorf("%s: %q, %v", url, base, err)
		}
	}
	for _, url := range []string{"", "127.0.0.1:7878", "ftp://h", "http://", "unix://rel/path", "unix:", "http://u:p@h", "http://h?x=1", "http://h#f", "http://h:port:x"} {
		if _, err := New(Options{URL: url}); sandbox.KindOf(err) != sandbox.KindInvalid {
			t.Errorf("%q: %v; want invalid", url, err)
		}
	}
}

func TestMillis(t *testing.T) {
	if millis(0) != nil || *millis(Never) != 0 || *millis(time.Microsecond) != 1 || *millis(2 * time.Second) != 2000 {
		t.Error("durations are mapped wrongly")
	}
}

// runs is a server whose WatchRun breaks and whose other calls a test scripts.
type runs struct {
	firebreakv1connect.UnimplementedRunServiceHandler
	watch func(ctx context.Context, after int64, s *connect.ServerStream[v1.Event]) error
	get   func() (*v1.Run, error)
}

func (r *runs) WatchRun(ctx context.Context, req *connect.Request[v1.WatchRunRequest], s *connect.ServerStream[v1.Event]) error {
	return r.watch(ctx, req.Msg.GetAfterId(), s)
}

func (r *runs) GetRun(context.Context, *connect.Request[v1.GetRunRequest]) (*connect.Response[v1.Run], error) {
	run, err := r.get()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(run), nil
}

func serveRuns(t *testing.T, r *runs) *Client {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(firebreakv1connect.NewRunServiceHandler(r))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	c, err := New(Options{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestWatchResumes: whatever breaks the connection, every event is seen once,
// in order.
func TestWatchResumes(t *testing.T) {
	var calls []int64
	c := serveRuns(t, &runs{watch: func(_ context.Context, after int64, s *connect.ServerStream[v1.Event]) error {
		calls = append(calls, after)
		for id := max(1, after); id <= 6; id++ { // repeats the last one seen, as a careless server may
			if err := s.Send(&v1.Event{Id: id, Type: "stdout", Text: "x"}); err != nil {
				return err
			}
			if id%2 == 0 && id > after && id < 6 {
				return connect.NewError(connect.CodeUnavailable, errors.New("going away"))
			}
		}
		return nil
	}})
	var got []int64
	for e, err := range c.WatchRun(context.Background(), "rn", 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.GetId())
	}
	if len(got) != 6 || got[0] != 1 || got[5] != 6 {
		t.Errorf("events %v", got)
	}
	if len(calls) != 3 || calls[1] != 2 || calls[2] != 4 {
		t.Errorf("opened after %v", calls)
	}
}

// TestWatchDoesNotRetryRefusals: an error that is an answer ends the stream.
func TestWatchDoesNotRetryRefusals(t *testing.T) {
	calls := 0
	c := serveRuns(t, &runs{watch: func(context.Context, int64, *connect.ServerStream[v1.Event]) error {
		calls++
		return connect.NewError(connect.CodeNotFound, errors.New("no such run"))
	}})
	var last error
	for _, err := range c.WatchRun(context.Background(), "rn", 0) {
		last = err
	}
	if sandbox.KindOf(last) != sandbox.KindNotFound || calls != 1 {
		t.Errorf("%v after %d calls", last, calls)
	}
}

// TestErrorDetail: the server's error comes back whole.
func TestErrorDetail(t *testing.T) {
	c := serveRuns(t, &runs{get: func() (*v1.Run, error) {
		e := connect.NewError(connect.CodeResourceExhausted, errors.New("full"))
		d, err := connect.NewErrorDetail(proto.Message(&v1.ErrorDetail{
			Kind: "capacity", Message: "the host is full", Hint: "wait", Op: "create", Id: "sbx", RetryAfterMs: 1500}))
		if err != nil {
			return nil, err
		}
		e.AddDetail(d)
		return nil, e
	}})
	_, err := c.GetRun(context.Background(), "rn", 0)
	var se *sandbox.Error
	if !errors.As(err, &se) || se.Kind != sandbox.KindCapacity || se.Hint != "wait" || se.Op != "create" || se.ID != "sbx" ||
		se.RetryAfter != 1500*time.Millisecond || se.Message() != "the host is full" {
		t.Errorf("%#v", err)
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c, err := New(Options{URL: "http://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	var se *sandbox.Error
	if _, err := c.Templates(context.Background()); !errors.As(err, &se) || se.Kind != sandbox.KindUnavailable || se.Hint == "" {
		t.Errorf("unary: %v", err)
	}
	if _, err := c.Sandbox("sb").Exec(context.Background(), Command{Code: "1"}, nil, nil); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("stream: %v", err)
	}
	if err := c.Healthy(context.Background()); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Errorf("REST: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Templates(ctx); sandbox.KindOf(err) != sandbox.KindCanceled {
		t.Errorf("cancelled: %v", err)
	}
}

// TestFromREST: our errors and those of whatever stands between.
func TestFromREST(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		kind   sandbox.Kind
	}{
		{404, `{"error":{"kind":"not_found","message":"no such file","hint":"h","op":"read","id":"sb"}}`, sandbox.KindNotFound},
		{502, "<html>bad gateway</html>", sandbox.KindUnavailable},
		{413, "", sandbox.KindTooLarge},
		{500, `{"error":"odd"}`, sandbox.KindInternal},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		cl, err := New(Options{URL: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		_, err = cl.Sandbox("sb").ReadFile(context.Background(), "x", io.Discard)
		if sandbox.KindOf(err) != c.kind {
			t.Errorf("%d %s: %v; want %s", c.status, c.body, err, c.kind)
		}
		cl.Close()
		srv.Close()
	}
}
