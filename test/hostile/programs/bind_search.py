# Case 21: uses the binding, then looks for its secret everywhere inside: in every
# file that opens, in what processes have in their environments, command lines and
# memory.
import stat

from attempts import *
from masked import *

print("used", curl(*(x for k, v in OWN for x in ("-H", f"{k}: {v}")), BASE + "/v1/models")[:60], flush=True)
looked = skipped = 0


def look(path, data):
    for name in holds(data, SECRET):
        print("FINDING", path, name, flush=True)


def file(path, limit=64 << 20):
    global looked, skipped
    try:
        with open(path, "rb") as f:
            look(path, f.read(limit))
        looked += 1
    except OSError:
        skipped += 1


def memory(pid):
    global looked
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
            for line in maps:
                span, mode = line.split()[:2]
                low, high = (int(x, 16) for x in span.split("-"))
                if "r" not in mode or high - low > 256 << 20:
                    continue
                try:
                    mem.seek(low)
                    look(f"memory of {pid} at {span}", mem.read(high - low))
                    looked += 1
                except (OSError, ValueError, OverflowError):
                    pass
    except OSError:
        pass


me = os.getpid()
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "status", "maps"):
        if int(pid) != me or name != "cmdline":
            file(f"/proc/{pid}/{name}")
    if int(pid) != me:  # which knows it, to look for it
        memory(pid)
for top, dirs, names in os.walk("/"):
    if top.startswith(("/proc/", "/sys")) or top in ("/usr/share", "/usr/lib/go"):
        dirs[:] = []
        if top.startswith("/proc/"):
            continue
    for n in names:
        path = os.path.join(top, n)
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                # The base is read-only and was there before the secret: its beginnings do.
                file(path, 128 << 10 if top.startswith("/usr/") else 4 << 20)
        except OSError:
            skipped += 1
for name in ("net/tcp", "net/udp", "net/unix", "net/arp", "net/route", "cmdline", "version", "mounts"):
    file("/proc/" + name)
print("searched", looked, "not readable", skipped, flush=True)
