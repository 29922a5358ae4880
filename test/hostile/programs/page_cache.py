# Case 29: more file data than memory, read again and again.
import os

size = 160 << 20
with open("big", "wb", buffering=0) as f:
    for _ in range(size >> 20):
        f.write(os.urandom(1 << 10) * (1 << 10))
total = 0
for _ in range(2):
    with open("big", "rb", buffering=0) as f:
        while part := f.read(1 << 20):
            total += len(part)
print("read", total >> 20)
