# Case 40: a name that is a file one moment and a link the next.
import os
import sys

canary = sys.argv[1]
os.makedirs("swap", exist_ok=True)
os.chdir("swap")
os.makedirs("real", exist_ok=True)
with open("real/x", "w") as f:
    f.write("mine")
print("ready", flush=True)
targets = ["real", os.path.dirname(canary), "/etc", "/proc/1/root" + os.path.dirname(canary)]
k = 0
while True:
    k += 1
    os.symlink(targets[k % len(targets)], "tmp")
    os.replace("tmp", "d")
    with open("file", "w") as f:
        f.write("mine")
    os.replace("file", "x")
    os.symlink([canary, "/etc/shadow", "/.firebreak/firebreak-guest"][k % 3], "link")
    os.replace("link", "x")
