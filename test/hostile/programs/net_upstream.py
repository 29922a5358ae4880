# Case 26: what a program gets that asks servers which trickle, flood and expand.
import sys
import time
from attempts import *

for what in sys.argv[1:]:
    name, url = what.split("=", 1)
    start = time.monotonic()
    more = ["-T", "/dev/zero", "--limit-rate", "1G"] if name == "pour" else []
    p = subprocess.run(["curl", "-sS", *more, "-k", "-m", "20" if name == "flood" else "4", "-o", "/dev/null", "-w", "%{size_download} %{size_header} %{http_code}", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    print("tried", name, "- exit", p.returncode, "after %.1f s" % (time.monotonic() - start), p.stdout.decode(), p.stderr.decode(errors="replace").strip()[:100], flush=True)
