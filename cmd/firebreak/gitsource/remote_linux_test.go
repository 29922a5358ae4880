package gitsource

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestMetadataIsNeverReached has a cloud's metadata service, and a neighbour in a
// private network, in a network of its own: whatever a server or a name says,
// nobody connects to them.
func TestMetadataIsNeverReached(t *testing.T) {
	const inside = "FIREBREAK_TEST_NETWORK"
	if os.Getenv(inside) == "" {
		if os.Geteuid() != 0 {
			t.Skip("not run: needs root for a network of its own")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestMetadataIsNeverReached$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	up(t, "lo", "127.0.0.1")
	up(t, "lo:1", "169.254.169.254")
	up(t, "lo:2", "10.7.7.7")
	metadata, reached := sink(t, "tcp", "169.254.169.254:80")
	private, visited := sink(t, "tcp", "10.7.7.7:443")
	if c, err := net.Dial("tcp", metadata); err != nil { // so that it counts for something
		t.Fatal(err)
	} else {
		_ = c.Close()
	}
	for reached() == 0 {
		time.Sleep(time.Millisecond)
	}
	to := ""
	st := newStranger(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, to+refsPath+"?"+refsQuery, http.StatusFound)
	}, nil, nil)
	st.net.Private = append(st.net.Private, "169.254.169.254", "metadata.test")
	st.net.lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr(map[string]string{"metadata.test": "169.254.169.254", "private.test": "10.7.7.7"}[name])}, nil
	}
	for _, target := range []string{"http://169.254.169.254/latest", "http://metadata.test/latest", "http://[::ffff:169.254.169.254]/latest", "http://[64:ff9b::a9fe:a9fe]/latest",
		"https://" + private + "/r", "https://private.test/r"} {
		to = target
		st.net.refuse(t, st.URL+"/r", sandbox.KindDenied, "not dialled")
		st.net.refuse(t, target, sandbox.KindDenied, "not dialled")
	}
	if n, m := reached()-1, visited(); n != 0 || m != 0 {
		t.Errorf("%d connections to the metadata service, %d to the neighbour", n, m)
	}
}

// up gives an address to an interface of the network this process is in.
func up(t *testing.T, name, address string) {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = r.SetInet4Addr(netip.MustParseAddr(address).AsSlice())
	}
	if err == nil {
		err = unix.IoctlIfreq(s, unix.SIOCSIFADDR, r)
	}
	if err == nil {
		r.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestFetchInterrupted: who gives up leaves no file, no process and no goroutine.
func TestFetchInterrupted(t *testing.T) {
	dir := empty(t)
	id := strings.Repeat("ab", 20)
	slow := forever(packfile+side(large+stored), pkt("\x01x"), 20*time.Millisecond)
	st := newStranger(t, says(greeting), says(pkt(id+" HEAD\n")+"0000"), slow)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancelCause(context.Background())
	pids := make(chan []string, 1)
	go func() {
		var in []string
		for end := time.Now().Add(time.Minute); len(in) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			in = processesIn(dir) // git is at it
		}
		pids <- in
		cancel(errors.New("enough"))
	}()
	_, err := st.net.Read(ctx, Spec{Repo: st.URL + "/r", Ref: "HEAD"})
	if err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("%v", err)
	}
	in := <-pids
	if len(in) == 0 {
		t.Error("git was never started")
	}
	for _, pid := range in {
		if exists("/proc/" + pid) {
			t.Errorf("process %s lives on", pid)
		}
	}
	st.Close()
}

// processesIn are those whose working directory is below dir.
func processesIn(dir string) (pids []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(l)))
		}
	}
	return pids
}
