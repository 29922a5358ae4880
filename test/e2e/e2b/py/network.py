"""What the network options of the SDK let a sandbox reach; run with sites that
answer, one of them without an end."""

import re

from e2b import Sandbox, SandboxException

from step import end, raises, same, step, until

ALLOW = ["api.example", "within.example"]
EVERYTHING = "0.0.0.0/0"
s = None
opened = None


def get(url):
    """What curl got, or how it failed."""
    return s.commands.run(f"curl -sSk -m 10 {url} 2>&1 || true").stdout


def reached(url):
    assert get(url).startswith("reached "), url


def denied(url):
    said = get(url)
    assert re.match(r"curl: \(\d+\)", said), f"{url}: {said}"


@step("create: network allow_out, deny_out")
def _():
    global s
    s = Sandbox.create(allow_internet_access=True, network={"allow_out": ALLOW, "deny_out": [EVERYTHING, "93.184.216.0/24"]})
    reached("https://api.example/first")


@step("create: allow_internet_access=True is answered with what holds")
def _():
    i = s.get_info()
    same((i.allow_internet_access, sorted(i.network["allow_out"]), sorted(i.network["deny_out"])), (False, ALLOW, [EVERYTHING, "93.184.216.0/24"]))


@step("nothing else is reached")
def _():
    for url in ("https://denied.example/early", "http://denied.example/early", "https://second.example/early", "https://within.example/early",
                "https://1.2.3.4/early", "http://169.254.169.254/early", "https://api.example:8443/early"):
        denied(url)
    s.commands.run("getent hosts what-was-found.tunnel.example || true")


@step("a connection that goes on")
def _():
    global opened
    opened = s.commands.run('curl -sSN http://api.example/slow > slow 2> why; echo "ended $?"', background=True, timeout=0)
    until("its bytes come", lambda: int(s.commands.run("stat -c %s slow 2>/dev/null || echo 0").stdout) > 10)


@step("update_network")
def _():
    s.update_network({"allow_out": ["second.example"], "deny_out": [EVERYTHING]})
    reached("https://second.example/second")
    denied("https://api.example/late")
    denied("https://denied.example/late")


@step("update_network ends the connections of the rules before")
def _():
    said = opened.wait().stdout
    assert re.fullmatch(r"ended (18|52|55|56)\n", said), said


@step("update_network is answered by get_info")
def _():
    i = s.get_info()
    same((i.allow_internet_access, i.network["allow_out"], i.network["deny_out"]), (False, ["second.example"], [EVERYTHING]))


@step("update_network that is refused changes nothing")
def _():
    raises(SandboxException, "reaches everything", s.update_network, {"allow_out": [EVERYTHING]})
    same(s.get_info().network["allow_out"], ["second.example"])


@step("update_network with nothing")
def _():
    s.update_network({})
    denied("https://second.example/late")
    same(s.get_info().network["allow_out"], [])


@step("create: allow_internet_access=False")
def _():
    global s
    s.kill()
    s = Sandbox.create(allow_internet_access=False)
    i = s.get_info()
    same((i.allow_internet_access, i.network["allow_out"], i.network["deny_out"]), (False, [], [EVERYTHING]))
    denied("https://api.example/late")
    s.kill()


end()
