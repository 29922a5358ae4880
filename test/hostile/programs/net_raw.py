# Case 7: every other way to put a packet on a wire.
import sys
from attempts import *

sink, allowed = sys.argv[1], sys.argv[2]
quic = b"\xc3\0\0\0\x01\x08" + bytes(8) + b"\0\0\x44\x9e" + bytes(1182)
ntp = b"\x1b" + bytes(47)
snmp = bytes.fromhex("302602010104067075626c6963a019020100020100020100300e300c06082b060102010105000500")
work = [(f"tcp {port}", lambda port=port: tcp(sink, port)) for port in (7, 21, 22, 25, 80, 443, 1080, 4444, 8080, 8443, 9000, 12345)]
work += [(f"udp {port}", lambda port=port, data=data: udp(sink, port, data) or "sent")
         for port, data in ((443, quic), (80, quic), (123, ntp), (161, snmp), (53, b"no query"), (67, bytes(240)), (1900, b"M-SEARCH"), (4444, b"x" * 1400), (51820, bytes(148)))]
# An allowed host allows TLS, not everything that has its address.
work += [("QUIC to an allowed host", lambda: udp(allowed, 443, quic)), ("udp to an allowed host", lambda: udp(allowed, 4444, b"x")),
         ("raw bytes to an allowed host", lambda: tcp(allowed, 443, b"\0\1\2\3 what was found inside")), ("ssh to an allowed host", lambda: tcp(allowed, 443, b"SSH-2.0-x\r\n"))]


def raw(family, kind, protocol, to, data):
    def do():
        with socket.socket(family, kind, protocol) as s:
            s.settimeout(1)
            s.sendto(data, to)
            return "sent " + str(s.recv(2048)[:20])
    return do


echo = b"\x08\0\xf7\xff\0\0\0\0"
header = bytes.fromhex("450000240001000040110000") + bytes(4) + socket.inet_aton(sink) + struct.pack(">HHHH", 53, 53, 16, 0) + b"straight"
work += [
    ("ping", raw(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, (sink, 0), echo)),
    ("raw icmp", raw(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, (sink, 0), echo)),
    ("raw udp", raw(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP, (sink, 0), struct.pack(">HHHH", 53, 53, 16, 0) + b"straight")),
    ("own header", raw(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW, (sink, 0), header)),
    ("gre", raw(socket.AF_INET, socket.SOCK_RAW, 47, (sink, 0), b"\0\0\x08\0" + header)),
    ("ip in ip", raw(socket.AF_INET, socket.SOCK_RAW, 4, (sink, 0), header)),
    ("raw icmp6", raw(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6, ("2606:4700::7", 0), b"\x80\0\0\0\0\0\0\0")),
]


def sctp():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132) as s:
        s.settimeout(1)
        s.connect((sink, 443))
        return "connected"


def oob():
    with socket.create_connection((sink, 443)) as s:
        s.send(b"!", socket.MSG_OOB)
        return "sent"


def fast_open():
    with socket.socket() as s:
        s.settimeout(2)
        s.sendto(b"data in the SYN", 0x20000000, (sink, 9000))
        return s.recv(100)


work += [("sctp", sctp), ("urgent data", oob), ("data in the SYN", fast_open)]
all_at_once(work)
