# Case 34: children that hear nothing, leave the session, hold the output open,
# are stopped, or are not children any more.
import os
import signal
import sys
import time

for s in range(1, 65):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
for k in range(4):
    if os.fork():
        continue
    if k & 1:
        os.setsid()
    if k & 2 and os.fork():
        os._exit(0)  # its child is an orphan
    if k == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
    os._exit(0)
print("started", flush=True)
if sys.argv[1] == "stay":
    time.sleep(600)
