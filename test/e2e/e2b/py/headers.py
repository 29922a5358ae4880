"""Secrets of the SDK, and headers that are set in requests; run with sites that tell
what they are sent."""

import os
import re

from e2b import Sandbox, SandboxException, Secret
from e2b.exceptions import SecretException, SecretNotFoundException

from step import end, raises, same, step

ONE, TWO, LITERAL = "sk-e2b-one-51c0a7", "sk-e2b-two-99bd21", "literal-t0ken-77aa10"
s = None


def get(url, args=""):
    return s.commands.run(f"curl -sS -m 20 {args} {url} 2>&1 || true").stdout


def listed(**opts):
    everything, p = [], Secret.list(**opts)
    while p.has_next:
        everything += p.next_items()
    return everything


def headers(**h):
    return [{"transform": {"headers": h}}]


@step("Secret.create")
def _():
    i = Secret.create("Vendor-Key", ONE)
    same((i.name, i.secret_id, i.version, i.metadata), ("vendor-key", "sec_vendor-key", 1, {}))
    raises(SecretException, "there is a secret", Secret.create, "vendor-key", TWO)
    raises(SecretException, "not supported yet", Secret.create, "other", TWO, metadata={"a": "b"})


@step("Secret.get_info, exists, list")
def _():
    same(Secret.get_info("sec_vendor-key").name, "vendor-key")
    same((Secret.exists("vendor-key"), Secret.exists("nobody")), (True, False))
    Secret.create("second", "x-second-value")
    same([i.name for i in listed(limit=1)], ["second", "vendor-key"])
    raises(SecretNotFoundException, "", Secret.get_info, "nobody")


@step("create: network rules with a secret")
def _():
    global s
    s = Sandbox.create(network={
        "allow_out": lambda ctx: list(ctx.rules.keys()),
        "rules": {"api.example": [{"transform": {"headers": {"Authorization": f"Bearer {Secret.fill('Vendor-Key')}", "X-Literal": LITERAL, "X-Api-Key": LITERAL}}}]},
    })
    said = get("https://api.example/one", '-H "Authorization: Bearer mine" -H "X-Own: own"')
    assert said.startswith("reached /one") and "X-Own: own" in said, said
    assert not re.search(f"mine|{ONE}|{LITERAL}", said), said


@step("get_info().network rules")
def _():
    h = s.get_info().network["rules"]["api.example"][0]["transform"]["headers"]
    same(h, {"Authorization": "Bearer ${e2b.secrets.vendor-key}", "X-Literal": "[redacted]", "X-Api-Key": "[redacted]"})


@step("rules open nothing beside allow_out")
def _():
    assert re.match(r"curl: \(\d+\)", get("https://second.example/late"))


@step("Secret.update, which a living sandbox uses")
def _():
    same(Secret.update("vendor-key", TWO).version, 2)
    assert get("https://api.example/two").startswith("reached /two")
    raises(SecretNotFoundException, "", Secret.update, "nobody", TWO)


@step("a secret that is sent by the sandbox itself")
def _():
    assert get("https://api.example/leak", f"-d {TWO} -w '%{{http_code}}'").endswith("403")


@step("update_network: rules")
def _():
    rules = {"second.example": headers(**{"X-Vendor": Secret.fill("second")})}
    s.update_network({"allow_out": ["api.example", "second.example"], "rules": rules})
    assert get("https://second.example/three").startswith("reached /three")
    assert get("https://api.example/four").startswith("reached /four")
    same(list(s.get_info().network["rules"]), ["second.example"])
    s.kill()


@step("rules alone open their hosts")
def _():
    global s
    s = Sandbox.create(network={"rules": {"api.example": headers(**{"X-Vendor": Secret.fill("second")})}})
    assert get("https://api.example/five").startswith("reached /five")
    assert re.match(r"curl: \(\d+\)", get("https://second.example/late"))
    s.kill()


@step("a secret that is not there")
def _():
    raises(SandboxException, 'no secret called "nobody"', Sandbox.create, network={"rules": {"api.example": headers(A=Secret.fill("nobody"))}})


@step("a key that may not")
def _():
    key = os.environ["DEVELOPER_KEY"]
    raises(SecretException, "secret:write", Secret.create, "third", "value", api_key=key)
    raises(SandboxException, "binding:write", Sandbox.create, api_key=key, network={"rules": {"api.example": headers(A=Secret.fill("second"))}})


@step("Secret.destroy")
def _():
    same((Secret.destroy("second"), Secret.destroy("vendor-key"), Secret.destroy("vendor-key")), (True, True, False))


end()
