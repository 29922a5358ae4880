# Asks the addresses where clouds keep a machine's credentials, in every spelling.
import errno, firebreak, socket

unresolved = {v: k for k, v in vars(socket).items() if k.startswith("EAI_")}
spellings = {
    "as written": "169.254.169.254", "decimal": "2852039166", "hexadecimal": "0xa9fea9fe",
    "dotted hexadecimal": "0xa9.0xfe.0xa9.0xfe", "octal": "0251.0376.0251.0376", "short": "169.254.43518",
    "IPv6-mapped": "::ffff:169.254.169.254", "IPv6-mapped in hexadecimal": "::ffff:a9fe:a9fe",
    "NAT64": "64:ff9b::a9fe:a9fe", "AWS IPv6": "fd00:ec2::254", "AWS tasks": "169.254.170.2",
    "Alibaba": "100.100.100.200", "Azure": "168.63.129.16", "Google's name": "metadata.google.internal",
}


def ask(host):
    try:
        with socket.create_connection((host, 80), 2) as s:
            s.sendall(b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.0\r\n\r\n")
            return "connected"
    except OSError as e:
        return unresolved.get(e.errno) or errno.errorcode.get(e.errno) or str(e)


def routes():
    try:
        with open("/proc/net/route") as f:
            return [line.split()[0] for line in f.readlines()[1:]]
    except FileNotFoundError:
        return []


firebreak.result({
    "answers": {how: ask(host) for how, host in spellings.items()},
    "devices": sorted(name for _, name in socket.if_nameindex()),
    "routes": [r for r in routes() if r != "lo"],
})
