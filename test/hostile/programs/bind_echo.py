# Case 20: a server that gives back what it was sent, credential and all, in all the
# ways an answer has.
import gzip
from http.client import HTTPException

from attempts import *
from masked import *


def answer(path, headers=()):
    c = connect(20)
    c.request("GET", path, headers=dict((*OWN, *headers)))
    r = c.getresponse()
    head = repr(r.getheaders()).encode()
    body = r.read()
    if r.getheader("Content-Encoding") == "gzip":
        body += gzip.decompress(body)
    return r.status, head + body


for how in ("body", "header", "cookie", "location", "status", "hex", "base64", "url", "json", "pieces", "trailer", "gzip", "long"):
    for headers in ((), (("Accept-Encoding", "gzip"),), (("Range", "bytes=4-"),)):
        try:
            status, got = answer("/v1/echo/" + how, headers)
        except (OSError, HTTPException) as e:
            print("tried", how, "-", type(e).__name__, flush=True)
            continue
        found = holds(got, SECRET) or SECRET[:-4] in got and ["most of it"]
        print("FINDING" if found else "tried", how, headers, "-", status, found or "", flush=True)
