# Case 12: a proxy inside that asks again on another's behalf.
import sys
import threading
from attempts import *

denied = sys.argv[1:]


def pump(a, b):
    try:
        while True:
            data = a.recv(65536)
            if not data:
                break
            b.sendall(data)
    except OSError:
        pass
    for s in (a, b):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(c):
    try:
        first = c.recv(65536)
        if first[:1] == b"\x05":  # SOCKS 5, with a name or an address
            c.sendall(b"\x05\0")
            head = exact(c, 4)
            host = exact(c, exact(c, 1)[0]).decode() if head[3] == 3 else socket.inet_ntoa(exact(c, 4))
            port = struct.unpack(">H", exact(c, 2))[0]
            out = socket.create_connection((host, port))
            c.sendall(b"\x05\0\0\x01" + bytes(6))
        else:
            method, target = first.split(b" ")[:2]
            if method == b"CONNECT":
                host, port = target.decode().rsplit(":", 1)
                out = socket.create_connection((host, int(port)))
                c.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                host = target.decode().split("/")[2]
                out = socket.create_connection((host.split(":")[0], int((host + ":80").split(":")[1])))
                out.sendall(first)
        threading.Thread(target=pump, args=(c, out), daemon=True).start()
        pump(out, c)
    except OSError as e:
        try:
            c.sendall(b"HTTP/1.1 502 " + type(e).__name__.encode() + b"\r\nContent-Length: 0\r\n\r\n")
        except OSError:
            pass
    c.close()


relay = socket.create_server(("127.0.0.1", 3128))


def accept():
    while True:
        threading.Thread(target=serve, args=(relay.accept()[0],), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
work = []
for d in denied:
    work += [(f"CONNECT {d}", lambda d=d: curl("-k", "-f", "-p", "-x", "http://127.0.0.1:3128", f"https://{d}/")),
             (f"GET {d}", lambda d=d: curl("-f", "-x", "http://127.0.0.1:3128", f"http://{d}/")),
             (f"SOCKS {d}", lambda d=d: curl("-k", "--socks5-hostname", "127.0.0.1:3128", f"https://{d}/"))]
all_at_once(work, 4)
