// @e2b/code-interpreter: contexts, results, charts, errors.
import { step, assert, rejects, end } from './step.mjs'
import { Sandbox, NotFoundError } from '@e2b/code-interpreter'

let s
await step('create', async () => {
  s = await Sandbox.create()
  assert.equal((await s.getInfo()).templateId, 'base')
})
await step('runCode', async () => {
  const seen = []
  const x = await s.runCode('import sys\nprint("out")\nprint("err", file=sys.stderr)\n6*7', { onStdout: (m) => { seen.push(m.line) }, onResult: (r) => { seen.push(r.text) } })
  assert.equal(x.text, '42')
  assert.equal(x.logs.stdout.join(''), 'out\n')
  assert.equal(x.logs.stderr.join(''), 'err\n')
  assert.equal(x.error, undefined)
  assert.equal(x.executionCount, 1)
  assert.deepEqual([seen.includes('42'), seen.join('').includes('out')], [true, true])
})
await step('runCode: state', async () => {
  await s.runCode('a = 20\ndef f(x): return x + a')
  assert.equal((await s.runCode('f(1)')).text, '21')
})
await step('runCode: error', async () => {
  const x = await s.runCode('def g():\n    raise ValueError("no good")\ng()')
  assert.deepEqual([x.error.name, x.error.value], ['ValueError', 'no good'])
  assert.match(x.error.traceback, /line 2/)
  assert.equal((await s.runCode('a')).text, '20')
  assert.equal((await s.runCode('1 +')).error.name, 'SyntaxError')
})
await step('runCode: envs', async () => {
  assert.equal((await s.runCode('import os\nos.environ["TURN"]', { envs: { TURN: 'this' } })).text, "'this'")
  assert.equal((await s.runCode('os.environ.get("TURN")')).text, undefined)
})
await step('runCode: rich results', async () => {
  const x = await s.runCode(`
class Rich:
    def _repr_html_(self): return "<b>h</b>"
    def _repr_markdown_(self): return "# m"
    def _repr_svg_(self): return "<svg/>"
    def _repr_latex_(self): return "$x$"
    def _repr_json_(self): return {"k": [1, 2]}
    def _repr_png_(self): return b"\\x89PNG"
    def __repr__(self): return "rich"
Rich()`)
  const r = x.results.at(-1)
  assert.deepEqual([r.text, r.html, r.markdown, r.svg, r.latex, r.isMainResult], ['rich', '<b>h</b>', '# m', '<svg/>', '$x$', true])
  assert.deepEqual(r.json, { k: [1, 2] })
  assert.equal(Buffer.from(r.png, 'base64').toString('latin1'), '\x89PNG')
})
await step('runCode: chart and other forms', async () => {
  const x = await s.runCode(`
class Plot:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"e2b/chart": {"type": "line", "title": "t", "elements": [{"label": "a", "points": [[0, 1]]}]}, "application/x-other": "o"}
Plot()`)
  const r = x.results.at(-1)
  assert.deepEqual(r.chart, { type: 'line', title: 't', elements: [{ label: 'a', points: [[0, 1]] }] })
  assert.equal(r.extra['application/x-other'], 'o')
})
await step('contexts', async () => {
  const c = await s.createCodeContext({ cwd: '/tmp' })
  assert.deepEqual([c.language, c.cwd], ['python', '/tmp'])
  await s.runCode('a = "apart"', { context: c })
  assert.equal((await s.runCode('a', { context: c })).text, "'apart'")
  assert.equal((await s.runCode('a')).text, '20')
  assert.equal((await s.runCode('import os; os.getcwd()', { context: c })).text, "'/tmp'")
  assert.ok((await s.listCodeContexts()).some((x) => x.id === c.id))
  await s.restartCodeContext(c)
  assert.equal((await s.runCode('a', { context: c })).error.name, 'NameError')
  await s.removeCodeContext(c)
  assert.ok(!(await s.listCodeContexts()).some((x) => x.id === c.id))
  await rejects(s.runCode('1', { context: c }), NotFoundError)
})
await step('runCode: javascript', async () => {
  await s.runCode('const n = 20; let m = 1', { language: 'javascript' })
  const x = await s.runCode('console.log("js"); n + m', { language: 'js' })
  assert.deepEqual([x.text, x.logs.stdout.join('')], ['21', 'js\n'])
  const c = await s.createCodeContext({ language: 'javascript' })
  assert.equal(c.language, 'javascript')
  assert.equal((await s.runCode('typeof n', { context: c })).text, "'undefined'")
})
await step('runCode: other languages are refused', async () => {
  await rejects(s.runCode('1', { language: 'r' }), Error, /400|not supported/)
})
await step('runCode: files are those of the sandbox', async () => {
  await s.runCode('open("/home/user/from-code.txt", "w").write("shared")')
  assert.equal(await s.files.read('from-code.txt'), 'shared')
})
await step('runCode: timeout interrupts', async () => {
  await rejects(s.runCode('import time\ntime.sleep(300)', { timeoutMs: 1500 }), Error, /timed out/i)
  assert.equal((await s.runCode('a')).text, '20')
})
await step('the traffic token runs no code', async () => {
  const headers = { 'E2b-Sandbox-Id': s.sandboxId, 'E2b-Sandbox-Port': '49999', 'E2B-Traffic-Access-Token': s.trafficAccessToken }
  const url = process.env.E2B_SANDBOX_URL
  const body = JSON.stringify({ code: '1' })
  assert.equal((await fetch(url + '/contexts', { headers })).status, 200)
  assert.equal((await fetch(url + '/execute', { method: 'POST', headers, body })).status, 401)
  delete headers['E2B-Traffic-Access-Token']
  assert.equal((await fetch(url + '/contexts', { headers })).status, 401)
})
await step('kill', async () => assert.equal(await s.kill(), true))
end()
