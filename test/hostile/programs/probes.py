# Cases 47, 48, 50: what tools for breaking out of containers look for. Each
# line is something that should not work.
import ctypes
import glob
import os
import shutil
import socket
import stat
import subprocess
import fcntl
import termios

libc = ctypes.CDLL(None, use_errno=True)


def finding(*what):
    print("FINDING", *what)


def attempt(name, f):
    try:
        got = f()
    except (OSError, ValueError, subprocess.SubprocessError):
        return
    if got is None or (got is not False and got != -1):
        finding(name, got)


def syscall(n, *args):
    return libc.syscall(n, *[ctypes.c_char_p(a) if isinstance(a, bytes) else a for a in args])


def read(path):
    try:
        with open(path) as f:
            return f.read()
    except (OSError, UnicodeDecodeError):
        return ""


def write(path, text):
    def do():
        with open(path, "w") as f:
            f.write(text)
    attempt("write " + path, do)


# Identity: no user, no capability, no way up.
status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status.get(key, "0"), 16):
        finding(key, status[key])
if status.get("NoNewPrivs", "1") != "1":
    finding("NoNewPrivs", status["NoNewPrivs"])
if 0 in os.getresuid() + os.getresgid() or 0 in os.getgroups():
    finding("uid", os.getresuid(), os.getresgid(), os.getgroups())
attempt("setuid 0", lambda: os.setuid(0))
attempt("setgid 0", lambda: os.setgid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("ambient capability", lambda: libc.prctl(47, 2, 21, 0, 0) == 0)
attempt("chroot", lambda: os.chroot("/tmp"))

# Mounts, sockets and devices of the host.
for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock",
             "/run/firebreak/firebreak.sock", "/var/run/secrets/kubernetes.io", "/host", "/rootfs"):
    if os.path.exists(path):
        finding("exists", path)
for s in glob.glob("/run/**/*.sock", recursive=True) + glob.glob("/tmp/*.sock"):
    finding("socket", s)
allowed = {"full", "null", "zero", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin", "stdout", "stderr", "fuse", "net", "console", "log", "char"}
for d in os.listdir("/dev"):
    if d not in allowed:
        finding("device", d)
for d in ("/dev/kvm", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda"):
    attempt("open " + d, lambda: os.open(d, os.O_RDWR))
# The sentry's own /dev/fuse and /dev/net/tun may be opened: what they are for may not be done.
attempt("tun device", lambda: fcntl.ioctl(os.open("/dev/net/tun", os.O_RDWR), 0x400454ca, b"tun0".ljust(16, b"\0") + b"\1\0".ljust(24, b"\0")))
attempt("fuse mount", lambda: libc.mount(b"none", b"/mnt", b"fuse", 0, b"fd=%d,rootmode=40000,user_id=1000,group_id=1000" % os.open("/dev/fuse", os.O_RDWR)) == 0)
for major, minor in ((1, 1), (8, 0), (254, 0), (10, 232)):
    attempt(f"mknod {major}:{minor}", lambda: os.mknod(f"/tmp/dev{major}", 0o60666, os.makedev(major, minor)))

# Kernel interfaces.
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper",
             "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/binfmt_misc/register", "/proc/sys/kernel/sysrq", "/proc/self/oom_score_adj.x",
             "/proc/1/oom_score_adj", "/proc/self/uid_map", "/sys/kernel/security/x"):
    write(path, "1")
for path in glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True) + glob.glob("/sys/fs/cgroup/**/cgroup.procs", recursive=True) \
        + glob.glob("/sys/fs/cgroup/**/memory.*limit*", recursive=True)[:20]:
    write(path, "0")
for path in ("/proc/kcore", "/proc/kmem", "/proc/kpagemap", "/sys/kernel/debug", "/proc/timer_list", "/proc/keys", "/proc/sched_debug"):
    if os.path.exists(path) and (read(path) or os.path.isdir(path) and os.listdir(path)):
        finding("readable", path)
if any(line.split()[0].strip("0") for line in read("/proc/kallsyms").splitlines()[:100]):
    finding("kernel addresses")

# System calls.
CLONE_NEWUSER, CLONE_NEWNS, CLONE_NEWNET, CLONE_NEWPID = 0x10000000, 0x20000, 0x40000000, 0x20000000
attempt("mount", lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0)
attempt("bind mount", lambda: libc.mount(b"/", b"/mnt", None, 4096, None) == 0)
attempt("umount", lambda: libc.umount2(b"/proc", 2) == 0)
attempt("pivot_root", lambda: syscall(155, b".", b".") == 0)
for name, flag in {"mount": CLONE_NEWNS, "net": CLONE_NEWNET, "pid": CLONE_NEWPID}.items():
    attempt("unshare " + name, lambda: libc.unshare(flag) == 0)
for ns in ("mnt", "pid", "net", "user", "uts", "ipc"):
    attempt("setns " + ns, lambda: libc.setns(os.open(f"/proc/1/ns/{ns}", os.O_RDONLY), 0) == 0)
attempt("bpf", lambda: syscall(321, 5, ctypes.create_string_buffer(128), 128))
attempt("perf_event_open", lambda: syscall(298, ctypes.create_string_buffer(b"\0\0\0\0\x78\0\0\0", 128), 0, -1, -1, 0))
attempt("userfaultfd", lambda: syscall(323, 0))
attempt("io_uring", lambda: syscall(425, 8, ctypes.create_string_buffer(256)))
attempt("keyctl", lambda: syscall(250, 0, -5, 0))
attempt("add_key", lambda: syscall(248, b"user", b"x", b"y", 1, -5))
attempt("open_by_handle_at", lambda: syscall(304, -100, ctypes.create_string_buffer(b"\x08\0\0\0\1\0\0\0\2\0\0\0\0\0\0\0", 32), 0))
attempt("kexec_load", lambda: syscall(246, 0, 0, 0, 0) == 0)
attempt("init_module", lambda: syscall(175, b"x", 1, b"") == 0)
attempt("finit_module", lambda: syscall(313, 0, b"", 0) == 0)
attempt("delete_module", lambda: syscall(176, b"x", 0) == 0)
attempt("swapon", lambda: syscall(167, b"/tmp/x", 0) == 0)
attempt("iopl", lambda: syscall(172, 3) == 0)
attempt("ioperm", lambda: syscall(173, 0, 8, 1) == 0)
attempt("syslog", lambda: libc.klogctl(3, ctypes.create_string_buffer(64), 64) > 0 and status["CapEff"] != "0" * 16)
attempt("reboot", lambda: syscall(169, 0xfee1dead, 672274793, 0x89abcdef, 0) == 0)
attempt("settimeofday", lambda: syscall(164, ctypes.create_string_buffer(16), 0) == 0)
attempt("sethostname", lambda: libc.sethostname(b"x", 1) == 0)
attempt("acct", lambda: syscall(163, b"/tmp/acct") == 0)
attempt("quotactl", lambda: syscall(179, 0x800001, 0, 0, 0) == 0)

# Networks.
for family, kind, proto in ((socket.AF_PACKET, socket.SOCK_RAW, 3), (socket.AF_INET, socket.SOCK_RAW, 1), (socket.AF_INET6, socket.SOCK_RAW, 58),
                            (40, socket.SOCK_STREAM, 0), (38, socket.SOCK_SEQPACKET, 0)):
    attempt(f"socket {family} {kind}", lambda: socket.socket(family, kind, proto).fileno())
for name in os.listdir("/sys/class/net") if os.path.isdir("/sys/class/net") else []:
    if name != "lo":
        finding("interface", name)

# Terminals: input pushed into somebody else's.
attempt("TIOCSTI", lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"))
attempt("TIOCSTI /dev/tty", lambda: fcntl.ioctl(os.open("/dev/tty", os.O_RDWR), termios.TIOCSTI, b"x"))

# Setuid binaries, file capabilities, preloads (case 50).
for path in ("/usr/bin/su", "/usr/bin/sudo", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/ping", "/usr/bin/newgrp", "/usr/bin/pkexec"):
    if os.path.exists(path) and os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID):
        out = subprocess.run([path, "--help"], capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
        del out
own = "/tmp/own"
shutil.copy("/usr/bin/id", own)
os.chmod(own, 0o6755)
if subprocess.run([own, "-u"], capture_output=True, text=True).stdout.strip() != str(os.getuid()):
    finding("a setuid copy changes the user")
attempt("chown to root", lambda: os.chown(own, 0, 0))
# gVisor lets anybody write the attribute; what counts is that it gives nothing.
shutil.copy("/usr/bin/cat", "/tmp/cat")
try:
    os.setxattr("/tmp/cat", "security.capability", bytes.fromhex("01000002" + "ffffffff" * 4))
except OSError:
    pass
for line in subprocess.run(["/tmp/cat", "/proc/self/status"], capture_output=True, text=True).stdout.splitlines():
    if line.startswith("Cap") and int(line.split()[1], 16):
        finding("file capabilities give", line)
attempt("trusted attribute", lambda: os.setxattr(own, "trusted.x", b"1"))
env = dict(os.environ, LD_PRELOAD="/tmp/evil.so", LD_AUDIT="/tmp/evil.so", GCONV_PATH="/tmp", GLIBC_TUNABLES="glibc.malloc.check=3")
out = subprocess.run(["id", "-u"], capture_output=True, text=True, env=env).stdout.strip()
if out and out != str(os.getuid()):
    finding("preload", out)
for path in ("/etc/ld.so.preload", "/etc/ld.so.cache", "/etc/passwd", "/etc/shadow", "/etc/sudoers.d/x", "/usr/bin/x", "/lib/x", "/.firebreak/x",
             "/etc/profile", "/root/x", "/.firebreak/python/firebreak.py", "/usr/lib/python3/sitecustomize.py"):
    attempt("write " + path, lambda: os.open(path, os.O_WRONLY | os.O_CREAT))
attempt("read /etc/shadow", lambda: open("/etc/shadow").read())
attempt("list /root", lambda: os.listdir("/root"))
print("probed")
