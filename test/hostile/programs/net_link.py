# Case 8: the link itself: IPv6, groups, broadcasts, other machines on it, and
# pretending to be one.
import sys
from attempts import *

sink6, neighbour = sys.argv[1], sys.argv[2:]
work = [("tcp6", lambda: tcp(sink6, 80)), ("tcp6 tls", lambda: tls(sink6)), ("udp6", lambda: udp(sink6, 53, question("x.evil.example", 1))),
        ("mapped", lambda: http("::ffff:93.184.8.1")), ("nat64", lambda: http("64:ff9b::5db8:801"))]


def send(family, to, data, *options):
    def do():
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.settimeout(1)
            for o in options:
                s.setsockopt(*o)
            s.sendto(data, to)
            return "answered by " + str(s.recvfrom(2048)[1])
    return do


dhcp = b"\x01\x01\x06\0" + bytes(232) + b"\x63\x82\x53\x63\x35\x01\x01\xff"
mdns = question("_services._dns-sd._udp.local", 12)
broadcast = (socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
work += [
    ("dhcp", send(socket.AF_INET, ("255.255.255.255", 67), dhcp, broadcast)),
    ("mdns", send(socket.AF_INET, ("224.0.0.251", 5353), mdns)),
    ("ssdp", send(socket.AF_INET, ("239.255.255.250", 1900), b"M-SEARCH * HTTP/1.1\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n")),
    ("llmnr", send(socket.AF_INET, ("224.0.0.252", 5355), question("gateway", 1))),
    ("subnet broadcast", send(socket.AF_INET, ("10.200.0.3", 137), b"x" * 50, broadcast)),
    ("all nodes", send(socket.AF_INET6, ("ff02::1", 5353, 0, 2), mdns)),
    ("link-local", send(socket.AF_INET6, ("fe80::1", 547, 0, 2), dhcp)),
]


def group():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.bind(("224.0.0.251", 5353))  # what is sent to this machine alone is not heard
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.251") + socket.inet_aton("0.0.0.0"))
        return s.recv(2048)


def frames(data):
    def do():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
            s.bind(("eth0", 0))
            s.send(data)
            return "sent a frame"
    return do


arp = b"\xff" * 6 + bytes.fromhex("020000000002 0806 0001 0800 06 04 0002 020000000002".replace(" ", "")) + socket.inet_aton("10.200.0.1") + b"\xff" * 6 + socket.inet_aton("10.200.0.2")
work += [("listen to a group", group), ("arp", frames(arp)), ("another's address", frames(bytes.fromhex("020000000001 0200000000ff 0800".replace(" ", "")) + bytes(46)))]
# Other machines on the link, other sandboxes' addresses, and what the gateway may
# serve beside DNS.
for a in ["10.200.0.3", "10.200.0.5", "10.200.0.6", "10.200.1.2", "198.18.0.1", "198.18.16.1", "198.19.255.254"] + neighbour:
    work.append((f"tcp {a}", lambda a=a: tcp(a, 80)))
    work.append((f"udp {a}", lambda a=a: udp(a, 5353, b"is anybody there")))
for port in (22, 80, 443, 853, 2375, 5353, 7878, 7879, 8080, 9000, 10250):
    work.append((f"gateway {port}", lambda port=port: tcp("10.200.0.1", port)))
all_at_once(work)
