# Case 32: output without end, without lines, without text.
import os
import sys

kind = sys.argv[1]
if kind == "endless":
    while True:
        os.write(1, b"x" * 65536)
        os.write(2, b"y" * 65536)
if kind == "line":
    part = b"z" * (1 << 20)
    for _ in range(int(sys.argv[2])):
        os.write(1, part)
if kind == "binary":
    os.write(1, bytes(range(256)) * 64)
    os.write(2, b"\xc3\x28\xff\xfe\xed\xa0\x80" * 64)
