# What the programs against bindings share. They are told the secret that they must
# not get, so that they know it when they see it, and not as it is: a search for it
# would find the one who searches.
import base64
import os
import sys
import urllib.parse
from http.client import HTTPConnection, HTTPSConnection

BASE = os.environ.get("VAULT_BASE_URL", "")
# By TLS to the host itself there is a placeholder.
KEY = os.environ.get("VAULT_API_KEY", "") if BASE.startswith("https://") else ""
OWN = (("Authorization", "Bearer " + KEY),) if KEY else ()


def connect(timeout=10):
    """A connection to the binding."""
    scheme, host = BASE.split("://")
    return (HTTPSConnection if scheme == "https" else HTTPConnection)(host, timeout=timeout)


def unmasked(text):
    return bytes(b ^ 0x5A for b in bytes.fromhex(text))


def forms(secret):
    """The secret as it is, and in the encodings that people and programs use."""
    out = {"raw": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode(), "url": "".join(f"%{b:02X}" for b in secret).encode(),
           "url some": urllib.parse.quote(secret, safe="").encode()}
    for shift in range(3):  # wherever in a base64 text it begins
        for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
            text = encode(b"\0" * shift + secret)
            out[f"{name} {shift}"] = text[(0, 4, 4)[shift]:len(text) // 4 * 4 - 4]
    return out


def holds(data, secret):
    return [name for name, form in forms(secret).items() if form in data]


SECRET = unmasked(sys.argv[1])
