# Case 15, as far as it is about hosts: an allowed host in forms that its rule does
# not have: other ports, other schemes, hosts beside it.
import sys
from attempts import *

allowed, evil = sys.argv[1:3]  # allowed on port 443 only
work = [(f"port {p}", lambda p=p: tcp(allowed, p)) for p in (1, 7, 21, 22, 25, 53, 80, 444, 853, 1080, 4444, 8080, 8443, 9000, 65535)]
work += [(f"curl {u}", lambda u=u: curl("-k", u)) for u in (
    f"http://{allowed}/", f"http://{allowed}:80/", f"https://{allowed}:8443/", f"ftp://{allowed}/", f"telnet://{allowed}:4444/", f"dict://{allowed}:9000/x", f"gopher://{allowed}:9000/_x",
    f"https://{allowed}@{evil}/", f"https://{evil}/..%2f{allowed}", f"https://{evil}%2f.{allowed}/", f"https://{allowed}.{evil}/", f"https://{evil}/?{allowed}", f"https://{evil}:443#{allowed}", f"//{evil}/",
    f"https://www.{allowed}/", f"https://{allowed.split('.', 1)[1]}/", f"https://{allowed}-{evil}/")]
all_at_once(work)
