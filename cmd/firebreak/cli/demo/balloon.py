x = bytearray(10**9)
