// Command tries is started as a router is, confines itself as one does, and tries
// what one must not be able to do. Its arguments are what to try; it prints each
// with its error. "bare" first: without Confine, to see what holds already.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/egress/control"
)

func main() {
	verbs := os.Args[1:]
	if verbs[0] == "bare" {
		verbs = verbs[1:]
	} else if notes, err := control.Confine(); err != nil {
		fmt.Fprintln(os.Stderr, "Confine:", err)
		os.Exit(1)
	} else if len(notes) > 0 {
		fmt.Fprintln(os.Stderr, "notes:", notes)
	}
	for _, v := range verbs {
		verb, arg, _ := strings.Cut(v, ":")
		f := tries[verb]
		if f == nil {
			fmt.Fprintln(os.Stderr, "no such verb", v)
			os.Exit(1)
		}
		fmt.Fprintf(os.Stderr, "%s=%v\n", v, name(f(arg)))
	}
}

// name is an error as tests write it.
func name(err error) string {
	if e, ok := err.(syscall.Errno); ok {
		if e == 0 {
			return "ok"
		}
		return unix.ErrnoName(e)
	}
	if err == nil {
		return "ok"
	}
	return err.Error()
}

func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, e := syscall.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return e
}

func path(s string) uintptr {
	p, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(p))
}

func socket(domain, kind, proto int) func(string) error {
	return func(string) error {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, proto)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

func inet(f func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

var tries = map[string]func(arg string) error{
	// What a router does.
	"interfaces": func(string) error {
		a, err := net.InterfaceAddrs()
		if err == nil && len(a) == 0 {
			return unix.ENOENT
		}
		return err
	},
	"dial": func(to string) error {
		c, err := net.Dial("tcp", to)
		if err == nil {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
		return err
	},
	"threads": func(string) error {
		done := make(chan bool)
		for range 20 {
			go func() { runtime.LockOSThread(); runtime.GC(); done <- true }()
		}
		for range 20 {
			<-done
		}
		return nil
	},
	"tcp": socket(unix.AF_INET, unix.SOCK_STREAM, 0), "udp6": socket(unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP),
	"route": socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE),

	// Files.
	"read":  func(p string) error { return open(p, unix.O_RDONLY) },
	"write": func(p string) error { return open(p, unix.O_WRONLY|unix.O_CREAT) },
	"stat": func(p string) error {
		var st unix.Stat_t
		return unix.Stat(p, &st)
	},
	"unlink": func(p string) error { return unix.Unlink(p) },
	"mkdir":  func(p string) error { return unix.Mkdir(p, 0o700) },
	"chdir":  func(p string) error { return unix.Chdir(p) },

	// Sockets.
	"unix": socket(unix.AF_UNIX, unix.SOCK_STREAM, 0), "packet": socket(unix.AF_PACKET, unix.SOCK_RAW, 0x0300),
	"raw": socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), "ping": socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP),
	"sctp": socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), "uevent": socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT),
	"netfilter": socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), "vsock": socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"alg": socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
	"listen": func(string) error {
		return inet(func(fd int) error { return unix.Listen(fd, 1) })
	},
	"accept": func(string) error {
		return inet(func(fd int) error { _, _, err := unix.Accept(fd); return err })
	},
	"bind": func(string) error {
		return inet(func(fd int) error {
			return unix.Bind(fd, &unix.SockaddrInet4{Port: 48123, Addr: [4]byte{127, 0, 0, 1}})
		})
	},
	"bindany": func(string) error {
		return inet(func(fd int) error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}) })
	},
	"device": func(string) error {
		return inet(func(fd int) error { return unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo") })
	},
	"pair": func(string) error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err },
	"abstract": func(name string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: "@" + name})
	},

	// Other processes, and this one.
	"kill":     func(string) error { return unix.Kill(os.Getppid(), 0) },
	"tgkill":   func(string) error { return unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
	"dumpable": func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) },
	"outlive":  func(string) error { return unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0) },
	"rlimit": func(string) error {
		return unix.Prlimit(0, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}, nil)
	},
	"lease":   func(string) error { _, err := unix.FcntlInt(0, unix.F_SETOWN, 1); return err },
	"tun":     func(string) error { return unix.IoctlSetInt(0, unix.TUNSETIFF, 0) },
	"inject":  func(string) error { return unix.IoctlSetInt(0, unix.TIOCSTI, 0) },
	"unknown": func(string) error { return call(9999) },

	// What ends it.
	"exec":   func(string) error { return unix.Exec("/proc/self/exe", []string{"x"}, nil) },
	"execat": func(string) error { return call(unix.SYS_EXECVEAT, 0, path(""), 0, 0, unix.AT_EMPTY_PATH) },
	"fork":   func(string) error { return call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)) },
	"newns": func(string) error {
		return call(unix.SYS_CLONE, unix.CLONE_THREAD|unix.CLONE_VM|unix.CLONE_SIGHAND|unix.CLONE_NEWUSER)
	},
	"unshare": func(string) error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"setns":   func(string) error { return unix.Setns(0, 0) },
	"ptrace":  func(string) error { return unix.PtraceAttach(os.Getppid()) },
	"vmread":  func(string) error { return call(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid())) },
	"mount":   func(string) error { return unix.Mount("none", "/", "tmpfs", 0, "") },
	"chroot":  func(string) error { return unix.Chroot("/") },
	"bpf":     func(string) error { return call(unix.SYS_BPF) },
	"perf":    func(string) error { return call(unix.SYS_PERF_EVENT_OPEN) },
	"uring":   func(string) error { return call(unix.SYS_IO_URING_SETUP, 1) },
	"keys":    func(string) error { return call(unix.SYS_KEYCTL) },
	"memfd":   func(string) error { return call(unix.SYS_MEMFD_CREATE, path("x")) },
	"fault":   func(string) error { return call(unix.SYS_USERFAULTFD) },
	"setuid":  func(string) error { return call(unix.SYS_SETUID) },
	"capset":  func(string) error { return call(unix.SYS_CAPSET) },
	"module":  func(string) error { return call(unix.SYS_INIT_MODULE) },
	"pidfd":   func(string) error { return call(unix.SYS_PIDFD_OPEN, uintptr(os.Getppid())) },
	"mmapexec": func(string) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	},
	"protexec": func(string) error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
	},
	"x32": func(string) error { return call(0x40000000 + 39) },
}

func open(p string, flags int) error {
	fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0o600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
