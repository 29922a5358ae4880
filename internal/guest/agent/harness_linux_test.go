package agent_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

var agentBinary string

// TestMain builds the real agent: the tests run it as PID 1 of a PID namespace
// in a root directory of its own.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "firebreak-agent")
	if err != nil {
		panic(err)
	}
	agentBinary = filepath.Join(dir, "firebreak-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agentBinary, "github.com/firebreak-dev/firebreak/cmd/firebreak-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build of the agent: %v\n%s", err, out)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// fifoConn is the host's end of a pair of FIFOs that both ends keep open for
// reading and writing, as the gVisor backend does.
type fifoConn struct{ r, w *os.File }

func (c fifoConn) Read(p []byte) (int, error)         { return c.r.Read(p) }
func (c fifoConn) Write(p []byte) (int, error)        { return c.w.Write(p) }
func (c fifoConn) Close() error                       { c.r.Close(); return c.w.Close() }
func (c fifoConn) LocalAddr() net.Addr                { return nil }
func (c fifoConn) RemoteAddr() net.Addr               { return nil }
func (c fifoConn) SetDeadline(t time.Time) error      { c.r.SetDeadline(t); return c.w.SetDeadline(t) }
func (c fifoConn) SetReadDeadline(t time.Time) error  { return c.r.SetReadDeadline(t) }
func (c fifoConn) SetWriteDeadline(t time.Time) error { return c.w.SetWriteDeadline(t) }

// box is a sandbox without a boundary: a root directory and a PID namespace.
type box struct {
	t        testing.TB
	root     string
	in, out  string // FIFOs, outside of root
	cmd      *exec.Cmd
	stderr   strings.Builder
	waitOnce sync.Once
}

// newBox starts the agent. args follow "init".
func newBox(t testing.TB, args ...string) *box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not run: needs root for a PID namespace and users")
	}
	dir := t.TempDir()
	b := &box{t: t, root: filepath.Join(dir, "root"), in: filepath.Join(dir, "in"), out: filepath.Join(dir, "out")}
	for _, d := range []string{"proc", "dev", "tmp", "etc", "home/user", "root", ".firebreak"} {
		must(t, os.MkdirAll(filepath.Join(b.root, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(b.root, "tmp"), 0o1777))
	must(t, os.Chown(filepath.Join(b.root, "home/user"), 1000, 1000))
	must(t, os.Chmod(filepath.Join(b.root, "root"), 0o700))
	must(t, unix.Mknod(filepath.Join(b.root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Chmod(filepath.Join(b.root, "dev/null"), 0o666))
	must(t, unix.Mknod(filepath.Join(b.root, "dev/tty"), unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))))
	must(t, os.Chmod(filepath.Join(b.root, "dev/tty"), 0o666))
	must(t, os.WriteFile(filepath.Join(b.root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nother:x:1001:1001::/tmp:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(b.root, "etc/group"), []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user,x\n"), 0o644))
	bin, err := os.ReadFile(agentBinary)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(b.root, guest.AgentPath), bin, 0o755))
	// The chain of directories above must be searchable by user 1000.
	for d := b.root; d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err == nil && st.Mode()&0o001 == 0 {
			must(t, os.Chmod(d, st.Mode()|0o111))
		}
	}
	must(t, unix.Mkfifo(b.in, 0o600))
	must(t, unix.Mkfifo(b.out, 0o600))
	b.start(args...)
	return b
}

func (b *box) start(args ...string) {
	stdin, err := os.OpenFile(b.in, os.O_RDWR, 0)
	must(b.t, err)
	stdout, err := os.OpenFile(b.out, os.O_RDWR, 0)
	must(b.t, err)
	defer stdin.Close()
	defer stdout.Close()
	b.cmd = &exec.Cmd{Path: guest.AgentPath, Args: append([]string{"firebreak-guest", "init"}, args...), Dir: "/",
		Stdin: stdin, Stdout: stdout, Stderr: &b.stderr, Env: []string{},
		SysProcAttr: &syscall.SysProcAttr{Chroot: b.root, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
			Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}}
	started := make(chan error)
	go func() { started <- b.cmd.Start() }()
	must(b.t, <-started)
	// What a boundary does: no bomb of the tests may hurt the machine.
	must(b.t, unix.Prlimit(b.cmd.Process.Pid, unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 300, Max: 300}, nil))
	b.t.Cleanup(b.stop)
}

// stop ends the namespace and everything in it.
func (b *box) stop() {
	b.waitOnce.Do(func() {
		b.cmd.Process.Kill()
		b.cmd.Wait()
		if s := b.stderr.String(); s != "" {
			b.t.Logf("agent: %s", s)
		}
	})
}

// dial opens the host's ends of the FIFOs.
func (b *box) dial() net.Conn {
	b.t.Helper()
	w, err := os.OpenFile(b.in, os.O_RDWR|unix.O_NONBLOCK, 0)
	must(b.t, err)
	r, err := os.OpenFile(b.out, os.O_RDWR|unix.O_NONBLOCK, 0)
	must(b.t, err)
	return fifoConn{r: r, w: w}
}

func (b *box) open(cfg guest.Config) *guest.Session {
	b.t.Helper()
	s, err := guest.Open(ctx(b.t), b.dial(), cfg)
	must(b.t, err)
	b.t.Cleanup(func() { s.Close() })
	return s
}

// probe starts a verb.
func probe(t testing.TB, s *guest.Session, c guest.Command, verb ...string) *guest.Process {
	t.Helper()
	c.Argv = append([]string{guest.AgentPath, "probe"}, verb...)
	p, err := s.Exec(ctx(t), c)
	must(t, err)
	return p
}

// run is probe and finish.
func run(t testing.TB, s *guest.Session, c guest.Command, verb ...string) (stdout, stderr string, e guest.Exit) {
	t.Helper()
	return finish(t, probe(t, s, c, verb...))
}

func unmarshal(t testing.TB, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatalf("%v in %q", err, s)
	}
}

// line reads one line of a program that goes on.
func line(t testing.TB, r io.Reader) string {
	t.Helper()
	var b strings.Builder
	p := make([]byte, 1)
	for {
		if _, err := r.Read(p); err != nil {
			t.Fatalf("after %q: %v", b.String(), err)
		}
		if p[0] == '\n' {
			return b.String()
		}
		b.WriteByte(p[0])
	}
}

const (
	stop = syscall.SIGSTOP
	cont = syscall.SIGCONT
)

func setPipe(t testing.TB, f *os.File, size int) {
	t.Helper()
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, size)
	must(t, err)
}
