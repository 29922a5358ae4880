# Case 23: the binding of another sandbox, by its name and by the address that it has
# there.
from attempts import *
from masked import *

name, address = sys.argv[2], sys.argv[3]


def answered(got):
    return got if b" 200 " in got.split(b"\r\n")[0] else None


attempt("its name", lambda: socket.getaddrinfo(name, 80))
for spelling in (name.upper(), name + ".", "x." + name, "binding.internal"):
    attempt(spelling, lambda s=spelling: socket.getaddrinfo(s, 80))
attempt("by curl", lambda: curl("-f", f"http://{name}/v1/models"))
attempt("its address", lambda: answered(http(address, name=name, path="/v1/models")))
attempt("its address, its own name", lambda: answered(http(address, path="/v1/models")))
if BASE:
    attempt("in a request to one's own", lambda: answered(http(BASE.removeprefix("http://"), name=name, path="/v1/models")))
