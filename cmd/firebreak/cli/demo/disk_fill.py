import errno, firebreak, os

n, why = 0, ""
try:
    with open("fill", "wb", buffering=0) as f:
        while True:
            n += f.write(b"x" * 65536)
except OSError as e:
    why = errno.errorcode[e.errno]
os.remove("fill")
firebreak.result({"bytes": n, "why": why})
