# Cases 10 and 13, inside TLS: one name in front and another behind it; TLS that
# hides whom it is for, is too old, or trusts nobody but the server.
import sys
from attempts import *

allowed, evil = sys.argv[1:3]


def session(alpn=None, maximum=None):
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    if alpn:
        c.set_alpn_protocols(alpn)
    if maximum:
        c.set_ciphers("ALL:@SECLEVEL=0")
        c.minimum_version = c.maximum_version = maximum
    return c.wrap_socket(socket.create_connection((allowed, 443)), server_hostname=allowed)


def fronted(*hosts, target="/"):
    """Requests on one connection; a finding if one arrives as for the other host."""
    def do():
        with session() as s:
            for h in hosts:
                s.sendall(f"GET {target} HTTP/1.1\r\nHost: {h}\r\n\r\n".encode())
            got = b""
            try:
                while evil.encode() not in got:
                    more = s.recv(4096)
                    if not more:
                        break
                    got += more
            except OSError:
                pass
            return got if b"for " + evil.encode() in got else None
    return do


def literal(name, value):
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def streams(*fields):
    """HTTP/2 streams, one for each list of fields; what the last one is answered."""
    def do():
        with session(["h2"]) as s:
            if s.selected_alpn_protocol() != "h2":
                return None
            s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
            for i, f in enumerate(fields):
                head = b"".join(literal(n, v) for n, v in [(":method", "GET"), (":scheme", "https"), (":path", "/")] + f)
                s.sendall(frame(1, 5, 2 * i + 1, head))
            got = b""
            while True:
                head = exact(s, 9)
                size, kind, flags, stream = int.from_bytes(head[:3], "big"), head[3], head[4], int.from_bytes(head[5:], "big")
                payload = exact(s, size)
                if kind == 0 and stream == 2 * len(fields) - 1:
                    got += payload
                if kind in (0, 1, 3) and stream == 2 * len(fields) - 1 and (flags & 1 or kind == 3) or kind == 7:
                    return got if b"for " + evil.encode() in got else None
    return do


def hello(*extensions):
    """A ClientHello by hand; a finding if a server goes on with it."""
    name = allowed.encode()
    more = struct.pack(">HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    more += struct.pack(">HHHHH", 10, 6, 4, 29, 23) + struct.pack(">HHHHHH", 13, 8, 6, 0x0403, 0x0804, 0x0401) + struct.pack(">HHBB", 11, 2, 1, 0)
    for kind, data in extensions:
        more += struct.pack(">HH", kind, len(data)) + data
    body = b"\3\3" + bytes(32) + b"\0" + struct.pack(">HHHHH", 8, 0xc02b, 0xc02f, 0xc02c, 0xc030) + b"\1\0" + struct.pack(">H", len(more)) + more
    message = b"\1" + struct.pack(">I", len(body))[1:] + body
    got = tcp(allowed, 443, b"\x16\3\1" + struct.pack(">H", len(message)) + message)
    return got if got[:2] == b"\x16\3" and got[5] == 2 else None


def pinned():
    """Who the server is; a finding if nobody stands between."""
    with session() as s:
        der = s.getpeercert(True)
        return None if b"Firebreak" in der else b"the server's own certificate"


def old(version):
    def do():
        with session(maximum=version) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: {allowed}\r\nConnection: close\r\n\r\n".encode())
            return read(s)
    return do


good = (":authority", allowed)
work = [
    ("Host of another", fronted(evil)),
    ("Host of another, second", fronted(allowed, evil)),
    ("absolute target", fronted(allowed, target=f"https://{evil}/")),
    ("the second stream", streams([good], [(":authority", evil)])),
    ("a Host beside the authority", streams([good], [good, ("host", evil)], [(":authority", evil), ("host", allowed)])),
    ("a Host alone", streams([good], [("host", evil)])),
    ("ECH", lambda: hello((0xfe0d, b"\0\0\1\0\1\0\0 " + bytes(32) + struct.pack(">H", 144) + bytes(144)))),
    ("ESNI", lambda: hello((0xffce, bytes(64)))),
    ("TLS 1.0", old(ssl.TLSVersion.TLSv1)),
    ("TLS 1.1", old(ssl.TLSVersion.TLSv1_1)),
    ("pinned", pinned),
]
all_at_once(work, 4)
