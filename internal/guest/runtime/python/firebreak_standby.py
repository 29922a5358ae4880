"""Wait for a program, then be `python3 -c` of it. Not for import.

Descriptor 3 is a socket: one byte says that the interpreter is ready, and what
comes back until its end is the program (agent/standby_linux.go of Firebreak).
Nothing is imported that python3 -c would not have imported by itself, and nothing
of this file is left where the program could meet it by accident.
"""

import builtins
import os
import sys


ROOM = bytearray(1 << 14)  # for an order, which is mostly smaller; it is in memory when it comes


def order():
    os.set_inheritable(3, False)
    os.write(3, b"r")
    n = os.readv(3, [ROOM])
    if not n:
        os._exit(0)  # it is not needed
    text = bytes(memoryview(ROOM)[:n])
    size = 8 + int(text[:8])
    while len(text) < size:
        more = os.read(3, size - len(text))
        if not more:
            os._exit(0)
        text += more
    os.close(3)
    return parse(text[8:])


def parse(text):
    fields = text.split(b"\0")
    n = int(fields[0])
    args = [os.fsdecode(a) for a in fields[1:1 + n]]
    m = int(fields[1 + n])
    env = dict(e.split(b"=", 1) for e in fields[2 + n:2 + n + m])
    return args, env, fields[2 + n + m]


def rehearse():
    """Do what is done to every program with one that does nothing: what the
    interpreter needs for that is in memory then, and is not waited for later."""
    env = [key + b"=" + value for key, value in os.environb.items()]
    program = b"a = [1]\nfor b in a:\n    c = str(b * 2) + '.'\nlen(c)\n"
    args, env, source = parse(b"\0".join([b"1", b"a", str(len(env)).encode()] + env + [program]))
    become(env)
    run(source, fresh().__dict__)
    sys.stdout.write("")


def become(env):
    here = os.environb
    if list(env) == list(here):  # in the order of a fresh start
        for key, value in env.items():
            if here[key] != value:
                here[key] = value
        return
    for key in list(here):
        del here[key]
    for key, value in env.items():
        here[key] = value


def fresh():
    main = type(sys)("__main__")
    main.__loader__ = sys.modules["_frozen_importlib"].BuiltinImporter
    main.__builtins__ = builtins
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    return main


def run(source, scope):
    text = source.decode("utf-8", "surrogateescape")
    if sys.version_info >= (3, 14):
        import textwrap
        text = textwrap.dedent(text)
    exec(compile(text + "\n", "<string>", "exec", dont_inherit=True), scope)


def show(error):
    """Print error as if the frames of this file were none."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    # What python3 -c leaves behind for whoever looks.
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.excepthook(type(error), error, trace)


def main():
    rehearse()
    args, env, source = order()
    become(env)
    sys.argv[:] = ["-c"] + args
    sys.orig_argv[:] = ["python3", "-c", os.fsdecode(source)] + args
    sys.path[0] = ""
    module = fresh()
    sys.modules["__main__"] = module
    try:
        run(source, module.__dict__)
    except SystemExit:
        raise
    except KeyboardInterrupt as error:
        show(error)
        flush()
        import signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        show(error)
        sys.exit(1)


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


main()
