package server

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

const sseAccept = "text/event-stream"

func TestExecStream(t *testing.T) {
	w := start(t, &fake{})
	a := w.do("POST", "/v1/sandboxes/x/exec", `{"code":"1"}`, "Accept", sseAccept)
	want := "id: 4\nevent: started\ndata: {\"pid\":7}\n\n" +
		"event: stdout\ndata: {\"text\":\"42\\n\",\"data\":\"\"}\n\n" +
		"event: exit\ndata: {\"exit_code\":0,\"duration_ms\":13,\"reason\":\"done\",\"detail\":\"\",\"result\":{\"ok\":1}}\n\n"
	if a.body != want || a.header.Get("Content-Type") != sseAccept {
		t.Errorf("got %s", a.body)
	}
	a = w.do("POST", "/v1/sandboxes/x/exec", `{"code":"1"}`, "Accept", "application/x-ndjson")
	want = "{\"started\":{\"pid\":7},\"id\":4}\n{\"stdout\":{\"text\":\"42\\n\",\"data\":\"\"},\"id\":0}\n" +
		"{\"exit\":{\"exit_code\":0,\"duration_ms\":13,\"reason\":\"done\",\"detail\":\"\",\"result\":{\"ok\":1}},\"id\":0}\n"
	if a.body != want {
		t.Errorf("got %s", a.body)
	}
	w.do("POST", "/v1/templates", `{"name":"python"}`, "Accept", sseAccept).want(t, 200, "event: progress\n", "event: template\n")
	w.do("POST", "/v1/sandboxes/x/exec", `{}`, "Accept", sseAccept).want(t, 400, `"kind":"invalid"`)
}

// TestExecOutput: what is kept of a program's output, and how.
func TestExecOutput(t *testing.T) {
	data := func(b string) *v1.ExecEvent {
		return &v1.ExecEvent{Event: &v1.ExecEvent_Stdout{Stdout: &v1.Output{Data: []byte(b)}}}
	}
	f := &fake{}
	w := start(t, f)
	for _, c := range []struct {
		name, limit string
		events      []*v1.ExecEvent
		want        string
	}{
		{"invalid UTF-8", "0", []*v1.ExecEvent{out("a"), data("\xff\x00")}, `"stdout":"a�\u0000"` + "|" + `"stdout_data":"Yf8A"`},
		{"a character in two events", "0", []*v1.ExecEvent{data("\xc3"), data("\xbc")}, `"stdout":"ü"|"stdout_data":""`},
		{"cut", "3", []*v1.ExecEvent{out("ab"), out("cd")}, `"stdout":"abc"|"stdout_truncated":true`},
		{"cut in a character", "2", []*v1.ExecEvent{out("aü")}, `"stdout":"a"|"stdout_truncated":true|"stdout_data":""`},
		{"exactly full", "2", []*v1.ExecEvent{out("ab")}, `"stdout":"ab"|"stdout_truncated":false`},
	} {
		f.exec = func(_ context.Context, _ *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
			return sendAll(send, append(c.events, exit(&v1.ProcessExit{ResultJson: "{\"broken\":"}))...)
		}
		a := w.do("POST", "/v1/sandboxes/x/exec", `{"code":"1","max_output_bytes":`+c.limit+`}`)
		a.want(t, 200, append(strings.Split(c.want, "|"), `"result":null`)...)
	}
	f.exec = func(context.Context, *v1.ExecRequest, func(*v1.ExecEvent) error) error { return nil }
	w.do("POST", "/v1/sandboxes/x/exec", `{"code":"1"}`).want(t, 500, "without an exit")
}

// TestEndlessOutput: a program that never stops printing costs no memory.
func TestEndlessOutput(t *testing.T) {
	var b budget
	a := newExecAggregator(&b, &v1.ExecRequest{MaxOutputBytes: 1000}).(*execAggregator)
	chunk := out(strings.Repeat("x", 700))
	for range 100_000 {
		a.add(chunk)
	}
	if c := cap(a.stdout.buf); c > 4096 {
		t.Errorf("holds %d bytes", c)
	}
}

// TestOutputBudget: execs together hold no more than the server allows, a small
// output is whole whatever the others do, and everything is given back.
func TestOutputBudget(t *testing.T) {
	var b budget
	b.left.Store(1 << 20)
	req := &v1.ExecRequest{}
	big, small := newExecAggregator(&b, req).(*execAggregator), newExecAggregator(&b, req).(*execAggregator)
	for range 100 {
		big.add(out(strings.Repeat("x", 50_000)))
	}
	small.add(out(strings.Repeat("y", freeOutput)))
	if n := len(big.stdout.buf); !big.stdout.truncated || n > 1<<20+freeOutput || n < 1<<20 {
		t.Errorf("the big one holds %d bytes", n)
	}
	if len(small.stdout.buf) != freeOutput || small.stdout.truncated {
		t.Errorf("the small one holds %d bytes", len(small.stdout.buf))
	}
	small.add(out("z"))
	small.add(out("")) // no harm
	if !small.stdout.truncated {
		t.Error("a gap is not told")
	}
	big.release()
	small.release()
	if b.left.Load() != 1<<20 {
		t.Errorf("%d of the budget are left", b.left.Load())
	}
}

// TestLargeAnswer: an answer in pieces reads as the same document in one.
func TestLargeAnswer(t *testing.T) {
	text := strings.Repeat("ü\"\x00\n€", 300_000)
	binary := strings.Repeat("\xff\x00ab", 300_001)
	f := &fake{}
	w := start(t, f)
	for _, s := range []string{text, binary} {
		f.exec = func(_ context.Context, _ *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
			for part := range slices.Chunk([]byte(s), 99_991) {
				if err := send(&v1.ExecEvent{Event: &v1.ExecEvent_Stdout{Stdout: &v1.Output{Data: part}}}); err != nil {
					return err
				}
			}
			return send(exit(&v1.ProcessExit{ResultJson: "[1]"}))
		}
		a := w.do("POST", "/v1/sandboxes/x/exec", `{"code":"1"}`)
		want := &v1.ExecResponse{Stdout: s, ResultJson: "[1]"}
		if s == binary {
			want.Stdout, want.StdoutData = strings.ToValidUTF8(s, "\ufffd"), []byte(s)
		}
		if a.status != 200 || a.body != string(appendMessage(nil, want))+"\n" {
			t.Errorf("%d, %d bytes", a.status, len(a.body))
		}
	}
	if left := w.srv.output.left.Load(); left != maxOutput {
		t.Errorf("%d of the budget are missing", maxOutput-left)
	}
}

// TestStalledReader: who stops reading a stream is dropped, and the operation
// with him.
func TestStalledReader(t *testing.T) {
	ended := make(chan error, 1)
	f := &fake{exec: func(ctx context.Context, _ *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
		for {
			if err := send(out(strings.Repeat("x", 64<<10))); err != nil {
				ended <- err
				return err
			}
		}
	}}
	w := start(t, f)
	w.srv.stall = 200 * time.Millisecond
	for _, request := range []string{
		"POST /v1/sandboxes/x/exec HTTP/1.1\r\nAccept: text/event-stream\r\nContent-Length: 12\r\n",
		"POST /firebreak.v1.SandboxService/Exec HTTP/1.1\r\nContent-Type: application/connect+json\r\nContent-Length: 26\r\n",
	} {
		body := `{"code":"1"}`
		if strings.Contains(request, "connect") {
			body = "\x00\x00\x00\x00\x15" + `{"id":"x","code":"1"}`
		}
		c := rawConn(t, w.addr)
		c.Write([]byte(request + "Host: localhost\r\nAuthorization: Bearer all\r\n\r\n" + body))
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("nobody reads and the operation goes on: %s", request)
		}
		c.Close()
	}
}

func TestEventsResume(t *testing.T) {
	w := start(t, &fake{})
	event := func(id string) string {
		return "id: " + id + "\nevent: stdout\ndata: {\"id\":" + id + ",\"type\":\"stdout\",\"pid\":0,\"text\":\"line\\n\",\"data\":\"\",\"state\":\"\",\"reason\":\"\",\"detail\":\"\"}\n\n"
	}
	path := "/v1/sandboxes/x/events"
	if a := w.do("GET", path, ""); a.body != event("1")+event("2")+event("3") {
		t.Errorf("all: %s", a.body)
	}
	if a := w.do("GET", path, "", "Last-Event-ID", "2"); a.body != event("3") {
		t.Errorf("resumed: %s", a.body)
	}
	if a := w.do("GET", path+"?after_id=1", ""); a.body != event("2")+event("3") {
		t.Errorf("by query: %s", a.body)
	}
	if a := w.do("GET", path+"?after_id=1", "", "Last-Event-ID", "2"); a.body != event("3") {
		t.Errorf("the header wins: %s", a.body)
	}
	if a := w.do("GET", path, "", "Last-Event-ID", "3"); a.status != 204 {
		t.Errorf("nothing left: %d, and a browser would come again for ever", a.status)
	}
	w.do("GET", path, "", "Last-Event-ID", "x").want(t, 400, "Last-Event-ID")
	if a := w.do("GET", "/v1/runs/rn1/events", "", "Accept", "application/x-ndjson"); strings.Count(a.body, "\n") != 3 || strings.Contains(a.body, "id: ") {
		t.Errorf("ndjson: %s", a.body)
	}
}

func TestEventStreamErrors(t *testing.T) {
	f := &fake{}
	w := start(t, f)
	gone := sandbox.Errorf("watch", sandbox.KindGone, "it ended")
	f.watch = func(context.Context, *v1.WatchEventsRequest, func(*v1.Event) error) error { return gone }
	w.do("GET", "/v1/sandboxes/x/events", "").want(t, 410, `"kind":"gone"`)
	f.watch = func(_ context.Context, _ *v1.WatchEventsRequest, send func(*v1.Event) error) error {
		send(&v1.Event{Id: 1, Type: "state\ndata: forged"})
		return gone
	}
	a := w.do("GET", "/v1/sandboxes/x/events", "")
	if !strings.HasSuffix(a.body, "event: error\ndata: {\"error\":{\"kind\":\"gone\",\"message\":\"it ended\",\"hint\":\"\",\"op\":\"watch\",\"id\":\"\"}}\n\n") || a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if strings.Contains(a.body, "\ndata: forged") {
		t.Error("an event's type can forge lines")
	}
}

// TestHeartbeat: silence is told from death.
func TestHeartbeat(t *testing.T) {
	release := make(chan struct{})
	f := &fake{watch: func(ctx context.Context, _ *v1.WatchEventsRequest, send func(*v1.Event) error) error {
		select {
		case <-release:
			return send(&v1.Event{Id: 1, Type: "state"})
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	w := start(t, f)
	w.srv.heartbeat = 20 * time.Millisecond
	req, _ := http.NewRequest("GET", "http://"+w.addr+"/v1/sandboxes/x/events", nil)
	req.Header.Set("Authorization", "Bearer all")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	r := bufio.NewReader(res.Body)
	for range 6 { // three comments, each with its empty line
		if line, err := r.ReadString('\n'); err != nil || strings.TrimSpace(line) != "" && !strings.HasPrefix(line, ":") {
			t.Fatalf("%q %v", line, err)
		}
	}
	close(release)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal("no event after the heartbeats")
		}
		if strings.HasPrefix(line, "id: 1") {
			return
		}
	}
}

// TestShutdown: streams that never end are told to, an exec may finish, and one
// that does not is cancelled when the time is up.
func TestShutdown(t *testing.T) {
	f := &fake{}
	entered := make(chan string, 3)
	f.watch = func(ctx context.Context, _ *v1.WatchEventsRequest, send func(*v1.Event) error) error {
		send(&v1.Event{Id: 1, Type: "state"})
		entered <- "watch"
		<-ctx.Done()
		return ctx.Err()
	}
	f.exec = func(ctx context.Context, r *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
		entered <- "exec"
		if r.GetCode() == "endless" {
			<-ctx.Done()
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return errors.New("cancelled too early")
		case <-time.After(100 * time.Millisecond):
		}
		return send(exit(&v1.ProcessExit{Reason: "done"}))
	}
	w := start(t, f)
	watch, short, endless := make(chan answer, 1), make(chan answer, 1), make(chan answer, 1)
	go func() { watch <- w.do("GET", "/v1/sandboxes/x/events", "") }()
	go func() { short <- w.do("POST", "/v1/sandboxes/x/exec", `{"code":"short"}`) }()
	go func() { endless <- w.do("POST", "/v1/sandboxes/x/exec", `{"code":"endless"}`) }()
	for range 3 {
		<-entered
	}
	began := time.Now()
	w.stop()
	(<-watch).want(t, 200, "event: error", `"kind":"unavailable"`)
	if time.Since(began) > 200*time.Millisecond {
		t.Error("the event stream held the shutdown up")
	}
	(<-short).want(t, 200, `"reason":"done"`)
	(<-endless).want(t, 503, `"kind":"unavailable"`, "shutting down")
	if err := <-w.ended; err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("Serve: %v after %v", err, time.Since(began))
	}
	w.ended <- nil // for the clean-up
}
