# Case 51: everything that /proc, /sys and uname tell.
import os
import socket
import sys

print(" ".join(os.uname()))
print(socket.gethostname())
seen = 0
for top in ("/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/machine-id", "/var/lib/dbus", "/run", "/etc/resolv.conf", "/etc/mtab", "/dev"):
    files = [top] if os.path.isfile(top) else (os.path.join(d, f) for d, dirs, names in os.walk(top)
                                               for f in names if not d.startswith("/proc/self/task") and "/task/" not in d)
    for path in files:
        if path.endswith(("/mem", "/kcore", "/pagemap", "/clear_refs", "trace_pipe", "/kmsg")) or seen > 20000:
            continue
        if "/maps" in path or "/smaps" in path or "/cpuinfo" in path:
            continue
        seen += 1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            text = os.read(fd, 65536)
            os.close(fd)
        except OSError:
            text = b""
        print("##", path)
        sys.stdout.buffer.write(text.replace(b"\0", b" ")[:8192])
        sys.stdout.flush()
        try:
            print("->", os.readlink(path))
        except OSError:
            pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    print("pid", pid, open(f"/proc/{pid}/cmdline", "rb").read())
