# Case 31: inodes, by many small files.
import errno

n = 0
try:
    while n < 20000:
        with open(f"f{n}", "wb") as f:
            f.write(b"x" * 100)
        n += 1
    print("made", n)
except OSError as e:
    print("stopped", n, errno.errorcode[e.errno])
