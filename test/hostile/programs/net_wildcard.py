# Case 6: data in names below a wildcard that is allowed: each connection to a new
# one asks its zone.
import base64
import os
import sys
from attempts import *

zone, count = sys.argv[1], int(sys.argv[2])
names = [f"{i}-{base64.b32encode(os.urandom(20)).decode().lower()}.{zone}" for i in range(count)]


def one(name):
    try:
        return b"reached" in http(name)
    except OSError:
        return False


with concurrent.futures.ThreadPoolExecutor(16) as pool:
    got = sum(pool.map(one, names))
print("tried", count, "names")
print("passed", got)
