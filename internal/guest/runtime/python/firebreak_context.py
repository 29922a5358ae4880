"""Keep a Python interpreter warm for Firebreak. Not for import.

Turns of code come as lines of JSON on standard input and share one namespace.
What they show goes back among what they print; package guest/driver of
Firebreak says how. Only the standard library is used, and little of that.
"""

import ast
import builtins
import io
import json
import os
import select
import signal
import sys
import threading
import types

PIPE_BUF = 4096
LARGEST = 4 << 20  # of a message
TOO_LARGE = "[this result was too large to be shown: at most 4 MiB]"
MAX_ROWS = 10_000  # of a table given as data
PLAIN = frozenset((bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset))  # have one form
MAX_SOURCES = 1000  # turns whose source tracebacks can show
PICTURES = {"png": "image/png", "svg": "image/svg+xml", "jpg": "image/jpeg", "jpeg": "image/jpeg", "pdf": "application/pdf"}  # of figures
HERE = __file__


def reseed():
    """Seed what is loaded of the generators that programs share: this process was
    copied, and what it draws next the other one draws, too."""
    for name, seed in (("random", lambda m: m.seed()), ("numpy.random", lambda m: m.seed()),
                       ("_ssl", lambda m: m.RAND_add(os.urandom(64), 64.0)), ("uuid", renode),
                       ("tempfile", lambda m: setattr(m, "_name_sequence", None))):
        try:
            seed(sys.modules[name])
        except Exception:  # not loaded, or something of user code by that name
            pass


def renode(uuid):
    """Have uuid1 and its kin begin anew, as another machine. The C library's
    generator keeps a sequence that nobody can reach: it is left aside."""
    for name, value in (("_generate_time_safe", None), ("_UuidCreate", None), ("_last_timestamp", None),
                        ("_last_timestamp_v6", None), ("_last_timestamp_v7", None), ("_last_counter_v7", 0),
                        ("_node", int.from_bytes(os.urandom(6), "big") | 1 << 40)):  # no card's: multicast
        if hasattr(uuid, name):
            setattr(uuid, name, value)


class Channel:
    """Where commands come from and messages go. User code has neither."""

    def __init__(self):
        self.commands = os.dup(0)
        self.out = os.dup(1)
        self.err = os.dup(2)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        self.lock = threading.Lock()
        self.buffer = b""
        self.pid = os.getpid()
        self.token = json.loads(self.line())["token"].encode("ascii")
        # A child of user code must not take commands or speak for its parent.
        os.register_at_fork(after_in_child=self.cut)

    def cut(self):
        self.pid = None
        for fd in (self.commands, self.out, self.err):
            try:
                os.close(fd)
            except OSError:
                pass

    def ours(self):
        return self.pid == os.getpid()

    def line(self):
        """Return the next command, or None when there will be none."""
        while True:
            text, found, rest = self.buffer.partition(b"\n")
            if found:
                self.buffer = rest
                return text
            more = os.read(self.commands, 1 << 16)
            if not more:
                return None
            self.buffer += more

    def write(self, fd, data):
        while data:
            try:
                data = data[os.write(fd, data):]
            except BlockingIOError:  # user code shares the pipe, and may have said so
                select.select([], [fd], [])

    def send(self, message):
        self.put(self.chunks(message))

    def put(self, chunks):
        if self.ours():
            self.say(self.out, chunks)

    def say(self, fd, chunks):
        """Write chunks, in one write where a pipe takes them undivided."""
        if sum(map(len, chunks)) <= PIPE_BUF:
            chunks = [b"".join(chunks)]
        with shielded, self.lock:
            for chunk in chunks:
                self.write(fd, chunk)

    def end(self, last, message):
        """End a turn on both outputs, behind the chunks that it has still to say.

        Each write wakes the agent, which costs more than all that is written:
        so they go together, and standard error comes first, while the host still
        has to wait for the other.
        """
        end = self.chunks(message)
        self.say(self.err, end)
        self.say(self.out, last + end)

    def chunks(self, message):
        data = document(message)
        room = PIPE_BUF - 1 - len(self.token) - 1 - 4
        out = []
        for at in range(0, len(data), room):
            part = data[at:at + room]
            kind = (at == 0) | (at + room >= len(data)) << 1
            out.append(b"\x1e%s%d%04x%s" % (self.token, kind, len(part), part))
        return out


def document(message):
    try:
        data = encode(message)
    except (TypeError, ValueError, RecursionError):  # a form that JSON cannot express
        message = dict(message, data={"text/plain": str(message["data"].get("text/plain", ""))})
        data = encode(message)
    if len(data) > LARGEST:
        data = encode(dict(message, data={"text/plain": TOO_LARGE}))
    return data


encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=str)


def encode(message):
    return encoder.encode(message).encode("ascii")


class Shield:
    """Puts an interrupt off while the main thread is in here."""

    def __init__(self):
        self.depth = 0
        self.pending = False
        self.running = False  # user code

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.depth += 1

    def __exit__(self, *_):
        if threading.current_thread() is not threading.main_thread():
            return
        self.depth -= 1
        if self.depth == 0 and self.pending and self.running:
            self.pending = False
            raise KeyboardInterrupt

    def interrupt(self, *_):
        if not self.running:
            return
        if self.depth:
            self.pending = True
        else:
            raise KeyboardInterrupt


shielded = Shield()


class Turns:
    """The state that turns share."""

    def __init__(self, channel):
        self.channel = channel
        self.turn = 0
        self.count = 0
        self.loop = None
        self.sources = []
        self.main = types.ModuleType("__main__")
        self.main.__builtins__ = builtins
        sys.modules["__main__"] = self.main
        self.names = self.main.__dict__
        self.names["display"] = builtins.display = self.display
        builtins.input = no_input

    # What is shown.

    def display(self, *values, raw=False, include=None, exclude=None, metadata=None, transient=None, display_id=None, clear=False, **_):
        """Show values in every form they have; with raw, they are {media type: form}."""
        for value in values:
            self.show(value if raw else forms(value), False)

    def show(self, data, main):
        flush()
        self.channel.send(self.result(data, main))

    def result(self, data, main):
        return {"type": "result", "turn": self.turn, "main": main, "data": data}

    def figures(self, last):
        """Show what was drawn, as notebooks do, and be done with it. It comes
        behind last, the chunks of the turn's value; return what is left of those."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return last
        for number in pyplot.get_fignums():
            if last:
                flush()
                self.channel.put(last)
                last = []
            self.show(forms(pyplot.figure(number)), False)
        pyplot.close("all")
        return last

    # Turns.

    def prepare(self):
        """Put right what the turn before may have changed, while nobody waits."""
        signal.signal(signal.SIGINT, shielded.interrupt)
        for name, fd in (("stdout", 1), ("stderr", 2)):
            if getattr(getattr(sys, name, None), "closed", True):  # by an earlier turn
                setattr(sys, name, output(fd))

    def run(self, command):
        """Run a turn; return the chunks that are to be said with its end."""
        self.turn = command["turn"]
        if command.get("sync"):
            if command.get("fresh"):
                reseed()
            return []
        self.count += 1
        before = {}
        for name, value in (command.get("env") or {}).items():
            before[name] = os.environ.get(name)
            os.environ[name] = value
        failure, last = None, []
        try:
            try:
                shielded.running = True
                last = self.execute(command["code"])
                last = self.figures(last)
            finally:
                shielded.running = shielded.pending = False
        except BaseException as e:
            failure = e
        if not self.channel.ours():  # a child of user code that came back
            leave(failure)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        flush()
        if failure is None:
            return last
        return last + self.report(failure)  # a value there was before the figures failed

    def execute(self, code):
        name = "<turn %d>" % self.count
        self.remember(name, code)
        tree = compile(code, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)
        if tree.body:
            self.evaluate(tree, name, "exec")
        if last is not None:
            value = self.evaluate(last, name, "eval")
            if value is not None:
                self.names["_"] = value
                return self.channel.chunks(self.result(forms(value), True))
        return []

    def evaluate(self, tree, name, mode):
        code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, self.names)
        if code.co_flags & 0x80:  # CO_COROUTINE: there was an await
            value = self.await_(value)
        return value

    def await_(self, coroutine):
        import asyncio
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            self.loop.run_until_complete(asyncio.wait([task], timeout=1))
            raise

    def remember(self, name, code):
        import linecache
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        self.sources.append(name)
        if len(self.sources) > MAX_SOURCES:
            linecache.cache.pop(self.sources.pop(0), None)

    def report(self, failure):
        try:
            import traceback
            trace = theirs(failure.__traceback__)
            if isinstance(failure, SyntaxError) and trace is None:
                lines = traceback.format_exception_only(type(failure), failure)
            else:
                lines = traceback.format_exception(type(failure), failure, trace)
            text, value = "".join(lines), str(failure)
        except BaseException as e:  # its own methods are user code, too
            text, value = "(its traceback could not be printed: %s)" % type(e).__name__, ""
        limit = 256 << 10
        return self.channel.chunks({"type": "error", "turn": self.turn, "name": type(failure).__name__, "value": value[-limit:], "traceback": text[-limit:]})


def theirs(trace):
    """Return a traceback without frames of ours."""
    frames = []
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != HERE:
            frames.append(trace)
        trace = trace.tb_next
    kept = None
    for frame in reversed(frames):
        kept = types.TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept


def forms(value):
    """Return {media type: form} of a value, as notebooks do."""
    data = {} if type(value) in PLAIN else rich(value)
    if "text/plain" not in data:
        try:
            data["text/plain"] = pretty(value)
        except Exception as e:
            data["text/plain"] = "<%s whose repr failed: %s>" % (type(value).__name__, type(e).__name__)
    return data


def rich(value):
    """Return the forms that its class gives a value."""
    data = {}
    bundle = method(value, "_repr_mimebundle_")
    if bundle is not None:
        got = attempt(lambda: bundle(include=None, exclude=None))
        if isinstance(got, tuple):
            got = got[0]
        if isinstance(got, dict):
            data.update((str(k), encoded(v)) for k, v in got.items())
    for name, kind in (("html", "text/html"), ("markdown", "text/markdown"), ("svg", "image/svg+xml"), ("png", "image/png"), ("jpeg", "image/jpeg"),
                       ("pdf", "application/pdf"), ("latex", "text/latex"), ("json", "application/json"), ("javascript", "application/javascript")):
        show = method(value, "_repr_%s_" % name)
        if show is None or kind in data:
            continue
        got = attempt(show)
        if isinstance(got, tuple):
            got = got[0]
        if got is not None:
            data[kind] = encoded(got)
    if is_a(value, "matplotlib", "Figure") and not any(kind in data for kind in PICTURES.values()):
        kind, picture = attempt(lambda: drawn(value)) or (None, None)
        if picture:
            data[kind] = picture
            chart = charted(value)
            if chart is not None:
                data["firebreak/chart"] = chart
    if is_a(value, "pandas", "DataFrame"):
        table = attempt(lambda: columns(value))
        if table is not None:
            data["firebreak/data"] = table
    return data


def method(value, name):
    """Return a method that the value's class has; one that has every name has none."""
    if isinstance(value, type) or not hasattr(type(value), name):
        return None
    return getattr(value, name, None)


def attempt(show):
    """Return what a form comes to, or None if it fails: the other forms remain."""
    try:
        return show()
    except NotImplementedError:
        return None
    except Exception as e:
        print("a form of the result failed: %s: %s" % (type(e).__name__, e), file=sys.stderr)
        return None


def encoded(form):
    if isinstance(form, (bytes, bytearray, memoryview)):
        import base64
        return base64.b64encode(form).decode("ascii")
    return form


def pretty(value):
    text = repr(value)
    if len(text) > 80 and type(value) in (dict, list, set, tuple) and len(text) < 1 << 16:
        import pprint
        text = pprint.pformat(value, sort_dicts=False)
    return text


def is_a(value, package, name):
    return any(c.__name__ == name and c.__module__.partition(".")[0] == package for c in type(value).__mro__)


def drawn(figure):
    """Return the media type and form of a picture: png, or what savefig makes where nothing else is said."""
    rc = getattr(sys.modules.get("matplotlib"), "rcParams", {})
    name = rc.get("savefig.format", "png")
    if name not in PICTURES:
        name = "png"
    out = io.BytesIO()
    figure.savefig(out, format=name, bbox_inches="tight")
    return PICTURES[name], out.getvalue().decode("utf-8") if name == "svg" else encoded(out.getvalue())


def charted(figure):
    """Return what a figure shows as data, or None: nobody has asked for it."""
    try:
        import firebreak_chart
        return firebreak_chart.of(figure)
    except Exception:
        return None


def columns(frame):
    """Return {column: values} with values that JSON has."""
    frame = frame.head(MAX_ROWS)
    return {str(name): [plain(v) for v in values] for name, values in frame.to_dict(orient="list").items()}


def plain(value):
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()  # of numpy
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if type(value).__name__ in ("NaTType", "NAType"):
        return None  # of pandas
    if isinstance(value, float):
        return value if value - value == 0 else None  # JSON has neither NaN nor infinity
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def no_input(prompt=""):
    raise EOFError("input() is not available: a context has no standard input; pass values as variables or files")


def flush():
    for stream in {id(s): s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # user code may have closed or replaced it
            pass


def leave(failure):
    """End a forked child as a program would have ended."""
    flush()
    code = 0 if failure is None else 1
    if isinstance(failure, SystemExit):
        code = failure.code if isinstance(failure.code, int) else 0 if failure.code is None else 1
    elif failure is not None:
        sys.excepthook(type(failure), failure, failure.__traceback__)
        flush()
    os._exit(code & 0xFF)


def output(fd):
    """Return a text stream that shows each line at once."""
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw, 1 << 16), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def main():
    signal.signal(signal.SIGINT, shielded.interrupt)
    channel = Channel()
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")
    sys.stdout = sys.__stdout__ = output(1)
    sys.stderr = sys.__stderr__ = output(2)
    sys.path[0] = ""  # the working directory, as in an interactive interpreter
    sys.argv = [""]
    os.environ.setdefault("MPLBACKEND", "module://firebreak_matplotlib")
    turns = Turns(channel)
    turns.prepare()
    channel.send({"type": "ready"})
    while True:
        line = channel.line()
        if line is None:
            break
        try:
            command = json.loads(line)
        except ValueError:
            continue
        last = turns.run(command)
        channel.end(last, {"type": "end", "turn": turns.turn, "count": turns.count})
        turns.prepare()
    flush()
    os._exit(0)  # threads of user code wait for nothing any more


main()
