# Tries the ways out that tools for breaking out of containers try. What got
# through is listed by group.
import ctypes, firebreak, os, socket, sys

victim = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
tried, through = {}, {}


def attempt(group, name, f):
    tried[group] = tried.get(group, 0) + 1
    try:
        got = f()
    except (OSError, ValueError):
        return
    if got is not False and got != -1:
        through.setdefault(group, []).append(name)


def connect(path):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)


def write(path, text="1"):
    with open(path, "w") as f:
        f.write(text)


def content(path):
    with open(path, "rb") as f:
        return len(f.read(64)) > 0


for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock",
             "/run/podman/podman.sock", "/run/firebreak/firebreak.sock", "/run/systemd/private", "/run/dbus/system_bus_socket"):
    attempt("sockets", path, lambda: connect(path))

for path in (victim, "/proc/self/root" + victim, "/proc/1/root" + victim, "/proc/1/cwd" + victim, "../" * 40 + victim,
             "/etc/shadow", "/root/.ssh", "/var/lib/firebreak", "/var/run/secrets/kubernetes.io"):
    attempt("files", path, lambda: content(path) if not os.path.isdir(path) else os.listdir(path) != [])
    attempt("files", "write " + path, lambda: write(path))

for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/sys/kernel/uevent_helper",
             "/proc/sys/fs/binfmt_misc/register", "/proc/1/oom_score_adj", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/cgroup.procs"):
    attempt("/proc and /sys", "write " + path, lambda: write(path))
for path in ("/proc/kcore", "/proc/kmem", "/proc/1/environ", "/proc/1/mem", "/proc/kmsg"):
    attempt("/proc and /sys", "read " + path, lambda: content(path))
attempt("/proc and /sys", "kill 1", lambda: os.kill(1, 9))
attempt("/proc and /sys", "ptrace 1", lambda: libc.ptrace(16, 1, 0, 0) == 0)

attempt("mounts", "tmpfs", lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0)
attempt("mounts", "proc", lambda: libc.mount(b"none", b"/mnt", b"proc", 0, None) == 0)
attempt("mounts", "bind", lambda: libc.mount(b"/", b"/mnt", None, 4096, None) == 0)
attempt("mounts", "remount", lambda: libc.mount(None, b"/", None, 32, None) == 0)
attempt("mounts", "umount", lambda: libc.umount2(b"/proc", 2) == 0)
attempt("mounts", "pivot_root", lambda: libc.syscall(155, b".", b".") == 0)
attempt("mounts", "chroot", lambda: os.chroot("/tmp") is None)
for ns in ("mnt", "pid", "net", "user"):
    attempt("mounts", "setns " + ns, lambda: libc.setns(os.open(f"/proc/1/ns/{ns}", os.O_RDONLY), 0) == 0)
for path in ("/usr/bin/x", "/lib/x", "/etc/passwd", "/etc/ld.so.preload", "/.firebreak/x"):
    attempt("mounts", "write " + path, lambda: os.open(path, os.O_WRONLY | os.O_CREAT))

for path in ("/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/sda", "/dev/vda", "/dev/nvme0n1", "/dev/loop-control", "/dev/mapper/control"):
    attempt("devices", path, lambda: os.open(path, os.O_RDONLY))
for major, minor in ((1, 1), (8, 0), (254, 0), (10, 232)):
    attempt("devices", f"mknod {major}:{minor}", lambda: os.mknod(f"/tmp/dev{major}", 0o60666, os.makedev(major, minor)))

attempt("kernel", "setuid 0", lambda: os.setuid(0))
attempt("kernel", "load a module", lambda: libc.syscall(175, b"x", 1, b"") == 0)
attempt("kernel", "kexec", lambda: libc.syscall(246, 0, 0, 0, 0) == 0)
attempt("kernel", "bpf", lambda: libc.syscall(321, 5, ctypes.create_string_buffer(128), 128) >= 0)
attempt("kernel", "open_by_handle_at", lambda: libc.syscall(
    304, -100, ctypes.create_string_buffer(b"\x08\0\0\0\1\0\0\0\2\0\0\0\0\0\0\0", 32), 0) >= 0)
attempt("kernel", "reboot", lambda: libc.syscall(169, 0xfee1dead, 672274793, 0x89abcdef, 0) == 0)
attempt("kernel", "iopl", lambda: libc.syscall(172, 3) == 0)

try:
    boot = open("/proc/sys/kernel/random/boot_id").read().strip()
except OSError:
    boot = ""
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
firebreak.result({
    "tried": tried, "through": through, "uid": os.getuid(), "capabilities": status["CapEff"].strip(),
    "processes": sum(p.isdigit() for p in os.listdir("/proc")), "kernel": open("/proc/version").read().strip(),
    "boot": boot,
})
