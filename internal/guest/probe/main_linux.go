package probe

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs the verb in args on this machine and returns the exit code.
func Main(args []string) int {
	s := IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Env: os.Environ()}
	code, err := Run(context.Background(), args, s)
	if !errors.Is(err, ErrUnknown) {
		return code
	}
	if len(args) == 0 {
		return usage(s, "probe VERB ARG...")
	}
	verb, ok := verbs[args[0]]
	if !ok || len(args)-1 < verb.args {
		return usage(s, "probe VERB ARG...: unknown verb or too few arguments: "+strings.Join(args, " "))
	}
	if err := verb.run(args[1:]); err != nil {
		_, _ = io.WriteString(os.Stderr, args[0]+": "+err.Error()+"\n")
		return 1
	}
	return 0
}

var verbs = map[string]struct {
	args int
	run  func([]string) error
}{
	"alloc":       {1, alloc},
	"fork":        {1, forkMany},
	"bomb":        {0, func([]string) error { forkBomb(); return nil }},
	"fill":        {2, fill},
	"flush":       {1, flush},
	"id":          {0, identity},
	"ignore-term": {0, ignoreTerm},
	"daemon":      {0, func([]string) error { return daemon(false) }},
	"hold-output": {0, func([]string) error { return daemon(true) }},
	"signalself":  {1, signalSelf},
	"result":      {1, result},
	"write":       {2, func(a []string) error { return os.WriteFile(a[0], []byte(a[1]), 0o644) }},
	"read":        {1, read},
	"ls":          {1, list},
	"net":         {0, network},
	"links":       {0, links},
	"resolve":     {1, resolve},
	"connect":     {2, connect},
	"converse":    {1, converse},
	"now":         {0, func([]string) error { say(strconv.FormatInt(time.Now().UnixNano(), 10)); return nil }},
	"random":      {0, random},
	"mounts":      {0, func([]string) error { return read([]string{"/proc/self/mountinfo"}) }},
	"serve":       {1, serve},
	"tasks":       {0, tasks},
	"terminal":    {0, terminal},
	"ignore-hup":  {0, ignoreHangup},
	"ptmx":        {0, allTerminals},
}

func printJSON(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

func ready() error {
	_, err := os.Stdout.WriteString("ready\n")
	return err
}

func hold() error {
	for {
		time.Sleep(time.Hour)
	}
}

// alloc touches memory page by page.
func alloc(a []string) error {
	n, err := strconv.ParseInt(a[0], 10, 64)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	if err := ready(); err != nil {
		return err
	}
	return hold()
}

// rawFork forks this thread alone. The child has no Go runtime: it may do raw
// system calls and nothing else.
//
//go:norace
//go:nosplit
func rawFork() (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	return pid, errno
}

// sleeper is the life of a raw child.
//
//go:norace
//go:nosplit
func sleeper() {
	for {
		syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// forkMany reports how many of the children it could make.
func forkMany(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err != nil || n < 0 {
		return errors.New("not a number: " + a[0])
	}
	made := int(forkSleepers(uintptr(n)))
	if err := printJSON(map[string]int{"forked": made, "failed": n - made}); err != nil {
		return err
	}
	return hold()
}

func fill(a []string) error {
	n, err := strconv.ParseInt(a[1], 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Create(a[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if err := WritePattern(f, n, true); err != nil {
		return err
	}
	return f.Close()
}

// flush returns once a file is on the disk.
func flush(a []string) error {
	f, err := os.OpenFile(a[0], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// identity prints what /proc/self/status says about rights.
func identity([]string) error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	var nproc, core unix.Rlimit
	if err := errors.Join(unix.Getrlimit(unix.RLIMIT_NPROC, &nproc), unix.Getrlimit(unix.RLIMIT_CORE, &core)); err != nil {
		return err
	}
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	if groups == nil {
		groups = []int{}
	}
	id := map[string]any{"uid": os.Getuid(), "euid": os.Geteuid(), "gid": os.Getgid(), "egid": os.Getegid(), "groups": groups,
		"nproc": nproc.Cur, "core": core.Cur, "cwd": cwd, "pid": os.Getpid(), "ppid": os.Getppid()}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
			id[k] = strings.TrimSpace(v)
		}
	}
	// Not every kernel shows no_new_privs in status.
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	id["no_new_privs"] = nnp == 1
	return printJSON(id)
}

func ignoreTerm([]string) error {
	signal.Ignore(syscall.SIGTERM)
	if err := ready(); err != nil {
		return err
	}
	return hold()
}

// daemon leaves a sleeper behind, twice forked and in a session of its own.
//
//go:norace
func daemon(keepOutput bool) error {
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		return err
	}
	pid, errno := rawFork()
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0)
		inner, _ := rawFork()
		if inner != 0 {
			rawExit()
		}
		self, _, _ := syscall.RawSyscall(syscall.SYS_GETPID, 0, 0, 0)
		rawReport(pipe[1], self)
		if !keepOutput {
			for fd := uintptr(0); fd < 3; fd++ {
				syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
			}
		}
		sleeper()
	}
	var b [8]byte
	if _, err := io.ReadFull(os.NewFile(uintptr(pipe[0]), "pipe"), b[:]); err != nil {
		return err
	}
	n := 0
	for i := range b {
		n |= int(b[i]) << (8 * i)
	}
	_, err := os.Stdout.WriteString(strconv.Itoa(n) + "\n")
	return err
}

// signalSelf dies of the signal, whatever the Go runtime does with it.
func signalSelf(a []string) error {
	n, err := strconv.Atoi(a[0])
	if err != nil {
		return err
	}
	resetSignal(n)
	if err := unix.Kill(os.Getpid(), syscall.Signal(n)); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return errors.New("survived")
}

func result(a []string) error {
	path := os.Getenv("FIREBREAK_RESULT")
	if path == "" {
		return errors.New("FIREBREAK_RESULT is not set")
	}
	return os.WriteFile(path, []byte(a[0]), 0o600)
}

func read(a []string) error {
	f, err := os.Open(a[0])
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}

func list(a []string) error {
	entries, err := os.ReadDir(a[0])
	for _, e := range entries {
		if _, err := os.Stdout.WriteString(e.Name() + "\n"); err != nil {
			return err
		}
	}
	return err
}

// tasks counts what /proc shows.
func tasks([]string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	procs, threads := 0, 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		t, err := os.ReadDir("/proc/" + e.Name() + "/task")
		if err != nil {
			continue // ended meanwhile
		}
		procs++
		threads += len(t)
	}
	return printJSON(map[string]int{"processes": procs, "tasks": threads})
}

func random([]string) error {
	b := make([]byte, 16)
	if _, err := unix.Getrandom(b, 0); err != nil {
		return err
	}
	say(hex.EncodeToString(b))
	return nil
}
