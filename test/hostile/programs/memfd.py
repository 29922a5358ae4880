# Case 29: memory that belongs to no process: anonymous files.
import os

page = b"x" * (1 << 20)
held = []
while True:
    held.append(os.memfd_create("balloon"))
    for _ in range(8):
        os.write(held[-1], page)
