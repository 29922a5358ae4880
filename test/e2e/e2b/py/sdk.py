"""The Python SDK: the methods of Sandbox, commands, pty and files, and its
asynchronous twin."""

import asyncio
import hashlib
import io
import os
import time
import urllib.error
import urllib.request

import e2b
from e2b import AsyncSandbox, CommandExitException, Sandbox, SandboxQuery, SandboxState

from step import end, raises, same, step, until

s = None


@step("create")
def _():
    global s
    s = Sandbox.create(metadata={"a b": "c&d=e"}, envs={"FROM_CREATE": "yes"}, timeout=120)


@step("get_info, is_running")
def _():
    i = s.get_info()
    same((i.sandbox_id, i.template_id, i.state, i.metadata["a b"], i.allow_internet_access), (s.sandbox_id, "base", SandboxState.RUNNING, "c&d=e", False))
    same(s.is_running(), True)


@step("set_timeout")
def _():
    s.set_timeout(600)
    left = s.get_info().end_at.timestamp() - time.time()
    assert 500 < left <= 601, left


@step("connect")
def _():
    s.files.write("mark", "here")
    same(Sandbox.connect(s.sandbox_id).files.read("mark"), "here")


@step("list")
def _():
    pages = Sandbox.list(query=SandboxQuery(metadata={"a b": "c&d=e"}))
    same([x.sandbox_id for x in pages.next_items()], [s.sandbox_id])
    same(pages.has_next, False)


@step("get_metrics")
def _():
    until("a sample", lambda: len(s.get_metrics()) > 0)
    last = s.get_metrics()[-1]
    assert last.mem_used > 0 and last.mem_total == 256 << 20 and 0 <= last.cpu_used_pct <= 100, last


@step("commands.run")
def _():
    r = s.commands.run("echo out; echo err >&2; echo $FROM_CREATE $FROM_RUN; pwd", envs={"FROM_RUN": "too"}, cwd="/tmp")
    same((r.exit_code, r.stdout, r.stderr), (0, "out\nyes too\n/tmp\n", "err\n"))
    x = raises(CommandExitException, "", s.commands.run, "echo before; exit 3")
    same((x.exit_code, x.stdout), (3, "before\n"))


@step("commands.run: stream")
def _():
    seen = []
    s.commands.run("echo one; sleep 2; echo two", on_stdout=lambda d: seen.append((time.time(), d)))
    same("".join(d for _, d in seen), "one\ntwo\n")
    assert seen[-1][0] - seen[0][0] > 1, seen


@step("commands.run: timeout")
def _():
    raises(e2b.TimeoutException, "", s.commands.run, "sleep 300", timeout=2)
    until("the command is gone", lambda: not s.commands.list())


@step("commands: background, stdin, connect, kill")
def _():
    c = s.commands.run("cat", background=True, stdin=True, timeout=0)
    same([p.pid for p in s.commands.list()], [c.pid])
    s.commands.send_stdin(c.pid, "typed\n")
    out = []
    for stdout, _, _ in c:
        out.append(stdout)
        if "typed" in "".join(x or "" for x in out):
            break
    c.disconnect()
    again = s.commands.connect(c.pid)
    s.commands.close_stdin(c.pid)
    same(again.wait().exit_code, 0)
    c = s.commands.run("sleep 300", background=True, timeout=0)
    same((s.commands.kill(c.pid), s.commands.kill(c.pid)), (True, False))
    x = raises(CommandExitException, "", c.wait)
    same((x.exit_code, x.error), (-1, "signal: killed"))


@step("pty")
def _():
    from e2b import PtySize

    t = s.pty.create(PtySize(rows=33, cols=91), timeout=0)
    s.pty.send_stdin(t.pid, b"stty size\n")
    shown = b""
    for _, _, data in t:
        shown += data or b""
        if b"33 91" in shown:
            s.pty.resize(t.pid, PtySize(rows=40, cols=120))
            s.pty.send_stdin(t.pid, b"stty size; echo re''sized\n")
        if b"resized" in shown:
            break
    assert b"40 120" in shown, shown
    same(s.pty.kill(t.pid), True)


@step("files")
def _():
    same(s.files.write("dir/a.txt", "héllo").path, "/home/user/dir/a.txt")
    same(s.files.read("dir/a.txt"), "héllo")
    same(bytes(s.files.read("dir/a.txt", format="bytes")), "héllo".encode())
    same(b"".join(s.files.read("dir/a.txt", format="stream")), "héllo".encode())
    s.files.write("from-io", io.BytesIO(b"\x00\xff"))
    same(bytes(s.files.read("from-io", format="bytes")), b"\x00\xff")
    same([f.path for f in s.files.write_files([{"path": "m/1", "data": "1"}, {"path": "/tmp/m/2", "data": b"2"}])], ["/home/user/m/1", "/tmp/m/2"])
    same([e.path for e in s.files.list("m")], ["/home/user/m/1"])
    same((s.files.exists("m/1"), s.files.exists("m/none")), (True, False))
    i = s.files.get_info("m/1")
    same((i.name, i.size, i.permissions, i.owner, i.type.value), ("1", 1, "-rw-r--r--", "user", "file"))
    same((s.files.make_dir("n/e/w"), s.files.make_dir("n/e/w")), (True, False))
    same(s.files.rename("m/1", "m/one").path, "/home/user/m/one")
    s.files.remove("m")
    same(s.files.exists("m"), False)
    raises(e2b.NotFoundException, "", s.files.read, "none")
    raises(e2b.InvalidArgumentException, "", s.files.read, "dir")


@step("files: 32 MiB")
def _():
    big = os.urandom(32 << 20)
    s.files.write("big", big)
    want = hashlib.sha256(big).hexdigest()
    same(s.commands.run("sha256sum big").stdout[:64], want)
    same(hashlib.sha256(bytes(s.files.read("big", format="bytes"))).hexdigest(), want)


@step("files.watch_dir")
def _():
    s.files.make_dir("w")
    h = s.files.watch_dir("w")
    s.files.write("w/a", "1")
    s.commands.run("rm w/a")
    seen = []
    until("both", lambda: seen.extend((e.type.value, e.name) for e in h.get_new_events()) or {"create", "remove"} <= {t for t, _ in seen})
    h.stop()
    h = s.files.watch_dir("w", include_entry=True)
    s.files.write("w/b", "12345")
    entries = []
    until("an entry", lambda: entries.extend(e.entry for e in h.get_new_events() if e.entry and e.entry.size == 5) or entries)
    same((entries[0].path, entries[0].owner), ("/home/user/w/b", "user"))
    h.stop()


@step("files: metadata")
def _():
    same(s.files.write("md/f", "y", metadata={"kind": "report"}).metadata, {"kind": "report"})
    same(s.files.get_info("md/f").metadata, {"kind": "report"})
    s.files.write("md/f", "y")
    assert not s.files.get_info("md/f").metadata


@step("download_url, upload_url")
def _():
    same(urllib.request.urlopen(s.download_url("dir/a.txt")).read(), "héllo".encode())
    same(urllib.request.urlopen(s.download_url("dir/a.txt", use_signature_expiration=60)).read(), "héllo".encode())
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nput\r\n--b--\r\n'
    urllib.request.urlopen(urllib.request.Request(s.upload_url("up.txt"), data=body, headers={"Content-Type": "multipart/form-data; boundary=b"}))
    same(s.files.read("up.txt"), "put")
    bad = s.download_url("dir/a.txt").replace("a.txt", "up.txt")
    same(raises(urllib.error.HTTPError, "", urllib.request.urlopen, bad).code, 401)


@step("network: what would open everything is refused")
def _():
    raises(e2b.SandboxException, "reaches everything", Sandbox.create, network={"allow_out": ["0.0.0.0/0"]})


@step("errors")
def _():
    raises(e2b.AuthenticationException, "", Sandbox.create, api_key="e2b_" + "0" * 40)
    raises(e2b.NotFoundException, "", Sandbox.connect, "sbaaaaaaaaaaaaaaaaaa")
    same(Sandbox.kill("sbaaaaaaaaaaaaaaaaaa"), False)


@step("async")
def _():
    async def run():
        a = await AsyncSandbox.create()
        try:
            results = await asyncio.gather(*(a.commands.run(f"echo {n}") for n in range(8)))
            same([r.stdout for r in results], [f"{n}\n" for n in range(8)])
            c = await a.commands.run("echo up; sleep 300", background=True, timeout=0)
            same(await c.kill(), True)
            await a.files.write("x", "y")
            same(await a.files.read("x"), "y")
        finally:
            same(await a.kill(), True)

    asyncio.run(run())


@step("kill")
def _():
    same((s.kill(), s.kill(), s.is_running()), (True, False, False))


end()
