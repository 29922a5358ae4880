# Case 30: every CPU busy, a storm of timers, and no signal that is heard.
import os
import signal

for s in range(1, 65):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
for _ in range(2 * (os.cpu_count() or 1)):
    if os.fork() == 0:
        break
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
while True:
    pass
