"""A virtual machine through E2B's SDK: one boot and one restore for what other scripts
look at more closely."""

import os
import time

import e2b
from e2b import PtySize, SandboxState
from e2b_code_interpreter import Sandbox

from step import end, raises, same, step, until

s = None


@step("create, get_info")
def _():
    global s
    s = Sandbox.create(metadata={"a": "b"}, envs={"FROM_CREATE": "yes"}, timeout=600)
    i = s.get_info()
    same((i.template_id, i.state, i.metadata["a"], i.allow_internet_access), ("base", SandboxState.RUNNING, "b", False))


@step("a kernel of its own")
def _():
    with open("/proc/sys/kernel/random/boot_id") as f:
        assert s.files.read("/proc/sys/kernel/random/boot_id") != f.read()
    same(s.commands.run("tail -n +3 /proc/net/dev | cut -d: -f1").stdout.split(), ["lo"])


@step("commands")
def _():
    r = s.commands.run("echo out; echo err >&2; echo $FROM_CREATE", envs={"X": "y"})
    same((r.stdout, r.stderr, r.exit_code), ("out\nyes\n", "err\n", 0))
    same(raises(e2b.CommandExitException, "", s.commands.run, "exit 7").exit_code, 7)
    p = s.commands.run("read x; echo got $x", background=True, stdin=True)
    s.commands.send_stdin(p.pid, "typed\n")
    same(p.wait().stdout, "got typed\n")


@step("files")
def _():
    s.files.write("dir/a", "héllo")
    same((s.files.read("dir/a"), [e.name for e in s.files.list("dir")]), ("héllo", ["a"]))
    s.files.rename("dir/a", "dir/b")
    same((s.files.exists("dir/a"), s.files.get_info("dir/b").owner), (False, "user"))
    big = os.urandom(3 << 20)
    s.files.write("big", big)
    same(bytes(s.files.read("big", format="bytes")), big)


@step("files.watch_dir")
def _():
    s.files.make_dir("w")
    h = s.files.watch_dir("w")
    s.files.write("w/a", "1")
    s.commands.run("rm w/a")
    seen = []
    until("both", lambda: seen.extend(e.type.value for e in h.get_new_events()) or {"create", "remove"} <= set(seen))
    h.stop()


@step("pty")
def _():
    t = s.pty.create(PtySize(rows=33, cols=91), timeout=0)
    s.pty.send_stdin(t.pid, b"stty size\n")
    shown = b""
    for _, _, data in t:
        shown += data or b""
        if b"33 91" in shown and b"resized" not in shown:
            s.pty.resize(t.pid, PtySize(rows=40, cols=120))
            s.pty.send_stdin(t.pid, b"stty size; echo re''sized\n")
        if b"resized" in shown:
            break
    assert b"40 120" in shown, shown
    same(s.pty.kill(t.pid), True)


@step("run_code")
def _():
    same(s.run_code("v = 6\nv * 7").text, "42")
    same(s.run_code("1 / 0").error.name, "ZeroDivisionError")
    c = s.create_code_context(cwd="/tmp")
    same(s.run_code("'v' in globals()", context=c).text, "False")
    s.remove_code_context(c)


@step("pause, connect")
def _():
    p = s.commands.run("sleep 600", background=True, timeout=0)
    same(s.pause(), True)
    same(s.get_info().state, SandboxState.PAUSED)
    raises(e2b.NotFoundException, "", s.set_timeout, 60)
    s.connect(timeout=600)
    same((s.run_code("v").text, s.files.read("dir/b")), ("6", "héllo"))
    assert abs(float(s.run_code("import time; time.time()").text) - time.time()) < 20
    assert p.pid in [x.pid for x in s.commands.list()]


@step("kill")
def _():
    same(s.kill(), True)
    same(s.kill(), False)


end()
