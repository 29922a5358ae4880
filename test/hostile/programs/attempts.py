# What the programs against the network share. Each attempt is printed, and what
# came of it: FINDING is what must not be.
import concurrent.futures
import os
import socket
import ssl
import struct
import subprocess

socket.setdefaulttimeout(4)


def attempt(name, f):
    try:
        got = f()
    except (OSError, ValueError, subprocess.SubprocessError, EOFError) as e:
        print("tried", name, "-", type(e).__name__, str(e)[:80], flush=True)
        return None
    if got:
        print("FINDING", name, "-", str(got)[:200].replace("\n", " "), flush=True)
    else:
        print("tried", name, "- nothing", flush=True)
    return got


def all_at_once(attempts, workers=16):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda a: attempt(*a), attempts))


def read(s, limit=4096):
    data = b""
    try:
        while len(data) < limit:
            more = s.recv(4096)
            if not more:
                break
            data += more
    except OSError:
        if not data:
            raise
    return data


def tcp(host, port, payload=b"GET / HTTP/1.0\r\n\r\n"):
    """Sends to whoever is there and returns what comes back."""
    with socket.create_connection((host, port)) as s:
        s.sendall(payload)
        return read(s)


def http(host, port=80, name=None, path="/"):
    return tcp(host, port, f"GET {path} HTTP/1.1\r\nHost: {name or host}\r\nConnection: close\r\n\r\n".encode())


def tls(host, port=443, sni=None, name=None, minimum=None, maximum=None):
    """Asks by HTTPS whoever is there, in the name of sni; '' is no name."""
    c = ssl.create_default_context()
    c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
    if maximum:
        c.set_ciphers("ALL:@SECLEVEL=0")
        c.minimum_version = c.maximum_version = maximum
    with socket.create_connection((host, port)) as raw:
        with c.wrap_socket(raw, server_hostname=host if sni is None else sni or None) as s:
            s.sendall(f"GET / HTTP/1.1\r\nHost: {name or sni or host}\r\nConnection: close\r\n\r\n".encode())
            return read(s)


def udp(host, port, payload):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.connect((host, port))
        for _ in range(3):
            s.send(payload)
        return s.recv(4096)


def curl(*args, **env):
    p = subprocess.run(["curl", "-sS", "-m", "5", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20, env={**os.environ, **env})
    if p.returncode:
        raise ValueError(p.stderr.decode(errors="replace"))
    return p.stdout


def resolver():
    with open("/etc/resolv.conf") as f:
        for line in f:
            if line.startswith("nameserver"):
                return line.split()[1]
    raise OSError("no name server")


def question(name, kind, raw=None):
    """A DNS query; raw are the bytes of the name in place of its labels."""
    labels = raw if raw is not None else b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0"
    return struct.pack(">HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">HH", kind, 1)


def answers(reply):
    """How many records a DNS reply has, if the name exists."""
    if len(reply) < 12 or reply[3] & 15:
        return 0
    return struct.unpack(">H", reply[6:8])[0]


def exact(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError("closed")
        data += more
    return data


def dns(server, query, transport="udp", port=53):
    """Asks a name server and returns the reply."""
    if transport == "udp":
        return udp(server, port, query)
    with socket.create_connection((server, port)) as s:
        if transport == "tls":
            c = ssl.create_default_context()
            c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
            s = c.wrap_socket(s)
        s.sendall(struct.pack(">H", len(query)) + query)
        return exact(s, struct.unpack(">H", exact(s, 2))[0])
