"""e2b-code-interpreter reads the charts of a sandbox that has matplotlib."""

import sys

from e2b_code_interpreter import Sandbox
from e2b_code_interpreter.charts import BarChart, BoxAndWhiskerChart, LineChart, PieChart, ScatterChart, SuperChart

from step import end, same, step

s = Sandbox.connect(sys.argv[1])


def chart(code):
    x = s.run_code("import sys; sys.path.insert(0, '/home/user/site')\nimport matplotlib.pyplot as plt\n" + code)
    assert x.error is None, x.error.traceback
    return [r for r in x.results if r.png][0].chart


@step("charts are objects")
def _():
    c = chart("plt.plot([1, 2], [3, 4], label='l')\nplt.title('t');")
    same((type(c), c.title, c.elements[0].label, c.elements[0].points), (LineChart, "t", "l", [(1, 3), (2, 4)]))
    same(type(chart("plt.scatter([1], [2]);")), ScatterChart)
    same([(e.label, e.group, e.value) for e in chart("plt.bar(['a'], [2]);").elements], [("a", "Group 0", 2)])
    same(type(chart("plt.bar(['a'], [2]);")), BarChart)
    same(type(chart("plt.pie([1, 2]);")), PieChart)
    c = chart("plt.boxplot([1, 2, 3]);")
    same((type(c), c.elements[0].median), (BoxAndWhiskerChart, 2))
    c = chart("f, (a, b) = plt.subplots(2)\na.plot([1, 2]); b.imshow([[1]]);")
    same((type(c), [e.type.value for e in c.elements]), (SuperChart, ["line", "unknown"]))


end()
