# Case 34: what is left of stubborn.py.
import os

for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        line = open(f"/proc/{pid}/cmdline", "rb").read()
    except OSError:
        continue
    if b"stubborn" in line or b"code.py" in line and int(pid) != os.getpid():
        print(pid, line)
