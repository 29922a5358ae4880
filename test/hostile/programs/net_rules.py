# Case 15: methods and paths that slip past a rule for GET below /open.
import sys
from attempts import *

allowed = sys.argv[1]


def ask(scheme, method, path, *headers):
    def do():
        got = curl("-k", "--path-as-is", "-X", method, *[x for h in headers for x in ("-H", h)], f"{scheme}://{allowed}{path}")
        return got if got.startswith(b"reached") else None
    return do


paths = ["/forbidden", "/", "/opened/forbidden", "/OPEN/forbidden", "/open/../forbidden", "/open/%2e%2e/forbidden", "/open/%2E./forbidden", "/open/..%2fforbidden", "/open/..%5cforbidden", "/open%2f..%2fforbidden",
         "/open//../forbidden", "//forbidden", "//open/forbidden", "/./forbidden", "/open;/../forbidden", "/open/..;/forbidden", "/open/%252e%252e/forbidden", "/%6fpen/forbidden", "/open/.../forbidden", "/open/%00forbidden",
         "/open/%c0%ae%c0%ae/forbidden", "/forbidden?/open/", "/forbidden%3f/open"]
work = [(f"{s} {p}", ask(s, "GET", p)) for s in ("http", "https") for p in paths]
work += [(f"{s} {m}", ask(s, m, "/open/forbidden")) for s in ("http", "https") for m in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "GETX", "PROPFIND")]
work += [(f"{s} {h}", ask(s, "GET", "/open/forbidden", h)) for s in ("http", "https") for h in ("X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE",
                                                                                              "X-Original-URL: /forbidden", "X-Rewrite-URL: /forbidden")]
print("open", ask("https", "GET", "/open/fine")(), flush=True)
all_at_once(work, 8)
