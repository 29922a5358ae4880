# Case 1: the addresses where clouds tell secrets, in every spelling that some
# parser takes for them.
from attempts import *

spellings = ["169.254.169.254", "2852039166", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376", "169.254.43518", "169.16689662",
             "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[::169.254.169.254]", "[2002:a9fe:a9fe::]", "169.254.169.254.",
             "\uff11\uff16\uff19.254.169.254", "169\u3002254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "[fd00:ec2::254]"]
path = "/latest/meta-data/iam/security-credentials/"
work = []
for s in spellings:
    work.append((f"curl http://{s}", lambda s=s: curl(f"http://{s}{path}")))
    work.append((f"socket {s}", lambda s=s: http(s.strip("[]"), path=path)))
for a in ("169.254.169.254", "100.100.100.200"):
    for port in (443, 8080, 9000):
        work.append((f"{a}:{port}", lambda a=a, port=port: tcp(a, port)))
    work.append((f"https {a}", lambda a=a: tls(a, sni="api.example")))
    work.append((f"{a} in the name of an allowed host", lambda a=a: http(a, name="api.example", path=path)))
work.append(("a token by PUT", lambda: curl("-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60", "http://169.254.169.254/latest/api/token")))
work.append(("an allowed host, by way of its address", lambda: curl("--connect-to", "api.example:443:169.254.169.254:443", "-k", "https://api.example/")))
for n in ("metadata.google.internal", "metadata", "instance-data"):
    work.append((f"name {n}", lambda n=n: curl("-H", "Metadata-Flavor: Google", f"http://{n}/computeMetadata/v1/")))
all_at_once(work)
