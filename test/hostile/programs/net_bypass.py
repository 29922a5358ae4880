# Case 9: an allowed host by another way than the policy thinks of it: no proxy
# settings, its address, somebody else's proxy.
import os
import sys
from attempts import *

name, address, other = sys.argv[1:4]
for k in list(os.environ):
    if "proxy" in k.lower():
        del os.environ[k]


def own_resolver():
    """Asks another name server, and dials what that says."""
    reply = dns("8.8.8.8", question(name, 1))
    return tls(socket.inet_ntoa(reply[-4:]), sni=name)


work = [
    ("its address, its name", lambda: tls(address, sni=name)),
    ("its address by http", lambda: http(address, name=name)),
    ("its address, no name", lambda: tls(address, sni="")),
    ("curl --resolve", lambda: curl("-k", "--resolve", f"{name}:443:{address}", f"https://{name}/")),
    ("curl --resolve to another", lambda: curl("-k", "--resolve", f"{name}:443:{other}", f"https://{name}/")),
    ("curl --connect-to", lambda: curl("-k", "--connect-to", f"::{other}:443", f"https://{name}/")),
    ("an http proxy", lambda: curl("-x", f"http://{other}:8080", f"http://{name}/")),
    ("a tunnel", lambda: curl("-k", "-p", "-x", f"http://{other}:8080", f"https://{name}/")),
    ("a socks proxy", lambda: curl("-k", "--socks5-hostname", f"{other}:1080", f"https://{name}/")),
    ("a resolver of its own", own_resolver),
    ("another port of it", lambda: http(name, 8080)),
]
work.append(("proxies of the environment", lambda: curl("http://evil.example/", ALL_PROXY=f"http://{other}:8080")))
all_at_once(work, 4)
