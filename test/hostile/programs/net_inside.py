# Cases 2 and 3: names that are allowed, but stand for something inside, always or
# from the second time on. What comes from outside is fine.
import sys
from attempts import *



def visit(name):
    for i in range(2):
        for how, ask in (("http", lambda: http(name)), ("https", lambda: tls(name)), ("port 9000", lambda: http(name, 9000))):
            def inside():
                got = ask()
                return got if b"reached" not in got or b"reached 10." in got or b"reached 100." in got or b"reached 192." in got else None
            attempt(f"{how} {name} {i}", inside)


with concurrent.futures.ThreadPoolExecutor(16) as pool:
    list(pool.map(visit, sys.argv[1:]))
