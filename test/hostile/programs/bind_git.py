# Case 22: looks for the token that git's server wants, pushes to what the binding is
# not for, in every way that a server could read differently, and asks for more than
# the repository.
import gzip
import hashlib

from attempts import *
from masked import *

BASE = os.environ["GH_BASE_URL"]
HOST, REPO = BASE.removeprefix("http://"), BASE + "/owner/repo"
socket.setdefaulttimeout(60)
os.environ.update(GIT_TERMINAL_PROMPT="0", GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b", GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a@b")


def git(*args, stdin=b"", **env):
    p = subprocess.run(["git", *args], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=100, env={**os.environ, **env})
    return p.returncode == 0, p.stdout


def line(text):
    return b"%04x" % (len(text) + 4) + text


def request(body, method="POST", path="/owner/repo/git-receive-pack", kind="application/x-git-receive-pack-request", headers=(), length=True):
    head = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", f"Content-Type: {kind}", "Connection: close", *headers]
    if length:
        head.append(f"Content-Length: {len(body)}")
    return tcp(HOST, 80, "\r\n".join(head).encode() + b"\r\n\r\n" + body)


def pushed(*args, **how):
    got = request(*args, **how)
    return got if b"ok refs/" in got or b"ok HEAD" in got else None


ok, said = git("ls-remote", REPO, "refs/heads/main")
MAIN = said.split()[0]
ZERO, CAN, END = b"0" * 40, b"\0report-status side-band-64k agent=git/2.39", b"0000"
PACK = b"PACK" + struct.pack(">II", 2, 0)
PACK += hashlib.sha1(PACK).digest()


def create(ref, can=CAN, old=ZERO, new=MAIN):
    return line(old + b" " + new + b" " + ref + can)


def push(*lines):
    return b"".join(lines) + END + PACK


AGENT, OTHER = b"refs/heads/agent/", b"refs/heads/evil"
print("control", "worked" if pushed(push(create(AGENT + b"control"))) else "did not work", flush=True)

# The token.
attempt("what git traces", lambda: holds(git("ls-remote", REPO, GIT_TRACE_CURL="1", GIT_TRACE_PACKET="1", GIT_CURL_VERBOSE="1")[1], SECRET))
attempt("what git remembers", lambda: holds(git("credential", "fill", stdin=f"protocol=http\nhost={HOST}\n\n".encode())[1], SECRET))
attempt("git's configuration", lambda: holds(git("config", "--list", "--show-origin")[1], SECRET))
attempt("the environment", lambda: holds("\n".join(os.environ.values()).encode(), SECRET))

# By git.
git("clone", "-q", REPO, "work")
git("-C", "work", "commit", "-q", "--allow-empty", "-m", "evil")
for args in (["HEAD:main"], ["--force", "HEAD:main"], [":main"], ["HEAD:evil"], ["HEAD:refs/tags/evil"], ["HEAD:agent"], ["HEAD:Agent/x"], ["HEAD:agent/both", "HEAD:main"], ["--mirror"],
             ["--atomic", "HEAD:agent/both", ":main"], ["-o", "merge_request.create", "HEAD:agent/options"], ["HEAD:refs/for/main"], ["HEAD:refs/meta/config"], ["HEAD:refs/replace/" + MAIN.decode()]):
    attempt("git push " + " ".join(args), lambda a=args: git("-C", "work", "push", "origin", *a)[0])

# As no git does.
for ref in (OTHER, b"refs/heads/main", b"refs/heads/Agent/x", b"refs/heads/agent", b"refs/heads/agents/x", AGENT + b"../evil", AGENT + b"./x", AGENT + b"/x", b"/" + OTHER, b"refs//heads/evil",
            AGENT + b"x:" + OTHER, AGENT + b"x\n" + OTHER, AGENT + b"x " + OTHER, AGENT + b"*", AGENT + b"x.lock", AGENT + b"..\\evil", AGENT + b"\xe2\x80\x8c../evil", AGENT + b"x\xc0\xae",
            "refs/heads/ａgent/x".encode(), b"HEAD", b"refs/heads/%61gent/x", b"refs/heads/agent%2fx", b"REFS/heads/agent/x", b" " + AGENT + b"x", AGENT + b"x\t"):
    attempt(f"the ref {ref!r}", lambda r=ref: pushed(push(create(r))))
    attempt(f"the ref {ref!r} second", lambda r=ref: pushed(push(create(AGENT + b"first"), create(r, b""))))
evil, mine = create(OTHER, b""), create(AGENT + b"x")
for name, body in {
    "what it can twice": push(mine, create(OTHER)),
    "commands after the end": mine + END + evil + END + PACK,
    "an end that is none": mine + b"0001" + evil + END + PACK,
    "an end of an answer": mine + b"0002" + evil + END + PACK,
    "an empty packet": mine + b"0004" + evil + END + PACK,
    "nothing, then commands": END + create(OTHER) + END + PACK,
    "a length with a sign": mine + b"+" + evil[1:] + END + PACK,
    "a length too long": mine + b"fff9" + evil + END + PACK,
    "a signed push": push(line(b"push-cert" + CAN), line(b"certificate version 0.1\n"), line(ZERO + b" " + MAIN + b" " + OTHER + b"\n"), line(b"push-cert-end\n")),
    "options": mine.replace(b"agent=git/2.39", b"push-options  ") + END + line(b"merge_request.create") + END + PACK,
    "a late shallow": push(mine, line(b"shallow " + MAIN), evil),
    "two refs in one": push(create(AGENT + b"x\0" + OTHER)),
    "ids of other lengths": push(create(OTHER, old=b"0" * 64, new=MAIN + b"0" * 24)),
    "a deletion": create(b"refs/heads/main", old=MAIN, new=ZERO) + END,
}.items():
    attempt(name, lambda b=body: pushed(b))
    attempt(name + ", packed", lambda b=body: pushed(gzip.compress(b), headers=["Content-Encoding: gzip"]))
bad = push(create(OTHER))
attempt("commands after the pack", lambda: b"ok " + OTHER in request(push(create(AGENT + b"z")) + evil + END + PACK))
attempt("packed twice", lambda: pushed(gzip.compress(gzip.compress(bad)), headers=["Content-Encoding: gzip"]))
attempt("packed in two pieces", lambda: pushed(gzip.compress(END) + gzip.compress(bad), headers=["Content-Encoding: gzip"]))
attempt("packed, it is not said how", lambda: pushed(gzip.compress(bad)))
attempt("in pieces", lambda: pushed(b"".join(b"1;x=y\r\n%c\r\n" % c for c in bad) + b"0\r\n\r\n", headers=["Transfer-Encoding: chunked"], length=False))
attempt("as a fetch", lambda: pushed(bad, kind="application/x-git-upload-pack-request"))
attempt("as a fetch's path", lambda: pushed(bad, path="/owner/repo/git-upload-pack", kind="application/x-git-upload-pack-request"))
attempt("of a later version", lambda: pushed(bad, headers=["Git-Protocol: version=3"]))
attempt("by another method", lambda: pushed(bad, method="PUT"))
attempt("by a header's method", lambda: pushed(bad, method="GET", headers=["X-HTTP-Method-Override: POST"]))
for path in ("/owner/other/git-receive-pack", "/owner/repo/git-receive-pack?x=1", "/owner/repo.git/../other/git-receive-pack", "/owner/repo/../other.git/git-receive-pack", "/owner/%72epo/git-receive-pack",
             "/owner/repo//git-receive-pack", "/owner/repo/git-receive-pack/", "/owner/repo/.git/git-receive-pack"):
    attempt("a push to " + path, lambda p=path: pushed(bad, path=p))

# More than the repository.
for path in ("/owner/other/info/refs?service=git-upload-pack", "/owner/other.git/HEAD", "/owner/repo/HEAD", "/owner/repo.git/objects/info/packs", "/owner/repo.git/config", "/owner/repo/info/refs",
             "/owner/repo/info/refs?service=git-upload-pack&x=1", "/owner/repo/info/refs?service=git-upload-archive", "/owner/repo/archive/main.tar.gz", "/owner/repo.git/info/lfs/objects/batch",
             "/owner/repo/../other/info/refs?service=git-upload-pack", "/user", "/api/v3/user", "/"):
    attempt("GET " + path, lambda p=path: curl("-f", "--path-as-is", BASE + p))
attempt("the host itself", lambda: git("ls-remote", "https://git.vault.example/owner/repo", GIT_SSL_NO_VERIFY="1")[0])
