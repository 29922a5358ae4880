# Case 29: /dev/shm, whose files are memory.
import errno

page, n = b"x" * (1 << 20), 0
try:
    with open("/dev/shm/fill", "wb", buffering=0) as f:
        while n < 4096:
            n += f.write(page) >> 20
except OSError as e:
    print("stopped", n, errno.errorcode[e.errno])
