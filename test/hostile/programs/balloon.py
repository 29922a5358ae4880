# Case 29: memory, touched page by page.
held = []
while True:
    held.append(bytearray(4 << 20))
