//go:build linux

package control

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// try starts the program tries as a router is started, and returns what it printed
// and how it ended.
func try(t *testing.T, args ...string) (said, end string) {
	t.Helper()
	p, err := begin(append([]string{binary(t, "tries")}, args...), quiet)
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	p.conn.Close()
	return p.said.tail(), p.end
}

// TestCannot: what is denied from inside is, and what is needed works.
func TestCannot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not run: needs root, whose privileges are to be taken")
	}
	s := newSink(t)
	readable := filepath.Join(t.TempDir(), "readable")
	must(t, os.WriteFile(readable, nil, 0o666))
	must(t, os.Chmod(filepath.Dir(readable), 0o777))
	for v, want := range map[string]string{
		"dial:127.0.0.1:" + s.port: "ok", "interfaces": "ok", "threads": "ok", "tcp": "ok", "udp6": "ok", "route": "ok", "bindany": "ok",

		"read:" + readable: "EACCES", "read:/etc/resolv.conf": "EACCES", "read:/etc/hosts": "EACCES", "read:/proc/self/exe": "EACCES", "read:/": "EACCES",
		"write:" + readable: "EACCES", "write:/tmp/router-was-here": "EACCES", "stat:/etc/passwd": "EACCES", "unlink:" + readable: "EACCES",
		"mkdir:/tmp/router-was-here": "EACCES", "chdir:/etc": "EACCES", "read:/dev/net/tun": "EACCES",

		"unix": "EAFNOSUPPORT", "packet": "EAFNOSUPPORT", "raw": "EAFNOSUPPORT", "ping": "EAFNOSUPPORT", "sctp": "EAFNOSUPPORT", "uevent": "EAFNOSUPPORT",
		"netfilter": "EAFNOSUPPORT", "vsock": "EAFNOSUPPORT", "alg": "EAFNOSUPPORT", "listen": "ENOSYS", "accept": "ENOSYS", "pair": "ENOSYS", "device": "EPERM",

		"kill": "ENOSYS", "tgkill": "EPERM", "dumpable": "EPERM", "outlive": "EPERM", "rlimit": "EPERM", "lease": "EPERM", "tun": "EPERM", "inject": "EPERM",
		"unknown": "ENOSYS",
	} {
		if said, end := try(t, v); said != v+"="+want || end != "exit status 0" {
			t.Errorf("%s: %q, %s, want %s", v, said, end, want)
		}
	}
	fatal := []string{"exec", "execat", "fork", "newns", "unshare", "setns", "ptrace", "vmread", "mount", "chroot", "bpf", "perf", "uring", "keys", "memfd", "fault",
		"setuid", "capset", "module", "pidfd", "mmapexec", "protexec"}
	if runtime.GOARCH == "amd64" {
		fatal = append(fatal, "x32")
	}
	for _, v := range fatal {
		if said, end := try(t, v); end != "signal: bad system call" {
			t.Errorf("%s: %q, %s", v, said, end)
		}
	}
}

// TestLandlock: what Landlock denies does not need seccomp to be denied.
func TestLandlock(t *testing.T) {
	abi := landlockABI()
	if os.Geteuid() != 0 || abi < 6 {
		t.Skip("not run: needs root and a kernel with Landlock's sixth version")
	}
	readable := filepath.Join(t.TempDir(), "readable")
	must(t, os.WriteFile(readable, nil, 0o666))
	must(t, os.Chmod(filepath.Dir(readable), 0o777))
	l, err := net.Listen("unix", "@firebreak-control-test")
	must(t, err)
	defer l.Close()
	for v, want := range map[string]string{
		"read:" + readable: "EACCES", "write:" + readable: "EACCES", "read:/etc/hosts": "EACCES", "read:/": "EACCES", "unlink:" + readable: "EACCES",
		"mkdir:" + filepath.Dir(readable) + "/x": "EACCES", "bind": "EACCES", "bindany": "ok", "abstract:firebreak-control-test": "EPERM", "kill": "EPERM",
		"unix": "ok", // so that the one before says what it seems to
	} {
		if said, end := try(t, "bare", v); said != v+"="+want || end != "exit status 0" {
			t.Errorf("%s: %q, %s, want %s", v, said, end, want)
		}
	}
}

// status is a file of /proc/PID/task/TID as keys and values.
func status(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	m := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		m[k] = strings.Join(strings.Fields(v), " ")
	}
	return m
}

// TestConfined: what the kernel says about a router that has served, and about the
// process that keeps it.
func TestConfined(t *testing.T) {
	p, s := newPlace(t), newSink(t)
	// Somebody left a descriptor to this process, and its starters did not say that
	// it is for nobody else.
	stray, err := unix.Open("/etc/passwd", unix.O_RDONLY, 0)
	must(t, err)
	defer unix.Close(stray)
	k, _ := startKeeper(t, nil)
	must(t, k.Attach(t.Context(), Wire{ID: "in1", Policies: rules(s.port, "")}, p.tap))
	p.mustEcho("good.example", s.port).Close()
	pid := router(t, k)
	id := fmt.Sprintf("%d %[1]d %[1]d %[1]d", routerID)
	want := map[string]string{"Uid": id, "Gid": id, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2"}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		want[set] = "0000000000000000"
	}
	for _, file := range threads(t, pid) {
		got := status(t, file)
		for key, value := range want {
			if got[key] != value {
				t.Errorf("%s: %s is %q, want %q", file, key, got[key], value)
			}
		}
	}
	files := uint64(maxFiles)
	if caps, err := strconv.ParseUint(status(t, "/proc/self/status")["CapEff"], 16, 64); err != nil || caps&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		var now unix.Rlimit
		must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &now))
		files = min(files, now.Max)
	}
	limits := lines(t, fmt.Sprintf("/proc/%d/limits", pid))
	for _, l := range []string{"Max core file size 0 0 bytes", "Max file size 0 0 bytes", fmt.Sprintf("Max open files %d %[1]d files", files)} {
		if !slices.Contains(limits, l) {
			t.Errorf("not among the limits: %s\n%s", l, strings.Join(limits, "\n"))
		}
	}
	// What is in /proc of a process that is not dumpable is root's.
	if st, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid)); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the router is dumpable: %+v, %v", st, err)
	}
	eventually(t, "the echo's connection is gone", func() bool { st, err := k.Stats(t.Context()); return err == nil && st.Connections == 0 })
	checkDescriptors(t, pid)
	confined := 0
	for _, file := range threads(t, os.Getpid()) {
		if got := status(t, file); got["NoNewPrivs"] == "1" || got["CapEff"] != status(t, "/proc/self/status")["CapEff"] {
			confined++
		}
	}
	if confined != 1 || status(t, "/proc/self/status")["NoNewPrivs"] != "0" {
		t.Errorf("%d threads of this process lost something, where the router hangs on one", confined)
	}
}

// threads are the status files of a process' threads.
func threads(t *testing.T, pid int) []string {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	return list
}

func lines(t *testing.T, file string) (out []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	for line := range strings.Lines(string(b)) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return out
}

// checkDescriptors looks what a router with one wire has: stdio that leads nowhere
// but to the log, the keeper, the wire and what Go's runtime waits with.
func checkDescriptors(t *testing.T, pid int) {
	t.Helper()
	want := map[string]int{"/dev/null": 2, "pipe:[]": 1, "socket:[]": 1, "/dev/net/tun": 1, "anon_inode:[eventpoll]": 1, "anon_inode:[eventfd]": 1}
	numbers := regexp.MustCompile(`\d+`)
	eventually(t, "the router has the descriptors it should have", func() bool {
		found := map[string]int{}
		list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		must(t, err)
		for _, fd := range list {
			if to, err := os.Readlink(fd); err == nil {
				found[numbers.ReplaceAllString(to, "")]++
			}
		}
		if !maps.Equal(found, want) {
			t.Log(found)
		}
		return maps.Equal(found, want)
	})
}

// TestByHand: a router that no keeper started does nothing.
func TestByHand(t *testing.T) {
	out, err := exec.Command(routerProgram(t)[0], "router").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "servers start it themselves") {
		t.Errorf("%v\n%s", err, out)
	}
}
