# Case 27: as many connections at once as there can be, to hosts that are allowed
# and to ones that are not.
import resource
import selectors
import sys
import time
from attempts import *

allowed, denied, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
try:
    address = socket.gethostbyname(allowed)
except OSError:
    address = denied
done = {"connected": 0, "refused": 0, "none": 0}
begun = 0
end = time.monotonic() + 12
open_sockets = []
watch = selectors.DefaultSelector()
while begun < count and time.monotonic() < end:
    while begun < count and len(watch.get_map()) < 1000:
        s = socket.socket()
        s.setblocking(False)
        begun += 1
        try:
            s.connect_ex((address if begun % 4 else denied, 80))
            watch.register(s, selectors.EVENT_WRITE)
        except OSError:
            done["none"] += 1
            s.close()
    for key, _ in watch.select(1):
        s = key.fileobj
        watch.unregister(s)
        if s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            done["refused"] += 1
            s.close()
            continue
        done["connected"] += 1
        try:
            s.send(b"GET / HTTP/1.1\r\nHost: " + allowed.encode() + b"\r\n\r\n")
            open_sockets.append(s)
        except OSError:
            s.close()
        if len(open_sockets) > min(hard, 1 << 20) - 1200:
            for s in open_sockets[:1000]:
                s.close()
            del open_sockets[:1000]
print("tried", begun, "connections -", done, "held", len(open_sockets))
