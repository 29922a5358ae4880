"""Report a run's structured result to Firebreak.

    import firebreak
    firebreak.result({"ok": 1})
"""

__all__ = ["result"]

_MAX = 1 << 20


def result(value):
    """Make value, which JSON must be able to express, the result of this run.

    The last call wins. Raises TypeError or ValueError for what JSON cannot
    express (NaN and infinities included) or what is larger than 1 MiB, and
    leaves an earlier result as it was.
    """
    import json
    import os

    path = os.environ.get("FIREBREAK_RESULT")
    if not path:
        raise RuntimeError("firebreak.result: not running in a Firebreak sandbox")
    data = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if len(data) > _MAX:
        raise ValueError("firebreak.result: %d bytes is over the limit of %d" % (len(data), _MAX))
    partial = "%s.%d" % (path, os.getpid())
    try:
        with open(partial, "xb") as f:
            f.write(data)
        os.replace(partial, path)
    except BaseException:
        try:
            os.unlink(partial)
        except OSError:
            pass
        raise
