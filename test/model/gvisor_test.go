package model

import (
	"bytes"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// keep is what outlives sandboxes by design, below a data directory.
var keep = []string{"processes", "templates", "libexec", "audit", "events", "runs", "instances", "wires", "run", "api-key", "token-key", "secrets", "state.db", "state.db-wal", "state.db-shm", "state.db-redo", "lock"}

// program is the built program, serving on an address that outlives it.
type program struct {
	node
	bin, data, addr string
	cmd             *exec.Cmd
	log             *output
	wait            func() error
}

// newProgram starts bin/firebreak with two tenants over a directory of its own.
// When the test ends, nothing of it may be left on the host.
func newProgram(t *testing.T) *program {
	t.Helper()
	bin, err := filepath.Abs("../../bin/firebreak")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Skip("not run: bin/firebreak is not built (run `make`)")
	}
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root for enforced limits")
	}
	p := &program{node: node{t: t, keys: map[string]string{}}, bin: bin, data: filepath.Join(t.TempDir(), "data"), log: &output{}}
	if err := os.MkdirAll(filepath.Join(p.data, "instances"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.makeKeys()
	base, err := residue.Take(residue.Scope{Dirs: []string{p.data}, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().String()
	p.url = "http://" + p.addr
	l.Close()
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		if err := p.wait(); err != nil {
			t.Errorf("the server ended with %v:\n%s", err, p.log)
		}
		// What has no name yet is removed by a server that starts a minute later.
		if left, err := filepath.Glob(filepath.Join(p.data, "instances", "in*")); err != nil || len(left) > 0 {
			t.Errorf("instances left: %v %v", left, err)
		}
		for _, f := range base.Diff() {
			t.Errorf("left behind: %v", f)
		}
	})
	p.start()
	return p
}

// makeKeys gives each tenant a key before anybody serves.
func (p *program) makeKeys() {
	p.t.Helper()
	st, err := store.Open(p.t.Context(), filepath.Join(p.data, "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		p.t.Fatal(err)
	}
	defer st.Close()
	a := auth.New(st, auth.Options{})
	defer a.Close()
	for _, tenant := range tenants {
		who := auth.Principal{Tenant: sandbox.TenantID(tenant), ID: "test", Role: auth.Owner}
		if p.keys[tenant], _, err = a.CreateKey(p.t.Context(), who, auth.NewKeyRequest{Name: tenant, Role: auth.Owner}); err != nil {
			p.t.Fatal(err)
		}
	}
}

// start serves and returns when the program is ready.
func (p *program) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.bin, "serve", "--listen", p.addr, "--socket", "")
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.data, "FIREBREAK_DATA=" + p.data}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.wait = sync.OnceValue(p.cmd.Wait)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get(p.url + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the server is not ready after a minute:\n%s", p.log)
		}
	}
}

// restart kills the program and starts it again.
func (p *program) restart() {
	p.cmd.Process.Kill()
	p.wait()
	p.start()
}

// output is a buffer that may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func onGVisor(clients map[string]func() *client.Client, calls int) load {
	return load{tenants: clients, clients: 4, calls: calls, alive: 3, patient: time.Minute, backend: "gvisor",
		cancel: 0.02, short: 400 * time.Millisecond, pause: 20 * time.Millisecond, seed: uint64(time.Now().UnixNano())}
}

// TestHistoriesGVisor is TestHistories over the built program and real
// sandboxes.
func TestHistoriesGVisor(t *testing.T) {
	p := newProgram(t)
	h := newRecorder(t, onGVisor(p.clients(), 25)).run()
	t.Logf("%d calls: %s", len(h.calls), h.words())
	h.mustBeLegal(t)
}

// TestHistoriesKilled kills the server in the middle of its work, twice. Calls
// that had no answer may have taken effect or not; what was acknowledged has.
func TestHistoriesKilled(t *testing.T) {
	p := newProgram(t)
	r := newRecorder(t, onGVisor(p.clients(), 40))
	done := make(chan *history)
	go func() { done <- r.run() }()
	kills := 0
	for _, after := range []int{80, 180} {
		for r.count() < after {
			time.Sleep(time.Millisecond)
		}
		p.restart()
		kills++
	}
	h := <-done
	t.Logf("%d calls, %d kills: %s", len(h.calls), kills, h.words())
	h.mustBeLegal(t)
	if h.lost() == 0 {
		t.Error("no call was cut off: the kills came at the wrong times")
	}
}
