// @e2b/code-interpreter with what people plot with: matplotlib and pandas, which
// the test has put into the sandbox.
import { step, assert, end } from './step.mjs'
import { Sandbox } from '@e2b/code-interpreter'

const s = await Sandbox.connect(process.argv[2])

// figure runs code that draws one figure, and returns that result.
async function figure(code) {
  const x = await s.runCode(code)
  assert.equal(x.error, undefined, x.error?.traceback)
  assert.equal(x.logs.stderr.join(''), '')
  const shown = x.results.filter((r) => r.png || r.svg)
  assert.equal(shown.length, 1)
  return shown[0]
}

// size reads what a PNG says of itself.
function size(png) {
  const b = Buffer.from(png, 'base64')
  assert.equal(b.subarray(0, 8).toString('latin1'), '\x89PNG\r\n\x1a\n')
  assert.ok(b.includes('IEND'))
  return [b.readUInt32BE(16), b.readUInt32BE(20)]
}

await step('matplotlib and pandas', async () => {
  const x = await s.runCode(`
import sys
sys.path.insert(0, "/home/user/site")
import matplotlib, pandas as pd, numpy as np
import matplotlib.pyplot as plt
matplotlib.get_backend(), pd.__version__`)
  assert.equal(x.error, undefined, x.error?.traceback)
  assert.match(x.text, /firebreak_matplotlib.*3\.1\.1/)
})
await step('a figure is drawn without a display', async () => {
  const r = await figure('plt.figure(figsize=(4, 3), dpi=100)\nplt.plot([1, 2, 3], [4, 5, 6]);')
  const [w, h] = size(r.png)
  assert.ok(w > 300 && w < 450 && h > 200 && h < 350, `${w} × ${h}`)
  assert.match(r.text, /Figure size 400x300 with 1 Axes/)
  assert.equal(r.svg, undefined)
  assert.equal(r.isMainResult, false)
  assert.equal(r.chart.type, 'line')
})
await step('show() shows, and the turn does not show again', async () => {
  const x = await s.runCode('plt.plot([1, 2])\nplt.show()\nplt.bar(["a"], [1])\nplt.show()')
  assert.deepEqual(x.results.map((r) => r.chart?.type), ['line', 'bar'])
})
await step('svg where it is asked for', async () => {
  const r = await figure('with plt.rc_context({"savefig.format": "svg"}):\n    plt.plot([1, 2])\n    plt.show()')
  assert.match(r.svg, /^<\?xml[^]*<svg[^]*<\/svg>\s*$/)
  assert.deepEqual([r.png, r.chart.type], [undefined, 'line'])
})
await step('chart: line', async () => {
  const { chart } = await figure(`
fig, ax = plt.subplots()
ax.plot([0, 1, 2], [1.5, float("nan"), 4.5], label="sine")
ax.plot(np.array([0, 1]), pd.Series([1, 2]))
ax.axhline(3)
ax.set(title="Waves", xlabel="Time (s)", ylabel="Level [dB]")
ax.grid(True)`)
  assert.deepEqual([chart.type, chart.title, chart.x_label, chart.x_unit, chart.y_label, chart.y_unit], ['line', 'Waves', 'Time (s)', 's', 'Level [dB]', 'dB'])
  assert.deepEqual(chart.elements, [{ label: 'sine', points: [[0, 1.5], [1, null], [2, 4.5]] }, { label: 'Line 1', points: [[0, 1], [1, 2]] }])
  assert.deepEqual([chart.x_scale, chart.y_scale, chart.x_ticks.length === chart.x_tick_labels.length, chart.x_tick_labels.some((l) => Number(l) === 1)], ['linear', 'linear', true, true])
})
await step('chart: scales', async () => {
  const dates = (await figure('plt.plot(pd.date_range("2026-01-01", periods=3), [1, 10, 100])\nplt.yscale("log");')).chart
  assert.deepEqual([dates.x_scale, dates.y_scale, dates.elements[0].points[2]], ['datetime', 'log', ['2026-01-03T00:00:00', 100]])
  assert.match(dates.x_ticks[0], /^20\d\d-\d\d-\d\dT/)
  const series = (await figure('pd.Series([1, 2], index=pd.date_range("2026-01-01", periods=2)).plot();')).chart
  assert.deepEqual([series.x_scale, series.elements[0].points], ['datetime', [['2026-01-01T00:00:00', 1], ['2026-01-02T00:00:00', 2]]])
  const names = (await figure('plt.plot(["a", "b"], [1, 2]);')).chart
  assert.deepEqual([names.x_scale, names.x_tick_labels, names.elements[0].points], ['categorical', ['a', 'b'], [['a', 1], ['b', 2]]])
})
await step('chart: scatter', async () => {
  const { chart } = await figure('plt.scatter([1, 2], [3, 4], c=[1, 2], label="dots")\nplt.colorbar();')
  assert.deepEqual([chart.type, chart.elements], ['scatter', [{ label: 'dots', points: [[1, 3], [2, 4]] }]])
})
await step('chart: bar', async () => {
  const { chart } = await figure('plt.bar(["A", "B"], [100, 200], yerr=[5, 6], label="sold")\nplt.xlabel("Author");')
  assert.deepEqual([chart.type, chart.x_label], ['bar', 'Author'])
  assert.deepEqual(chart.elements, [{ label: 'A', group: 'sold', value: 100 }, { label: 'B', group: 'sold', value: 200 }])
  const lying = (await figure('plt.barh(["A", "B"], [1, 1])\nplt.xlabel("n")\nplt.ylabel("who");')).chart
  assert.deepEqual([lying.x_label, lying.y_label, lying.elements[1]], ['who', 'n', { label: 'B', group: 'Group 0', value: 1 }])
  const grouped = (await figure('pd.DataFrame({"u": [1, 2], "v": [3, 4]}, index=["p", "q"]).plot.bar();')).chart
  assert.deepEqual(grouped.elements.map((e) => [e.label, e.group, e.value]), [['p', 'u', 1], ['q', 'u', 2], ['p', 'v', 3], ['q', 'v', 4]])
})
await step('chart: pie', async () => {
  const { chart } = await figure('plt.pie([1, 2, 3], labels=["a", "b", "c"], autopct="%d")\nplt.title("Shares");')
  assert.deepEqual(chart, { type: 'pie', title: 'Shares', elements: [60, 120, 180].map((angle, i) => ({ label: 'abc'[i], angle, radius: 1 })) })
})
await step('chart: box_and_whisker', async () => {
  for (const how of ['', ', patch_artist=True', ', orientation="horizontal"', ', notch=True, showmeans=True, meanline=True']) {
    const { chart } = await figure(`plt.boxplot([[1, 2, 3, 4, 20], [5, 6, 7]], tick_labels=["a", "b"]${how});`)
    assert.equal(chart.type, 'box_and_whisker')
    assert.deepEqual(chart.elements, [{ label: 'a', min: 1, first_quartile: 2, median: 3, third_quartile: 4, max: 4, outliers: [20] },
      { label: 'b', min: 5, first_quartile: 5.5, median: 6, third_quartile: 6.5, max: 7, outliers: [] }], how)
  }
})
await step('chart: superchart', async () => {
  const { chart } = await figure('fig, (a, b) = plt.subplots(1, 2)\nfig.suptitle("Two")\na.plot([1, 2])\na.set_title("left")\nb.imshow([[1, 2]]);')
  assert.deepEqual([chart.type, chart.title, chart.elements.map((e) => [e.type, e.title])], ['superchart', 'Two', [['line', 'left'], ['unknown', null]]])
})
await step('chart: too many points leave the picture', async () => {
  const r = await figure('plt.plot(np.zeros(100_000));')
  assert.deepEqual([r.chart, r.png.length > 1000], [undefined, true])
})
await step('a data frame has text, html and data', async () => {
  const x = await s.runCode('pd.DataFrame({"n": [1, 2], "x": [0.5, None], "when": [pd.Timestamp("2026-01-02"), pd.NaT], "s": ["a", pd.NA]})')
  const [r] = x.results
  assert.match(r.text, /^ +n +x +when +s\n0 +1 +0.5 2026-01-02/)
  assert.match(r.html, /<table border="1" class="dataframe">[^]*<td>2026-01-02<\/td>/)
  assert.deepEqual(r.data, { n: [1, 2], x: [0.5, null], when: ['2026-01-02T00:00:00', null], s: ['a', null] })
  assert.deepEqual([x.results.length, r.isMainResult], [1, true])
})
await step('a series, and a frame that is large', async () => {
  assert.match((await s.runCode('pd.Series([1, 2], name="n")')).text, /^0 +1\n1 +2\nName: n, dtype: int64$/)
  const x = await s.runCode('pd.DataFrame(np.arange(40_000).reshape(20_000, 2), columns=["a", "b"])')
  assert.deepEqual([x.results[0].data.a.length, x.results[0].data.b[1]], [10_000, 3])
  assert.match(x.text, /20000 rows/)
})
end()
