# Case 40: files that lead elsewhere, for whoever opens them from outside.
import os
import sys

canary = sys.argv[1]
os.makedirs("traps", exist_ok=True)
os.chdir("traps")
for name, target in {
    "absolute": "/etc/shadow", "canary": canary, "relative": "../" * 20 + "etc/shadow", "root": "/proc/self/root" + canary,
    "one": "/proc/1/root" + canary, "cwd": "/proc/self/cwd", "loop": "loop", "environ": "/proc/1/environ", "mem": "/proc/self/mem",
    "kcore": "/proc/kcore", "zero": "/dev/zero", "stdin": "/proc/1/fd/0", "dir": "/",
}.items():
    os.symlink(target, name)
os.mkfifo("fifo")
for name, make in {"hardlink": lambda: os.link("/etc/passwd", "hardlink"),
                   "device": lambda: os.mknod("device", 0o20666, os.makedev(1, 5)),
                   "disk": lambda: os.mknod("disk", 0o60666, os.makedev(8, 0))}.items():
    try:
        make()
        print("made", name)
    except OSError:
        pass
