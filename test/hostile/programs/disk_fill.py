# Case 31: every place that can be written, until it is full.
import errno
import os

page = b"x" * (1 << 20)
for place in ("/home/user", "/tmp"):
    n = 0
    try:
        with open(os.path.join(place, "fill"), "wb", buffering=0) as f:
            while n < 4096:
                f.write(page)
                n += 1
    except OSError as e:
        print(place, n, errno.errorcode[e.errno])
