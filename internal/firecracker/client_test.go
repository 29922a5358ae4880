package firecracker

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
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
	ctx, root := t.Context(), t.TempDir()
	f := fake.New("1.17.0-dev", root)
	f.Memory = func() []byte { return []byte("what the guest knows") }
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
		func() error { return c.CreateSnapshot(ctx, "/state", "/mem") },
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
	if m, err := c.Configured(ctx); err != nil || !reflect.DeepEqual(m, ordinary) {
		t.Errorf("configured as %+v, not %+v (%v)", m, ordinary, err)
	}
	want := []string{"GET /version", "PUT /machine-config", "PUT /boot-source", "PUT /drives/{drive_id}", "PUT /drives/{drive_id}",
		"PUT /drives/{drive_id}", "PUT /vsock", "PUT /actions", "PATCH /vm", "PATCH /vm", "PUT /snapshot/create", "PATCH /vm", "GET /", "GET /vm/config"}
	if got := f.Calls(); !slices.Equal(got, want) {
		t.Errorf("calls\n%q, want\n%q", got, want)
	}
	for name, size := range map[string]int64{"state": 10 << 10, "mem": ordinary.MemoryMiB << 20} {
		if fi, err := os.Stat(filepath.Join(root, name)); err != nil || fi.Size() < size {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	var fault *Fault
	if err := c.Configure(ctx, ordinary); !errors.As(err, &fault) || !strings.Contains(fault.Message, "after starting") {
		t.Errorf("a running machine was configured: %v", err)
	}
	if err := c.CreateSnapshot(ctx, "/s", "/m"); !errors.As(err, &fault) || !strings.Contains(fault.Message, "while running") {
		t.Errorf("a snapshot of a running machine: %v", err)
	}
}

// TestLoad: a snapshot goes on in a process that was never configured, with the drives
// where they were; everything else is refused, and a process that has refused is over.
func TestLoad(t *testing.T) {
	ctx, root := t.Context(), t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"root.img", "runtime.img", "disk"} {
		put(name, "")
	}
	f := fake.New("1.13.1", root)
	f.Memory = func() []byte { return []byte("what the guest knows") }
	c := serve(t, f)
	if err := errors.Join(c.Configure(ctx, ordinary), c.Start(ctx), c.Pause(ctx), c.CreateSnapshot(ctx, "/state", "/mem"), c.Resume(ctx)); err != nil {
		t.Fatal(err)
	}
	for _, resume := range []bool{true, false} {
		var knows []byte
		g := fake.New("1.13.1", root)
		g.Loaded = func(memory []byte) { knows = memory }
		d := serve(t, g)
		if err := d.LoadSnapshot(ctx, "/state", "/mem", resume); err != nil {
			t.Fatal(err)
		}
		if i, err := d.Instance(ctx); err != nil || (i.State == Paused) == resume || string(knows) != "what the guest knows" {
			t.Errorf("after a load: %+v, %v, %q", i, err, knows)
		}
	}
	good, err := os.ReadFile(filepath.Join(root, "state"))
	if err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]struct {
		spoil, mend func()
		version     string
		configured  bool
		says        string
	}{
		"a configured process": {configured: true, says: "not allowed after configuring"},
		"no state": {spoil: func() { os.Remove(filepath.Join(root, "state")) }, mend: func() { put("state", string(good)) },
			says: "No such file or directory (os error 2)"},
		"another bit":           {spoil: func() { put("state", strings.Replace(string(good), "xx", "xy", 1)) }, mend: func() { put("state", string(good)) }, says: "CRC64"},
		"another version":       {version: "1.15.0", says: "Invalid data version: 8.0.0"},
		"less memory":           {spoil: func() { os.Truncate(filepath.Join(root, "mem"), 255<<20) }, mend: func() { os.Truncate(filepath.Join(root, "mem"), 256<<20) }, says: "largest possible file offset"},
		"no disk":               {spoil: func() { os.Remove(filepath.Join(root, "disk")) }, mend: func() { put("disk", "") }, says: "Failed to restore devices"},
		"a socket in its place": {spoil: func() { put("vsock.sock", "") }, mend: func() { os.Remove(filepath.Join(root, "vsock.sock")) }, says: "Address in use"},
	} {
		if s.spoil != nil {
			s.spoil()
		}
		d := serve(t, fake.New(cmp.Or(s.version, "1.13.1"), root))
		if s.configured {
			if err := d.Configure(ctx, ordinary); err != nil {
				t.Fatal(err)
			}
		}
		var fault *Fault
		if err := d.LoadSnapshot(ctx, "/state", "/mem", true); !errors.As(err, &fault) || !strings.Contains(fault.Message, s.says) {
			t.Errorf("%s: %v, want %q", what, err, s.says)
		}
		if _, err := d.Version(ctx); (err == nil) != s.configured {
			t.Errorf("%s: afterwards: %v", what, err)
		}
		if s.mend != nil {
			s.mend()
		}
	}
	if err := serve(t, fake.New("1.13.1", root)).LoadSnapshot(ctx, "/state", "/mem", true); err != nil {
		t.Errorf("as it was: %v", err)
	}
	for version, fields := range map[string]map[string]bool{
		"1.13.1": {"network_overrides": true, "vsock_override": false, "clock_realtime": false},
		"1.16.0": {"vsock_override": true, "clock_realtime": true, "huge_pages": false},
	} {
		for field, known := range fields {
			var value any = true
			switch field {
			case "network_overrides":
				value = []any{}
			case "vsock_override":
				value = map[string]any{"uds_path": "/v"}
			case "huge_pages":
				value = "None"
			}
			body := map[string]any{"snapshot_path": "/no", "mem_backend": map[string]any{"backend_type": "File", "backend_path": "/no"}, field: value}
			var fault *Fault
			err := serve(t, fake.New(version, root)).call(ctx, http.MethodPut, "/snapshot/load", body, nil)
			if !errors.As(err, &fault) || strings.Contains(fault.Message, "unknown field") == known {
				t.Errorf("%s of %s: %v", field, version, err)
			}
		}
	}
}

// TestVSock: a connection is the guest's, waits while the machine is paused, and ends
// when it is saved; version 1.16 answers nobody after a pause without that.
func TestVSock(t *testing.T) {
	for _, version := range []string{"1.13.1", "1.16.0"} {
		ctx, root := t.Context(), t.TempDir()
		f := fake.New(version, root)
		c := serve(t, f)
		l, err := net.Listen("unix", filepath.Join(root, "vsock.sock"))
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			f.ServeVSock(l, fake.Ports{1024: func(c net.Conn) { io.Copy(c, c) }})
		}()
		connect := func(patience time.Duration, port uint32) (net.Conn, error) {
			conn, err := net.Dial("unix", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			return conn, Connect(ctx, conn, port)
		}
		echo := func(conn net.Conn) error {
			conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(conn, "hello"); err != nil {
				return err
			}
			_, err := io.ReadFull(conn, make([]byte, 5))
			return err
		}
		if err := errors.Join(c.Configure(ctx, ordinary), c.Start(ctx)); err != nil {
			t.Fatal(err)
		}
		conn, err := connect(time.Minute, 1024)
		if err := errors.Join(err, echo(conn)); err != nil {
			t.Fatal(err)
		}
		if _, err := connect(time.Minute, 7); !errors.Is(err, ErrRefused) {
			t.Errorf("nobody listens at 7: %v", err)
		}
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := connect(20*time.Millisecond, 1024); err == nil {
			t.Error("a machine that stands still answers")
		}
		if err := errors.Join(c.CreateSnapshot(ctx, "/state", "/mem"), c.Resume(ctx)); err != nil {
			t.Fatal(err)
		}
		if echo(conn) == nil {
			t.Error("a connection has survived a snapshot")
		}
		if conn, err = connect(time.Minute, 1024); err != nil || echo(conn) != nil {
			t.Errorf("after a snapshot: %v", err)
		}
		if err := errors.Join(c.Pause(ctx), c.Resume(ctx)); err != nil {
			t.Fatal(err)
		}
		patience := time.Minute
		if Deaf(version) {
			patience = 20 * time.Millisecond
		}
		if _, err := connect(patience, 1024); (err != nil) != Deaf(version) {
			t.Errorf("%s after a pause: %v", version, err)
		}
		l.Close()
		<-over
	}
}

// TestNIC: a network device is asked for before the start, in a form Firecracker
// takes, and a machine without one asks for none.
func TestNIC(t *testing.T) {
	f := fake.New("1.17.0-dev", t.TempDir())
	var got map[string]any
	f.Started = func(configured fake.Configuration) { got = configured["PUT /network-interfaces/wire"] }
	c, m := serve(t, f), ordinary
	m.NICs = []NIC{{ID: "wire", Device: "vm0", MAC: "02:00:00:00:00:02"}}
	if err := errors.Join(c.Configure(t.Context(), m), c.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got["iface_id"] != "wire" || got["host_dev_name"] != "vm0" || got["guest_mac"] != "02:00:00:00:00:02" || len(got) != 3 {
		t.Errorf("configured %v", got)
	}
	f = fake.New("1.17.0-dev", t.TempDir())
	if err := serve(t, f).Configure(t.Context(), ordinary); err != nil || slices.Contains(f.Calls(), "PUT /network-interfaces/{iface_id}") {
		t.Errorf("a machine without a network: %q, %v", f.Calls(), err)
	}
}

// TestRefused: what the table forbids is refused by the fake, so that what passes
// TestLife was held against something.
func TestRefused(t *testing.T) {
	c := serve(t, fake.New("1.13.1", t.TempDir()))
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

// TestSaves: which versions save machines, and which one has to save to be resumed.
func TestSaves(t *testing.T) {
	for v, want := range map[string]bool{"1.8.0": false, "1.12.9": false, "1.13.0": true, "v1.16.1": true, "1.17.0-dev": true, "x": false} {
		if Saves(v) != want || Deaf(v) != (v == "v1.16.1") {
			t.Errorf("%q: saves %t, deaf %t", v, Saves(v), Deaf(v))
		}
	}
	if !Saves(FirstToSave) {
		t.Errorf("%s is the first", FirstToSave)
	}
}

func TestJail(t *testing.T) {
	j := Jail{Base: "/d/in1/jail", Firecracker: "/usr/bin/firecracker-v1.13", ID: "in1", User: 7, FileSize: 1 << 30}
	if err := j.Validate(); err != nil {
		t.Fatal(err)
	}
	if j.Root() != "/d/in1/jail/firecracker-v1.13/in1/root" {
		t.Errorf("root %s", j.Root())
	}
	want := "--id in1 --exec-file /usr/bin/firecracker-v1.13 --uid 7 --gid 7 --chroot-base-dir /d/in1/jail --resource-limit no-file=256 --resource-limit fsize=1073741824 -- --api-sock /api.sock --level Error"
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
		"no bound":      func(j *Jail) { j.FileSize = 0 },
		"relative exec": func(j *Jail) { j.Firecracker = "firecracker" },
	} {
		bad := j
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%s was taken", what)
		}
	}
}
