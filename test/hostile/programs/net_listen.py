# A neighbour that hears whatever comes.
import select
import socket
import sys
import time

sockets = []
for port in (67, 80, 137, 443, 1900, 5353, 5355, 9000):
    for family, kind in ((socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)):
        s = socket.socket(family, kind)
        try:
            s.bind(("0.0.0.0", port if port > 1023 else port + 20000))
            if kind == socket.SOCK_STREAM:
                s.listen()
            sockets.append(s)
        except OSError:
            s.close()
heard = 0
print("listening", len(sockets), flush=True)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for s in select.select(sockets, [], [], 0.2)[0]:
        if s.type == socket.SOCK_STREAM:
            print("FINDING connected by", s.accept()[1], flush=True)
        else:
            print("FINDING heard", s.recvfrom(2048), flush=True)
        heard += 1
print("heard", heard)
