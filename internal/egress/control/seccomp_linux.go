//go:build amd64 || arm64

package control

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What the filter answers.
const (
	filterAllow   = unix.SECCOMP_RET_ALLOW
	filterKill    = unix.SECCOMP_RET_KILL_PROCESS
	filterNoFile  = unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)
	filterRefuse  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	filterNoSock  = unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)
	filterUnknown = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS) // Go falls back to what is older
)

// free are system calls a router makes with any arguments: those of Go's runtime,
// of sockets it has, and of its wires.
var free = append([]uint32{
	unix.SYS_FUTEX, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_READV, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_CREATE1,
	unix.SYS_EVENTFD2, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_SCHED_YIELD,
	unix.SYS_SCHED_GETAFFINITY, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK,
	unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	unix.SYS_GETRANDOM, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_PPOLL, unix.SYS_UNAME,
	unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SHUTDOWN,
	unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG,
}, freeHere...)

// fatal are what nothing in a router ever calls and who wants out would: the
// process ends.
var fatal = append([]uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_FSOPEN,
	unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_SETNS, unix.SYS_UNSHARE,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_REBOOT, unix.SYS_SWAPON,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_PERSONALITY, unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETGROUPS, unix.SYS_CAPSET, unix.SYS_MEMFD_CREATE, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_SECCOMP,
}, fatalHere...)

// paths are system calls that name a file. There is none for a router.
var paths = append([]uint32{
	unix.SYS_OPENAT, unix.SYS_OPENAT2, unix.SYS_STATX, unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_MKDIRAT, unix.SYS_MKNODAT,
	unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT, unix.SYS_SYMLINKAT, unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT, unix.SYS_TRUNCATE,
	unix.SYS_CHDIR, unix.SYS_STATFS,
}, pathsHere...)

// socketOptions are the options that package net sets.
var socketOptions = map[uint32][]uint32{
	unix.SOL_SOCKET:   {unix.SO_BROADCAST, unix.SO_KEEPALIVE, unix.SO_LINGER, unix.SO_REUSEADDR, unix.SO_RCVBUF, unix.SO_SNDBUF},
	unix.IPPROTO_TCP:  {unix.TCP_NODELAY, unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT, unix.TCP_USER_TIMEOUT},
	unix.IPPROTO_IPV6: {unix.IPV6_V6ONLY},
}

// threadFlags are what Go, or a C library, begins a thread with.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD |
	unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// block is instructions that end in a verdict, whatever happens.
type block []bpf.Instruction

func verdict(v uint32) block { return block{bpf.RetConstant{Val: v}} }

// when is then if the value loaded is v, and otherwise what follows.
func when(v uint32, then block) block {
	return append(block{bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: uint8(len(then))}}, then...)
}

// among is allowed if the value loaded is one of vs, and otherwise what follows.
func among(vs ...uint32) (b block) {
	for _, v := range vs {
		b = append(b, when(v, verdict(filterAllow))...)
	}
	return b
}

// argument loads the lower half of an argument, which is all of an int; upper the
// other one.
func argument(n int) bpf.Instruction { return bpf.LoadAbsolute{Off: uint32(16 + 8*n), Size: 4} }
func upper(n int) bpf.Instruction    { return bpf.LoadAbsolute{Off: uint32(16 + 8*n + 4), Size: 4} }

func join(parts ...block) (b block) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// program is the filter of a router with process id pid: a list of what is
// allowed. All that is not named answers that the kernel does not have it.
func program(pid uint32) block {
	load := func(i bpf.Instruction) block { return block{i} }
	noExec := join(load(argument(2)), block{bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.PROT_EXEC, SkipFalse: 1}}, verdict(filterKill), verdict(filterAllow))
	mask := func(n int, m uint32) block { return block{argument(n), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: m}} }
	const kinds = ^uint32(unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK)

	inet := join(mask(1, kinds),
		when(unix.SOCK_STREAM, join(load(argument(2)), among(0, unix.IPPROTO_TCP), verdict(filterNoSock))),
		when(unix.SOCK_DGRAM, join(load(argument(2)), among(0, unix.IPPROTO_UDP), verdict(filterNoSock))),
		verdict(filterNoSock))
	route := join(mask(1, kinds),
		when(unix.SOCK_RAW, join(load(argument(2)), among(unix.NETLINK_ROUTE), verdict(filterNoSock))),
		verdict(filterNoSock))
	var options block
	for _, level := range []uint32{unix.SOL_SOCKET, unix.IPPROTO_TCP, unix.IPPROTO_IPV6} {
		options = append(options, when(level, join(load(argument(2)), among(socketOptions[level]...), verdict(filterRefuse)))...)
	}
	conditional := []struct {
		nr   uint32
		then block
	}{
		{unix.SYS_MMAP, noExec},
		{unix.SYS_MPROTECT, noExec},
		{unix.SYS_SOCKET, join(load(argument(0)), when(unix.AF_INET, inet), when(unix.AF_INET6, inet), when(unix.AF_NETLINK, route), verdict(filterNoSock))},
		{unix.SYS_SETSOCKOPT, join(load(argument(1)), options, verdict(filterRefuse))},
		{unix.SYS_GETSOCKOPT, join(load(argument(1)), among(unix.SOL_SOCKET, unix.IPPROTO_TCP), verdict(filterRefuse))},
		{unix.SYS_FCNTL, join(load(argument(1)), among(unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD, unix.F_DUPFD_CLOEXEC), verdict(filterRefuse))},
		{unix.SYS_IOCTL, join(load(argument(1)), among(unix.TUNGETIFF, unix.TUNGETVNETHDRSZ), verdict(filterRefuse))},
		{unix.SYS_TGKILL, join(load(argument(0)), among(pid), verdict(filterRefuse))},
		{unix.SYS_PRCTL, join(load(argument(0)), among(unix.PR_SET_VMA), verdict(filterRefuse))},
		{unix.SYS_PRLIMIT64, join(load(argument(2)), when(0, join(load(upper(2)), when(0, join(load(argument(0)), among(0))))), verdict(filterRefuse))},
		{unix.SYS_CLONE, join(load(upper(0)), when(0, join(
			mask(0, ^uint32(threadFlags)), when(0, join(
				load(argument(0)), block{bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.CLONE_THREAD, SkipFalse: 1}}, verdict(filterAllow))))),
			verdict(filterKill))},
	}
	p := join(
		load(bpf.LoadAbsolute{Off: 4, Size: 4}), block{bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1}}, verdict(filterKill),
		load(bpf.LoadAbsolute{Off: 0, Size: 4}), foreignCalls)
	for _, nr := range free {
		p = append(p, when(nr, verdict(filterAllow))...)
	}
	for _, c := range conditional {
		p = append(p, when(c.nr, c.then)...)
	}
	for _, nr := range paths {
		p = append(p, when(nr, verdict(filterNoFile))...)
	}
	for _, nr := range fatal {
		p = append(p, when(nr, verdict(filterKill))...)
	}
	return append(p, verdict(filterUnknown)...)
}

// filter installs the program for all threads of this process, for good.
func filter() error {
	raw, err := bpf.Assemble(program(uint32(os.Getpid())))
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	p := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	const setModeFilter = 1
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
