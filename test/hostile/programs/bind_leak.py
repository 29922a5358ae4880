# Case 18: a program that knows the secret, from wherever, sends it on through the
# binding, where nobody put it: to the path, the query, headers and the body.
from attempts import *
from masked import *


def send(method, target, headers=(), body=None, pieces=None):
    """200 or 201 is the finding: it has arrived."""
    c = connect()
    c.putrequest(method, target, skip_accept_encoding=True)
    for k, v in (*OWN, *headers):
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
    return (r.status, text) if r.status < 300 else None


encoded = {k: v for k, v in forms(SECRET).items() if k in ("raw", "hex", "HEX", "url")}
encoded |= {"base64": base64.b64encode(SECRET), "base64 within": base64.b64encode(b"x=" + SECRET + b"!"), "base64url": base64.urlsafe_b64encode(b"{" + SECRET + b"}")}
for name, form in encoded.items():
    text = form.decode()
    query = urllib.parse.quote(text, safe="%")
    attempt(f"{name} in the query", lambda: send("GET", "/v1/find?q=" + query))
    attempt(f"{name} in the path", lambda: send("GET", "/v1/" + query))
    attempt(f"{name} in a header", lambda: send("GET", "/v1/find", [("X-Data", text)]))
    attempt(f"{name} in a header's name", lambda: send("GET", "/v1/find", [("X-" + text.replace("%", "-"), "x")]) if name == "raw" else None)
    attempt(f"{name} in a cookie", lambda: send("GET", "/v1/find", [("Cookie", "a=" + text)]))
    attempt(f"{name} in the body", lambda: send("POST", "/v1/upload", body=b"x=" + form + b"&y=1"))
    attempt(f"{name} in pieces", lambda: send("POST", "/v1/upload", pieces=[b"x=" + form[:5], form[5:9], form[9:], b"&y=1"]))
    attempt(f"{name} far behind", lambda: send("POST", "/v1/upload", body=b"a" * 300000 + form + b"a" * 300000))
