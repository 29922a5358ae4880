# Cases 10 and 13: one host for the policy, another for the server.
import sys
from attempts import *

allowed, evil = sys.argv[1:3]


def said(f):
    """A finding only if the server took it for the other host."""
    def do():
        got = f()
        return got if evil.encode() in got or b"400" not in got[:15] and b"reached" in got else None
    return do


def get(head):
    return lambda: tcp(allowed, 80, head.encode() + b"\r\nConnection: close\r\n\r\n")


work = [
    ("SNI of another", lambda: tls(allowed, sni=evil)),
    ("SNI of another on its port 8443", lambda: tls(allowed, 8443, sni=evil)),
    ("no SNI", lambda: tls(allowed, sni="")),
    ("TLS 1.0", lambda: tls(allowed, sni=evil, maximum=ssl.TLSVersion.TLSv1)),
    ("Host of another", said(get(f"GET / HTTP/1.1\r\nHost: {evil}"))),
    ("two Hosts", said(get(f"GET / HTTP/1.1\r\nHost: {allowed}\r\nHost: {evil}"))),
    ("two Hosts, the other first", said(get(f"GET / HTTP/1.1\r\nHost: {evil}\r\nHost: {allowed}"))),
    ("folded Host", said(get(f"GET / HTTP/1.1\r\nHost: {allowed}\r\n {evil}"))),
    ("no Host", said(get("GET / HTTP/1.1\r\nX: y"))),
    ("absolute target", said(get(f"GET http://{evil}/ HTTP/1.1\r\nHost: {allowed}"))),
    ("absolute target with user", said(get(f"GET http://{allowed}@{evil}/ HTTP/1.1\r\nHost: {allowed}"))),
    ("CONNECT", said(get(f"CONNECT {evil}:443 HTTP/1.1\r\nHost: {allowed}"))),
    ("HTTP/1.0", said(get(f"GET / HTTP/1.0\r\nHost: {evil}"))),
    ("HTTP/2 without TLS", said(lambda: curl("--http2-prior-knowledge", "-H", f"Host: {evil}", f"http://{allowed}/"))),
    ("bare line feeds", said(lambda: tcp(allowed, 80, f"GET / HTTP/1.1\nHost: {evil}\nConnection: close\n\n".encode()))),
]
all_at_once(work, 4)
