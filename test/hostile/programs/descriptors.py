# Case 35: every descriptor this program and its children can get, for a while.
import os
import socket
import time

held = []
try:
    while len(held) < 200_000:
        held.extend(socket.socketpair())
        held.append(open("/dev/zero", "rb"))
except OSError:
    pass
print("held", len(held), flush=True)
for _ in range(4):
    try:
        os.fork()
    except OSError:
        break
time.sleep(2)
