#!/usr/bin/env python3
"""verify.py PATH --key VKEY|FILE [--from CHECKPOINT] [--witness VKEY|FILE]... [--quorum N]
Checks a Firebreak audit log (a directory) or an evidence file with the Python standard library only; keys and checkpoint
come from elsewhere. Exit code 0: good; 1: bad, and why; 125: could not be checked. docs/guides/audit.md has the formats."""
import argparse, base64, glob, hashlib, json, os, re, struct, sys
class Bad(Exception): pass
def need(ok, *what):
    if not ok: raise Bad(" ".join(map(str, what)))
def sha(b): return hashlib.sha256(b).digest()
def leaf(b): return sha(b"\0" + b)
def node(a, b): return sha(b"\1" + a + b)
def read(*path): return open(os.path.join(*path), "rb").read()
def b64(s):
    raw = base64.b64decode(s, validate=True)
    need(base64.b64encode(raw).decode() == s, "bad base64"); return raw
CRC = list(range(256))
for _ in range(8): CRC = [c >> 1 ^ (0x82F63B78 if c & 1 else 0) for c in CRC]
def crc32c(b, c=0xFFFFFFFF):
    for x in b: c = c >> 8 ^ CRC[(c ^ x) & 255]
    return c ^ 0xFFFFFFFF
P, Q = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493  # Ed25519, RFC 8032; points are (X, Y, Z, T)
D = -121665 * pow(121666, -1, P) % P
def point(b):
    sign, y = int.from_bytes(b, "little") >> 255, int.from_bytes(b, "little") % 2**255
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P: x = x * pow(2, (P - 1) // 4, P) % P
    need(y < P and (x * x - xx) % P == 0 and (x or not sign), "bad key")
    return P - x if x & 1 != sign else x, y, 1, (P - x if x & 1 != sign else x) * y % P
def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * D * p[3] * q[3] % P, 2 * p[2] * q[2] % P
    return (b - a) * (d - c) % P, (d + c) * (b + a) % P, (d - c) * (d + c) % P, (b - a) * (b + a) % P
def mul(s, p, r=(0, 1, 1, 0)):
    while s: r, p, s = add(r, p) if s & 1 else r, add(p, p), s >> 1
    return r
def ed25519(key, msg, sig):
    s, h = int.from_bytes(sig[32:], "little"), int.from_bytes(hashlib.sha512(sig[:32] + key + msg).digest(), "little") % Q
    x, y, z, _ = add(mul(s, point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))), mul(Q - h, point(key)))
    x, y = x * pow(z, -1, P) % P, y * pow(z, -1, P) % P
    return len(sig) == 64 and s < Q and (y | (x & 1) << 255).to_bytes(32, "little") == sig[:32]
def verifier(v):  # (name, id, type, public key)
    name, h, k = v.strip().split("+", 2)
    need(len(b64(k)) == 33 and b64(k)[0] in (1, 4) and sha(f"{name}\n".encode() + b64(k))[:4].hex() == h, "bad key", v)
    return name, h, b64(k)[0], b64(k)[1:]
class Note:  # a signed checkpoint
    def __init__(self, where, raw):
        self.where, self.sigs = where, {}
        m = re.fullmatch("(([^\n]+)\n(0|[1-9][0-9]*)\n([^\n]+)\n)\n((?:— [^ +\n]+ [^ \n]+\n)+)", raw.decode()); need(m, where, "is no checkpoint")
        self.text, self.origin, self.size, self.root = m[1].encode(), m[2], int(m[3]), b64(m[4])
        for _, name, sig in map(str.split, m[5][:-1].split("\n")):
            need((name, b64(sig)[:4].hex()) not in self.sigs, where, "has two signatures of a key")
            self.sigs[name, b64(sig)[:4].hex()] = b64(sig)[4:]
    def by(self, key):  # a bad signature is worse than none
        sig, msg = self.sigs.get(key[:2]), self.text
        if sig is None: return False
        if key[2] == 4: msg, sig = b"cosignature/v1\ntime %d\n" % int.from_bytes(sig[:8], "big") + msg, sig[8:]
        need(ed25519(key[3], msg, sig), self.where, "has a bad signature of", key[0]); return True
def record(b):  # a payload as a dict
    need(b[:1] in (b"\1", b"\2") and 58 <= len(b) <= 65536, "malformed record")
    i, f = 18 if b[0] == 1 else 58, []
    pos, prev = struct.unpack_from(">Q", b, 1)[0], struct.unpack_from(">Q", b, 49)[0] if b[0] == 2 else 0
    head, n = i, -1
    while len(f) < 9 if n < 0 else len(f) < 9 + 2 * n:
        size, = struct.unpack_from(">I", b, i); f.append(b[i + 4:i + 4 + size]); i += 4 + size
        if len(f) == 9: n, = struct.unpack_from(">I", b, i); i += 4
    need(i == len(b) and 0 < pos > prev and b[head - 1] < 2 and (f[1] or not prev), "malformed record")
    need(b[0] == 1 or b[17] < 128 and all(x < y for x, y in zip(f[9::2], f[11::2])), "malformed record")
    return dict(v=b[0], pos=pos, prev=prev, sandbox=f[1], action=f[4], object=f[7], digest=f[8].decode(), detail=dict(zip(f[9::2], f[10::2])))
def keyring(changes, key):  # the log's keys: changes are (note, its last record)
    keys = []
    for n, r in changes:
        need(r["action"] == b"audit.rotate" and r["pos"] == n.size, n.where, "is no change of keys")
        old, new = verifier(r["detail"][b"from"].decode()), verifier(r["detail"][b"to"].decode())
        need(n.by(old) and n.by(new) and (not keys or keys[-1] == old), n.where, "does not join the keys"); keys += [old, new]
    need(not keys or key in keys, "no change of keys leads from the given key"); return keys or [key]
def root(h):  # RFC 6962
    k = 1 << max(len(h) - 1, 0).bit_length() >> 1
    return node(root(h[:k]), root(h[k:])) if k else h[0] if h else sha(b"")
def path(proof, n, size, h):  # from a leaf to the root
    last, proof = size - 1, [b64(p) for p in proof]
    need(0 <= n < size, "no such record")
    while last:
        if n & 1 or n < last: h = node(proof.pop(0), h) if n & 1 else node(h, proof.pop(0))
        n, last = n >> 1, last >> 1
    need(not proof, "the proof is too long"); return h
def frame(b, i):  # payload, chain hash, where the next begins
    end = i + 40 + int.from_bytes(b[i:i + 4], "big")
    good = i + 98 <= end <= min(len(b), i + 40 + 65536) and crc32c(b[i:i + 4] + b[i + 8:end]) == int.from_bytes(b[i + 4:i + 8], "big")
    return (b[i + 40:end], b[i + 8:i + 40], end) if good else None
def log(d, key, a):
    need(os.path.exists(d + "/checkpoint"), "nothing in this log is signed")
    notes = lambda *names: [Note(n[len(d) + 1:], read(n)) for g in names for n in sorted(glob.glob(glob.escape(d) + "/" + g)) if n[-4:] != ".tmp"]
    cp, rotations, seen, pins = *notes("checkpoint"), notes("rotate/*"), notes("checkpoint", "cosigned/*"), [Note("--from", read(p)) for p in a.pin]
    if os.path.exists(d + "/expired.json"): raise OSError("records have expired; `firebreak audit verify` checks what is left")
    pos, chain, leaves, changes, cuts, rest = 0, bytes(32), [], [], {f for f in os.listdir(d) if f.endswith(".cut")}, b""
    for f in sorted(f for f in os.listdir(d) if re.fullmatch("[0-9]{20}[.]log", f)):
        b, i, head = read(d, f), 52, b"FBAUDIT1" + struct.pack(">Q", pos + 1) + chain
        need(not rest and int(f[:20]) == pos + 1, "the log breaks off at record", pos + 1, "before", f)
        if len(b) < 52 and pos >= cp.size: rest = b; continue
        need(b[:52] == head + crc32c(head).to_bytes(4, "big"), f, "does not continue the log")
        while fr := frame(b, i):
            payload, got, end = fr; r = record(payload); pos += 1; chain = sha(b"firebreak audit chain v1\n" + chain + payload)
            need(r["pos"] == pos and got == chain, f, "at byte", i, "does not continue the chain: record", pos); leaves.append(leaf(payload)); i = end
            if r["action"] == b"audit.rotate":
                note = next((n for n in rotations if n.size == pos), None); need(note, "rotate/ has no note of record", pos); changes.append((note, r))
            if r["action"] == b"audit.repair" and ("%020d.cut" % pos in cuts or r["digest"]):
                cut = "%020d.cut" % pos; need(cut in cuts, cut, "is missing"); cuts.remove(cut)
                need(r["digest"] in ("", sha(read(d, cut)).hex()) and r["detail"][b"bytes"] == b"%d" % len(read(d, cut)), cut, "was changed")
        rest = b[i:].rstrip(b"\0"); need(not rest or pos >= cp.size, f, "at byte", i, "is damaged: record", pos + 1)
        need(not any(x and x[0][1:9] > struct.pack(">Q", pos) for x in (frame(rest, j) for j in range(1, len(rest)))), f, "at byte", i, "is damaged: record", pos + 1)
    need(not cuts, cuts, "belongs to no record"); need(len(changes) == len(rotations), "rotate/ has a note that no record tells of")
    keys = keyring(changes, key); need(cp.by(keys[-1]), "checkpoint: the log's key has not signed it")
    for n in [cp, *pins, *rotations, *seen]:
        need(n.origin == cp.origin and any([n.by(k) for k in keys]), n.where, "is not of this log")
        need(n.size <= pos, n.where, ": the log ends at record", pos, ", signed are", n.size)
        need(root(leaves[:n.size]) == n.root, n.where, ": a record up to", n.size, "differs from what was signed")
    return seen, f"{cp.origin}: {cp.size} of {pos} records are signed"
def evidence(raw, key):
    e = json.loads(raw)
    again = json.dumps(e, indent=1, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029") + "\n"
    need(again.encode() == raw and e["format"] == "firebreak-evidence/1", "not written as it was made")
    need(list(e) == "format origin sandbox keys checkpoint rotations records receipt".split(), "unknown fields")
    cp, changes, last, ended, digest = Note("checkpoint", e["checkpoint"].encode()), [], 0, True, None
    for c in e["rotations"]:
        n, b = Note("rotation", c["note"].encode()), b64(c["payload"]); changes.append((n, record(b)))
        need(path(c["proof"], n.size - 1, n.size, leaf(b)) == n.root and n.origin == cp.origin, "a rotation is not in its tree")
    need(cp.by(keyring(changes, key)[-1]) and cp.origin == e["origin"], "checkpoint: the log's key has not signed it")
    for x in e["records"]:
        b = b64(x["payload"]); r = record(b)
        need(r["pos"] == x["position"] > last and r["sandbox"].decode() == e["sandbox"], "record", x["position"], "is another one")
        need(path(x["proof"], r["pos"] - 1, cp.size, leaf(b)) == cp.root, "record", r["pos"], "is not in the tree that was signed")
        need(r["v"] == 1 or r["prev"] == (0 if ended else last), "record", r["prev"], "is missing")
        last, ended = r["pos"], r["action"] == b"sandbox.receipt"; digest = r["digest"] if ended else digest
    need(not e["receipt"] or sha(e["receipt"].encode()).hex() == digest, "the receipt is not the recorded one")
    return [cp], f"{cp.origin}: {len(e['records'])} records of {e['sandbox']}, {'to its receipt' if digest else 'which has not ended'}"
def main():
    p = argparse.ArgumentParser(usage=__doc__)
    p.add_argument("path"); p.add_argument("--key", required=True); p.add_argument("--from", dest="pin", action="append", default=[])
    p.add_argument("--witness", action="append", default=[]); p.add_argument("--quorum", type=int, default=0)
    a = p.parse_args(); load = lambda k: verifier(read(k).decode() if os.path.exists(k) else k)
    try:
        key, witnesses = load(a.key), [load(w) for w in a.witness]
        notes, text = log(a.path.rstrip("/"), key, a) if os.path.isdir(a.path) else evidence(read(a.path), key)
        n = sum(any([c.by(w) for c in notes]) for w in witnesses)
        need(n >= (a.quorum or len(witnesses)), n, "of", len(witnesses), "witnesses have cosigned")
    except OSError as e: print("not checked:", e); return 125
    except (Bad, ValueError, LookupError, TypeError, AttributeError, struct.error) as e: print("bad:", e); return 1
    print("good:", text); return 0
sys.exit(main())
