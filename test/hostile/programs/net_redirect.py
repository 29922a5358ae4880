# Case 4: an allowed host that sends its callers elsewhere.
import sys
from attempts import *

for url in sys.argv[1:]:
    attempt("follow " + url, lambda: curl("-L", "-k", "--max-redirs", "5", url))
    attempt("urllib " + url, lambda: subprocess.run(["/usr/bin/python3", "-c", "import ssl, sys, urllib.request as u; "
            "print(u.urlopen(sys.argv[1], timeout=5, context=ssl._create_unverified_context()).read())", url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20).stdout)
