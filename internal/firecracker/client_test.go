package firecracker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/firecracker/fake"
)

var ordinary = Machine{
	CPUs: 1, MemoryMiB: 256, Kernel: "/kernel", Initial: "/initial", Arguments: "quiet",
	Drives: []Drive{{ID: "root", Path: "/root.img", Readonly: true}, {ID: "runtime", Path: "/runtime.img", Readonly: true, Rate: RateLimiter{Ops: PerSecond(5)}},
		{ID: "disk", Path: "/disk", Rate: RateLimiter{PerSecond(1 << 20), PerSecond(1000)}}},
	CID: 3, VSock: VSockSocket,
}

// serve serves p on a socket of its own.
func serve(t *testing.T, p *fake.Process) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(p)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return New(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", path) })
}

// TestLife: everything is asked for in an order and a form that Firecracker takes.
func TestLife(t *testing.T) {
	ctx := t.Context()
	f := fake.New("1.17.0-dev")
	c := serve(t, f)
	if v, err := c.Version(ctx); err != nil || Supported(v) != nil {
		t.Fatalf("version %q, %v", v, err)
	}
	for what, call := range map[string]func(context.Context) error{"pause": c.Pause, "start": c.Start} {
		var fault *Fault
		if err := call(ctx); !errors.As(err, &fault) || fault.Status != 400 || fault.Message == "" {
			t.Errorf("%s of what is not configured: %v", what, err)
		}
	}
	steps := []func() error{
		func() error { return c.Configure(ctx, ordinary) },
		func() error { return c.Start(ctx) },
		func() error { return c.Pause(ctx) },
		func() error { return c.Pause(ctx) },
		func() error { return c.CreateSnapshot(ctx, "/state", "/memory") },
		func() error { return c.Resume(ctx) },
	}
	for k, s := range steps {
		if err := s(); err != nil {
			t.Fatalf("step %d: %v", k, err)
		}
	}
	if i, err := c.Instance(ctx); err != nil || i.State != "Running" {
		t.Errorf("after a resume: %+v, %v", i, err)
	}
	want := []string{"GET /version", "PUT /machine-config", "PUT /boot-source", "PUT /drives/{drive_id}", "PUT /drives/{drive_id}",
		"PUT /drives/{drive_id}", "PUT /vsock", "PUT /actions", "PATCH /vm", "PATCH /vm", "PUT /snapshot/create", "PATCH /vm", "GET /"}
	if got := f.Calls(); !slices.Equal(got, want) {
		t.Errorf("calls\n%q, want\n%q", got, want)
	}
	var fault *Fault
	if err := c.Configure(ctx, ordinary); !errors.As(err, &fault) || !strings.Contains(fault.Message, "after starting") {
		t.Errorf("a running machine was configured: %v", err)
	}
	if err := c.CreateSnapshot(ctx, "/s", "/m"); !errors.As(err, &fault) || !strings.Contains(fault.Message, "state") {
		t.Errorf("a snapshot of a running machine: %v", err)
	}

	// The snapshot, in a fresh process; a configured one takes none.
	d := serve(t, f.Successor())
	if err := d.LoadSnapshot(ctx, "/state", "/memory", true); err != nil {
		t.Fatal(err)
	}
	if i, err := d.Instance(ctx); err != nil || i.State != "Running" {
		t.Errorf("after a load: %+v, %v", i, err)
	}
	e := serve(t, f.Successor())
	if err := errors.Join(e.Configure(ctx, ordinary), e.LoadSnapshot(ctx, "/state", "/memory", true)); !errors.As(err, &fault) {
		t.Errorf("a snapshot was loaded into a configured process: %v", err)
	}
}

// TestNIC: a network device is asked for before the start, in a form Firecracker
// takes, and a machine without one asks for none.
func TestNIC(t *testing.T) {
	f := fake.New("1.17.0-dev")
	var got map[string]any
	f.Started = func(configured map[string]map[string]any) { got = configured["PUT /network-interfaces/wire"] }
	c, m := serve(t, f), ordinary
	m.NICs = []NIC{{ID: "wire", Device: "vm0", MAC: "02:00:00:00:00:02"}}
	if err := errors.Join(c.Configure(t.Context(), m), c.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got["iface_id"] != "wire" || got["host_dev_name"] != "vm0" || got["guest_mac"] != "02:00:00:00:00:02" || len(got) != 3 {
		t.Errorf("configured %v", got)
	}
	f = fake.New("1.17.0-dev")
	if err := serve(t, f).Configure(t.Context(), ordinary); err != nil || slices.Contains(f.Calls(), "PUT /network-interfaces/{iface_id}") {
		t.Errorf("a machine without a network: %q, %v", f.Calls(), err)
	}
}

// TestRefused: what the table forbids is refused by the fake, so that what passes
// TestLife was held against something.
func TestRefused(t *testing.T) {
	c := serve(t, fake.New("1.13.1"))
	for what, m := range map[string]func(*Machine){
		"no processor":  func(m *Machine) { m.CPUs = 0 },
		"too many":      func(m *Machine) { m.CPUs = 33 },
		"the host's id": func(m *Machine) { m.CID = 2 },
	} {
		change := ordinary
		m(&change)
		var fault *Fault
		if err := c.Configure(t.Context(), change); !errors.As(err, &fault) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, body := range []any{map[string]any{"kernel_image_path": "/k", "unknown": 1}, map[string]any{}, map[string]any{"kernel_image_path": 7}} {
		if err := c.call(t.Context(), http.MethodPut, "/boot-source", body, nil); err == nil {
			t.Errorf("%v was taken", body)
		}
	}
}

// TestHostileAnswers: a process that a guest has taken over gets an error, in time.
func TestHostileAnswers(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://169.254.169.254/", 302) },
		"no json":  func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{") },
		"escapes": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "\x1b[2J\r\n"+strings.Repeat("x", 4000), 500)
		},
		"hangs up":  func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
		"no answer": func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(answer)
			defer s.Close()
			defer s.CloseClientConnections()
			c := New(func(ctx context.Context) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", s.Listener.Addr().String())
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if name == "no answer" {
				time.AfterFunc(50*time.Millisecond, cancel)
			}
			defer cancel()
			_, err := c.Version(ctx)
			if err == nil {
				t.Fatal("taken for an answer")
			}
			if strings.ContainsAny(err.Error(), "\x1b\r\n") || len(err.Error()) > 700 {
				t.Errorf("the error carries what was sent: %q", err)
			}
		})
	}
}

func TestConnect(t *testing.T) {
	for _, c := range []struct {
		answer string
		ok     bool
		rest   string
	}{
		{"OK 1073741824\nhello", true, "hello"},
		{"OK 1\n", true, ""},
		{"", false, ""}, // nobody listens: the connection is closed
		{"OK \n", false, ""},
		{"NO 5\n", false, ""},
		{"OK -1\n", false, ""},
		{strings.Repeat("O", 4000), false, ""},
	} {
		ours, theirs := net.Pipe()
		got := make(chan string, 1)
		go func() {
			buf := make([]byte, 64)
			n, _ := theirs.Read(buf)
			got <- string(buf[:n])
			io.WriteString(theirs, c.answer)
			theirs.Close()
		}()
		err := Connect(t.Context(), ours, 1024)
		if (err == nil) != c.ok {
			t.Errorf("%.20q: %v", c.answer, err)
		}
		if req := <-got; req != "CONNECT 1024\n" {
			t.Errorf("asked %q", req)
		}
		if c.ok {
			if rest, _ := io.ReadAll(ours); string(rest) != c.rest {
				t.Errorf("behind the handshake came %q, want %q", rest, c.rest)
			}
		}
		ours.Close()
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go io.Copy(io.Discard, theirs) // who never answers
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Connect(ctx, ours, 1); err == nil {
		t.Error("silence was taken for an answer")
	}
}

func TestSupported(t *testing.T) {
	for v, want := range map[string]bool{"1.8.0": true, "v1.13.1": true, "1.17.0-dev": true,
		"1.7.0": false, "0.25.2": false, "2.0.0": false, "": false, "1": false, "x.y": false} {
		if err := Supported(v); (err == nil) != want {
			t.Errorf("%q: %v", v, err)
		}
	}
}

func TestJail(t *testing.T) {
	j := Jail{Base: "/d/in1/jail", Firecracker: "/usr/bin/firecracker-v1.13", ID: "in1", User: 7}
	if err := j.Validate(); err != nil {
		t.Fatal(err)
	}
	if j.Root() != "/d/in1/jail/firecracker-v1.13/in1/root" {
		t.Errorf("root %s", j.Root())
	}
	want := "--id in1 --exec-file /usr/bin/firecracker-v1.13 --uid 7 --gid 7 --chroot-base-dir /d/in1/jail --resource-limit no-file=256 -- --api-sock /api.sock --level Error"
	wired := j
	wired.NetNS = "/wires/in1"
	if got := strings.Join(wired.Args(), " "); got != strings.Replace(want, " -- ", " --netns /wires/in1 -- ", 1) || wired.Validate() != nil {
		t.Errorf("arguments with a network %s", got)
	}
	if got := strings.Join(j.Args(), " "); got != want {
		t.Errorf("args\n%s, want\n%s", got, want)
	}
	for what, change := range map[string]func(*Jail){
		"root":          func(j *Jail) { j.User = 0 },
		"a path":        func(j *Jail) { j.ID = "../x" },
		"no id":         func(j *Jail) { j.ID = "" },
		"relative":      func(j *Jail) { j.Base = "jail" },
		"relative net":  func(j *Jail) { j.NetNS = "wires/in1" },
		"relative exec": func(j *Jail) { j.Firecracker = "firecracker" },
	} {
		bad := j
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s was taken", what)
		}
	}
}
