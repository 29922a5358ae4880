# Case 31: files that are large in name only, and one that is not.
import errno
import os

for k in range(20):
    try:
        with open(f"sparse{k}", "wb") as f:
            f.truncate(1 << 40)
            f.seek((1 << 40) - 1)
            f.write(b"x")
    except OSError as e:
        print(k, errno.errorcode[e.errno])
        break
try:
    with open("allocated", "wb") as f:
        os.posix_fallocate(f.fileno(), 0, 8 << 30)
    print("allocated", os.stat("allocated").st_blocks * 512 >> 20)
except OSError as e:
    print("fallocate", errno.errorcode[e.errno])
