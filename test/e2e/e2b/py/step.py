"""Prints a line for each step, which the Go test reads."""

import threading
import time
import traceback
import os


# How many times longer things may take here.
SLOWLY = int(os.environ.get("SLOWLY", "1"))


def step(name):
    """Runs the decorated function at once, as a step."""

    def run(fn):
        late = threading.Timer(120 * SLOWLY, lambda: (print(f"failed {name}\tno answer in {2 * SLOWLY} minutes", flush=True), os._exit(1)))
        late.daemon = True
        late.start()
        begun = time.time()
        try:
            fn()
            print(f"ok {name}\t{time.time() - begun:.3f} s", flush=True)
        except Exception:
            print(f"failed {name}\t" + traceback.format_exc().replace("\n", "\\n"), flush=True)
        late.cancel()

    return run


def same(got, want):
    assert got == want, f"{got!r} is not {want!r}"


def raises(cls, text, fn, *args, **kwargs):
    try:
        value = fn(*args, **kwargs)
    except cls as e:
        assert text in str(e), f"{text!r} is not in {e}"
        return e
    raise AssertionError(f"no {cls.__name__}: {value!r}")


def until(what, cond):
    give = time.time() + 60 * SLOWLY
    while time.time() < give:
        if cond():
            return
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


def end():
    print("end", flush=True)
    os._exit(0)
