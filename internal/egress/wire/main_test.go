//go:build linux

package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/sandbox/backendtest/residue"
)

// helperEnv makes the test binary a process that does one thing to a wire and
// then waits for the end of its input.
const helperEnv = "FIREBREAK_TEST_WIRE"

func TestMain(m *testing.M) {
	if arg := os.Getenv(helperEnv); arg != "" {
		if err := runHelper(strings.Fields(arg)); err != nil {
			fmt.Println("error:", sandbox.KindOf(err), err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runHelper(arg []string) error {
	dir, id := arg[1], arg[2]
	switch arg[0] {
	case "open", "reopen":
		do := map[string]func(dir, id string) (*Link, error){"open": Open, "reopen": Reopen}[arg[0]]
		l, err := do(dir, id)
		if err != nil {
			return err
		}
		defer l.Tap.Close()
	case "remove":
		if _, err := Remove(dir, id); err != nil {
			return err
		}
	case "probe":
		if err := Probe(); err != nil {
			return err
		}
	case "inhabit": // with its main thread, which is what the process is in
		runtime.LockOSThread()
		ns, err := openNamespace(filepath.Join(dir, id))
		if err != nil {
			return err
		}
		if err := into(ns)(); err != nil {
			return err
		}
	case "threads":
		if err := threadsStay(dir); err != nil {
			return err
		}
	default:
		return errors.New("unknown helper " + arg[0])
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// helper is a process of the test.
type helper struct {
	*exec.Cmd
	out  *bufio.Reader
	stop func() // as kill -9 does, and waits
}

func start(t *testing.T, change func(*exec.Cmd), arg ...string) helper {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+strings.Join(arg, " "))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := helper{Cmd: cmd, out: bufio.NewReader(out)}
	h.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(h.stop)
	return h
}

// says reads the helper's first line.
func (h helper) says(t *testing.T) string {
	t.Helper()
	line, err := h.out.ReadString('\n')
	if err != nil && line == "" {
		t.Fatalf("the helper said nothing: %v", err)
	}
	return strings.TrimSpace(line)
}

// killed waits for the helper's end by its failpoint.
func (h helper) killed(t *testing.T) {
	t.Helper()
	rest, _ := io.ReadAll(h.out)
	err := h.Wait()
	if ws, ok := h.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the helper ended with %v, not by its failpoint; it said %q", err, rest)
	}
}

// needWires skips where no wires can be made.
func needWires(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root")
	}
	if err := Probe(); err != nil {
		t.Skipf("not run: %v", err)
	}
}

// wiresIn returns a directory for wires. When the test ends nothing may be left of
// them: no mount, no file, no descriptor.
func wiresIn(t *testing.T) string {
	t.Helper()
	needWires(t)
	dir := filepath.Join(t.TempDir(), "wires")
	base, err := residue.Take(residue.Scope{Dirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ids, err := List(dir)
		if err != nil {
			t.Error(err)
		}
		for _, id := range ids {
			t.Errorf("%s is left", id)
			Remove(dir, id)
		}
		for _, f := range base.Diff() {
			t.Errorf("left: %s", f)
		}
	})
	return dir
}

func newID() string { return string(sandbox.NewInstanceID()) }

// open opens a wire that is removed when the test ends.
func open(t *testing.T, dir, id string) *Link {
	t.Helper()
	l, err := Open(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Tap.Close()
		removed(t, dir, id)
	})
	return l
}

// removed removes a wire twice and checks what both say.
func removed(t *testing.T, dir, id string) {
	t.Helper()
	for range 2 {
		objects, err := Remove(dir, id)
		if err != nil {
			t.Errorf("Remove: %v", err)
		}
		kinds := map[string]int{}
		for _, o := range objects {
			kinds[o.Kind]++
			if !o.Gone || o.Name == "" || o.Check == "" || o.Checked.IsZero() || o.Detail != "" {
				t.Errorf("object %+v", o)
			}
		}
		if kinds["mount"] != 1 || kinds["file"] != 1 || kinds["link"] != kinds["namespace"] {
			t.Errorf("objects %+v", objects)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, id)); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if ids, err := List(dir); err != nil || contains(ids, id) {
		t.Errorf("List = %v, %v", ids, err)
	}
}

func contains(all []string, s string) bool {
	for _, a := range all {
		if a == s {
			return true
		}
	}
	return false
}

// inside runs f in a wire's namespace.
func inside(t *testing.T, w sandbox.Wire, f func() error) {
	t.Helper()
	ns, err := openNamespace(w.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := visit(into(ns), f); err != nil {
		t.Fatal(err)
	}
}

// frame reads the next frame from a tap, or fails.
func frame(t *testing.T, tap *os.File) []byte {
	t.Helper()
	if err := tap.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<17)
	n, err := tap.Read(buf)
	if err != nil {
		t.Fatalf("read a frame: %v", err)
	}
	return buf[headerSize:n]
}

// eventually waits for what happens by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}
