"""e2b-code-interpreter: contexts, results, errors."""

from e2b_code_interpreter import Sandbox

from step import end, raises, same, step

s = None


@step("create")
def _():
    global s
    s = Sandbox.create()


@step("run_code")
def _():
    x = s.run_code("import sys\nprint('out')\nprint('err', file=sys.stderr)\nv = 6\nv*7")
    same((x.text, "".join(x.logs.stdout), "".join(x.logs.stderr), x.error), ("42", "out\n", "err\n", None))
    same(s.run_code("v").text, "6")


@step("run_code: error")
def _():
    x = s.run_code("1/0")
    same((x.error.name, x.error.value), ("ZeroDivisionError", "division by zero"))


@step("contexts")
def _():
    c = s.create_code_context(cwd="/tmp")
    same(s.run_code("'v' in globals()", context=c).text, "False")
    assert c.id in [x.id for x in s.list_code_contexts()]
    s.restart_code_context(c)
    s.remove_code_context(c)
    raises(Exception, "", s.run_code, "1", context=c)


@step("run_code: javascript")
def _():
    same(s.run_code("[1, 2].map(x => x * 2).join()", language="javascript").text, "'2,4'")


@step("kill")
def _():
    same(s.kill(), True)


end()
