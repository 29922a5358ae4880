"""The Python SDK: pause, connect, snapshots and what happens at the end of a sandbox's
time, with the contexts of the code interpreter, and its asynchronous twin."""

import asyncio
import os
import time

import e2b
from e2b import NotFoundException, SandboxQuery, SandboxState
from e2b_code_interpreter import AsyncSandbox, Sandbox

from step import SLOWLY, end, raises, same, step, until

s = None
other = None
counter = None


# A program that counts; whoever reads the file reads a number.
COUNTING = """python3 -c "
import os, time
i = 0
while True:
    i += 1
    open('.count', 'w').write(str(i))
    os.replace('.count', 'count')
    time.sleep(0.02)" """


def all_of(pages):
    out = []
    while pages.has_next:
        out += pages.next_items()
    return out


def listed(*states):
    return [x.sandbox_id for x in all_of(Sandbox.list(limit=1, query=SandboxQuery(state=list(states))))]


def left(box):
    return box.get_info().end_at.timestamp() - time.time()


@step("create")
def _():
    global s, other, counter
    s = Sandbox.create(timeout=120, envs={"KEPT": "env"})
    s.files.write("kept/file", "kept")
    s.run_code("import random, time, uuid, os\nn = 0\nopen('/dev/shm/kept', 'w').write('shm')")
    other = s.create_code_context(language="javascript")
    s.run_code("globalThis.n = 0", context=other)
    counter = s.commands.run(COUNTING, background=True, timeout=0)


draws = set()
for turn in range(1, 6):

    @step(f"pause, list, connect: {turn}")
    def _():
        s.files.write(f"kept/{turn}", f"before pause {turn}")
        same((s.pause(strict=True), s.pause()), (True, False))
        same(s.get_info().state, SandboxState.PAUSED)
        assert s.sandbox_id in listed(SandboxState.PAUSED)
        assert s.sandbox_id not in listed(SandboxState.RUNNING)
        assert s.sandbox_id in listed(SandboxState.PAUSED, SandboxState.RUNNING)
        same(s.is_running(), False)
        raises(e2b.TimeoutException, "", s.files.read, "kept/file")
        raises(e2b.NotFoundException, "", s.set_timeout, 60)
        same(s.get_info().state, SandboxState.PAUSED)
        again = Sandbox.connect(s.sandbox_id, timeout=100) if turn % 2 else s.connect(timeout=100)
        assert 50 < left(s) <= 101, left(s)
        for box in (again, s):
            same(box.is_running(), True)
            same(box.files.read("kept/file"), "kept")
        for k in range(1, turn + 1):
            same(again.files.read(f"kept/{k}"), f"before pause {k}")
        x = again.run_code("n += 1\nprint(n, open('/dev/shm/kept').read(), os.environ['KEPT'])\nprint(time.time())\nprint(os.urandom(8).hex(), uuid.uuid4().hex)")
        said, clock, draw = "".join(x.logs.stdout).splitlines()
        same(said, f"{turn} shm env")
        assert abs(float(clock) - time.time()) < 20, clock
        assert draw not in draws
        draws.add(draw)
        same(again.run_code("++globalThis.n", context=other).text, str(turn))
        until("there is a count", lambda: again.files.exists("count"))
        before = int(again.files.read("count"))
        until("the program goes on", lambda: int(again.files.read("count")) > before)
        assert counter.pid in [p.pid for p in again.commands.list()]


@step("connect to one that runs takes no time from it")
def _():
    s.set_timeout(600)
    s.connect(timeout=1)
    Sandbox.connect(s.sandbox_id)
    assert left(s) > 500


@step("files without memory are refused, never ignored")
def _():
    raises(e2b.SandboxException, "without its memory", s.pause, mode="filesystem")
    raises(e2b.SandboxException, "without its memory", s.create_snapshot, mode="filesystem")
    raises(e2b.SandboxException, "without its memory", Sandbox.create, lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    same(s.is_running(), True)
    s.pause()
    raises(e2b.SandboxException, "without its memory", s.connect, on_resume="reboot")
    same(s.is_running(), False)
    s.connect(timeout=600)


@step("snapshot, create from it twice")
def _():
    snap = s.create_snapshot()
    s.files.write("kept/file", "later")
    two = [Sandbox.create(snap.snapshot_id, timeout=100) for _ in range(2)]
    same(len({s.sandbox_id, *(x.sandbox_id for x in two)}), 3)
    same(len({x.traffic_access_token for x in (s, *two)}), 3)
    drawn = {s.run_code("random.random()").text}
    for box in two:
        same(box.files.read("kept/file"), "kept")
        same(box.run_code("n").text, "5")
        same(box.run_code("globalThis.n", context=other).text, "5")
        drawn.add(box.run_code("random.random()").text)
    same(len(drawn), 3)
    same([x.snapshot_id for x in all_of(Sandbox.list_snapshots(sandbox_id=s.sandbox_id))], [snap.snapshot_id])
    same((Sandbox.delete_snapshot(snap.snapshot_id), Sandbox.delete_snapshot(snap.snapshot_id)), (True, False))
    for box in two:
        same(box.run_code("n += 1\nn").text, "6")
        box.kill()


@step("fork")
def _():
    two = s.fork(count=2, timeout=100)
    same(len({s.sandbox_id, *(x.sandbox_id for x in two)}), 3)
    drawn = {s.run_code("random.random()").text}
    for box in two:
        same(box.run_code("n").text, "5")
        drawn.add(box.run_code("random.random()").text)
        box.kill()
    same(len(drawn), 3)


@step("kill while paused")
def _():
    s.pause()
    same((s.kill(), s.kill()), (True, False))
    raises(NotFoundException, "", Sandbox.connect, s.sandbox_id)
    raises(NotFoundException, "", s.pause)


@step("on_timeout pause")
def _():
    box = Sandbox.create(timeout=3 * SLOWLY, lifecycle={"on_timeout": "pause"})
    box.run_code("v = 1")
    until("it is paused", lambda: box.get_info().state == SandboxState.PAUSED)
    same(box.get_info().lifecycle, {"on_timeout": "pause", "auto_resume": False})
    assert left(box) > 29 * 86400
    same(Sandbox.connect(box.sandbox_id, timeout=60).run_code("v").text, "1")
    box.kill()


@step("auto_resume: use goes on where it was")
def _():
    box = Sandbox.create(timeout=120, lifecycle={"on_timeout": "pause", "auto_resume": True})
    box.run_code("v = 1")
    box.pause()
    same(box.run_code("v").text, "1")
    box.kill()


@step("create: idempotency_key")
def _():
    one, same_one = (Sandbox.create(idempotency_key="job-1") for _ in range(2))
    same(one.sandbox_id, same_one.sandbox_id)
    raises(e2b.SandboxException, "", Sandbox.create, idempotency_key="job-1", envs={"A": "other"})
    one.kill()


@step("another team's key sees nothing")
def _():
    key = os.environ["OTHER_API_KEY"]
    box = Sandbox.create()
    box.pause()
    raises(NotFoundException, "", Sandbox.connect, box.sandbox_id, api_key=key)
    raises(NotFoundException, "", Sandbox.pause, box.sandbox_id, api_key=key)
    same(Sandbox.kill(box.sandbox_id, api_key=key), False)
    same(all_of(Sandbox.list(api_key=key)), [])
    box.kill()


@step("async")
def _():
    async def run():
        a = await AsyncSandbox.create(timeout=120)
        await a.files.write("x", "y")
        await a.run_code("v = 0")
        for n in range(1, 4):
            same((await a.pause(), await a.pause()), (True, False))
            a = await AsyncSandbox.connect(a.sandbox_id, timeout=120)
            same((await a.run_code("v += 1\nv")).text, str(n))
            same(await a.files.read("x"), "y")
        snap = await a.create_snapshot(name="async")
        b = await AsyncSandbox.create("async")
        same((await b.run_code("v")).text, "3")
        same(await AsyncSandbox.delete_snapshot(snap.snapshot_id), True)
        same(await asyncio.gather(a.kill(), b.kill()), [True, True])

    asyncio.run(run())


end()
