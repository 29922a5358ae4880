// Pause, connect, snapshots and what happens at the end of a sandbox's time. The
// package is the argument: the newest pinned one, or an older.
import { step, assert, rejects, until, sleep, slowly, end } from './step.mjs'
const name = process.argv[2]
const e2b = await import(name)
const { Sandbox } = e2b

const pages = async (p) => {
  const out = []
  while (p.hasNext) out.push(...(await p.nextItems()))
  return out
}
const listed = async (state) => (await pages(Sandbox.list({ limit: 1, query: { state } }))).map((x) => x.sandboxId)
const left = async (box) => (await box.getInfo()).endAt - Date.now()

// A program that counts; whoever reads the file reads a number.
const counting = `python3 -c "
import os, time
i = 0
while True:
    i += 1
    open('.count', 'w').write(str(i))
    os.replace('.count', 'count')
    time.sleep(0.02)"`
const counts = async (box) => {
  await until('there is a count', () => box.files.exists('count'))
  const at = Number(await box.files.read('count'))
  await until('the program goes on', async () => Number(await box.files.read('count')) > at)
}

let s, counter
await step('create', async () => {
  s = await Sandbox.create({ timeoutMs: 120000, envs: { KEPT: 'env' }, metadata: { keep: 'me' } })
  assert.deepEqual((await s.getInfo()).lifecycle ?? { onTimeout: 'kill', autoResume: false }, { onTimeout: 'kill', autoResume: false })
  await s.files.write('kept/file', 'kept')
  await s.commands.run('echo shm > /dev/shm/kept')
  counter = await s.commands.run(counting, { background: true, timeoutMs: 0 })
  await s.files.write('draw.py', 'import os, random, uuid\nprint(os.urandom(8).hex(), uuid.uuid4().hex)')
})
const draws = new Set()
for (let n = 1; n <= 5; n++) {
  await step(`pause, list, connect: ${n}`, async () => {
    await s.files.write(`kept/${n}`, `written before pause ${n}`)
    assert.equal(await s.pause(), true)
    assert.equal(await s.pause(), false)
    const i = await s.getInfo()
    assert.deepEqual([i.state, i.metadata.keep], ['paused', 'me'])
    assert.ok((await listed(['paused'])).includes(s.sandboxId))
    assert.ok(!(await listed(['running'])).includes(s.sandboxId))
    assert.ok((await listed(['paused', 'running'])).includes(s.sandboxId))
    assert.ok((await listed(undefined)).includes(s.sandboxId))
    assert.equal(await s.isRunning(), false)
    await rejects(s.commands.run('true'), e2b.SandboxError)
    await rejects(s.files.read('kept/file'), e2b.TimeoutError)
    await rejects(s.setTimeout(60000), e2b.NotFoundError)
    assert.equal((await s.getInfo()).state, 'paused', 'using it has woken it')
    assert.ok(Array.isArray(await s.getMetrics()))
    const again = n % 2 ? await Sandbox.connect(s.sandboxId, { timeoutMs: 100000 }) : await s.connect({ timeoutMs: 100000 })
    assert.equal(again.sandboxId, s.sandboxId)
    const ms = await left(s)
    assert.ok(ms > 50000 && ms <= 101000, `${ms} ms are left`)
    for (const box of [again, s]) { // who had it before has it again
      assert.equal(await box.isRunning(), true)
      assert.equal(await box.files.read('kept/file'), 'kept')
    }
    for (let k = 1; k <= n; k++) assert.equal(await again.files.read(`kept/${k}`), `written before pause ${k}`)
    await counts(again)
    assert.ok((await again.commands.list()).some((p) => p.pid === counter.pid))
    const r = await again.commands.run('cat /dev/shm/kept; echo $KEPT; date +%s%3N; python3 draw.py')
    const [shm, env, clock, draw] = r.stdout.trim().split('\n')
    assert.deepEqual([shm, env], ['shm', 'env'])
    assert.ok(Math.abs(Number(clock) - Date.now()) < 20000, `the clock says ${clock}`)
    assert.ok(!draws.has(draw))
    draws.add(draw)
  })
}
await step('connect to one that runs takes no time from it', async () => {
  await s.setTimeout(600000)
  await s.connect({ timeoutMs: 1000 })
  await Sandbox.connect(s.sandboxId)
  assert.ok(await left(s) > 500000)
})
await step('a program that was followed before is followed after', async () => {
  const c = await s.commands.run('for i in $(seq 1 200); do echo $i; sleep 0.05; done', { background: true, timeoutMs: 0 })
  await until('it has begun', () => /\b5\n/.test(c.stdout))
  await s.pause()
  await s.connect()
  const r = await (c.wait ? c.wait() : c)
  assert.equal(r.stdout, Array.from({ length: 200 }, (_, i) => `${i + 1}\n`).join(''))
})
await step('without memory is refused, never ignored', async () => {
  await rejects(s.pause({ keepMemory: false }), e2b.SandboxError, /without its memory/)
  await rejects(Sandbox.create({ lifecycle: { onTimeout: { action: 'pause', keepMemory: false } } }), e2b.SandboxError, /without its memory/)
  assert.equal(await s.isRunning(), true)
})
await step('kill while paused', async () => {
  await s.pause()
  assert.equal(await s.kill(), true)
  assert.equal(await s.kill(), false)
  await rejects(Sandbox.connect(s.sandboxId), e2b.NotFoundError)
  await rejects(s.pause(), e2b.NotFoundError)
  assert.ok(!(await listed(undefined)).includes(s.sandboxId))
})

await step('onTimeout pause: paused at its end, and connected to after', async () => {
  const box = await Sandbox.create({ timeoutMs: 3000 * slowly, lifecycle: { onTimeout: 'pause' } })
  assert.deepEqual((await box.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false })
  await box.files.write('late', 'x')
  await box.commands.run('sleep 1000', { background: true, timeoutMs: 0 })
  for (let n = 0; n < 2; n++) { // an end comes again
    await until('it is paused', async () => (await box.getInfo()).state === 'paused')
    assert.equal(await box.isRunning(), false)
    const kept = await left(box)
    assert.ok(kept > 29 * 86400000, `it is kept for ${kept} ms`)
    await box.connect({ timeoutMs: n ? 60000 : 3000 * slowly })
    assert.deepEqual((await box.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: false })
  }
  assert.equal(await box.files.read('late'), 'x')
  assert.equal((await box.commands.list()).length, 1)
  await sleep(4000) // longer than its first life
  assert.equal(await box.isRunning(), true)
  await box.kill()
})
await step('autoResume: use goes on where it was', async () => {
  const box = await Sandbox.create({ timeoutMs: 120000, lifecycle: { onTimeout: 'pause', autoResume: true } })
  await box.files.write('f', 'x')
  await box.pause()
  assert.equal(await box.isRunning(), false)
  assert.equal(await box.files.read('f'), 'x')
  assert.deepEqual((await box.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true })
  assert.ok(await left(box) > 200000, 'woken for a moment only')
  await box.kill()
})

await step('createSnapshot, create from it twice, list, delete', async () => {
  const box = await Sandbox.create({ timeoutMs: 120000, envs: { A: 'a' } })
  await box.files.write('base', 'snap')
  const running = await box.commands.run(counting, { background: true, timeoutMs: 0 })
  await counts(box)
  const snap = await box.createSnapshot()
  await box.files.write('base', 'later')
  const two = [await Sandbox.create(snap.snapshotId, { timeoutMs: 100000 }), await Sandbox.create(snap.snapshotId, { envs: { B: 'b' } })]
  const seen = new Set([box.sandboxId]), tokens = new Set([box.trafficAccessToken]), random = new Set()
  for (const one of two) {
    assert.ok(!seen.has(one.sandboxId) && !tokens.has(one.trafficAccessToken))
    seen.add(one.sandboxId)
    tokens.add(one.trafficAccessToken)
    assert.equal(await one.files.read('base'), 'snap')
    await counts(one)
    assert.ok((await one.commands.list()).some((p) => p.pid === running.pid))
    const draw = (await one.commands.run("python3 -c 'import os; print(os.urandom(8).hex())'")).stdout
    assert.ok(!random.has(draw))
    random.add(draw)
    await one.files.write('own', one.sandboxId)
  }
  assert.equal(await two[0].files.read('own'), two[0].sandboxId)
  assert.equal((await two[1].commands.run('echo $A$B')).stdout, 'ab\n')
  assert.equal((await two[0].getInfo()).templateId, snap.snapshotId)
  assert.equal(await box.files.read('base'), 'later')
  // Another's token opens neither.
  const r = await fetch(process.env.E2B_SANDBOX_URL + '/files?path=base', { headers: { 'E2b-Sandbox-Id': two[0].sandboxId, 'E2b-Sandbox-Port': '49983', 'X-Access-Token': two[1].envdAccessToken ?? 'none' } })
  assert.equal(r.status, 401)
  // Names move to the newest, and a paused sandbox can be snapshotted, too.
  const first = await box.createSnapshot({ name: 'named' })
  assert.deepEqual(first.names, ['named'])
  await box.pause()
  const second = await box.createSnapshot({ name: 'named' })
  assert.equal((await box.getInfo()).state, 'paused')
  const all = await pages(Sandbox.listSnapshots({ limit: 1, sandboxId: box.sandboxId }))
  assert.deepEqual(all.map((x) => x.snapshotId), [second.snapshotId, first.snapshotId, snap.snapshotId])
  assert.deepEqual(all.map((x) => x.names), [['named'], [], []])
  const by = await Sandbox.create('named')
  assert.equal(await by.files.read('base'), 'later')
  await box.kill()
  for (const one of all) assert.equal(await Sandbox.deleteSnapshot(one.snapshotId), true)
  assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId), false)
  await rejects(Sandbox.create(snap.snapshotId), Error, /no such snapshot/)
  for (const one of [...two, by]) {
    assert.equal(await one.isRunning(), true)
    await one.kill()
  }
})
if (Sandbox.fork) await step('fork: each goes on from here, as somebody else', async () => {
  const box = await Sandbox.create({ timeoutMs: 120000, envs: { A: 'a' }, lifecycle: { onTimeout: 'pause' } })
  await box.files.write('f', 'parent')
  const running = await box.commands.run(counting, { background: true, timeoutMs: 0 })
  const forks = await box.fork({ count: 3, timeoutMs: 100000 })
  assert.equal(forks.length, 3)
  const all = [box, ...forks]
  for (const key of ['sandboxId', 'trafficAccessToken', 'envdAccessToken']) {
    if (box[key]) assert.equal(new Set(all.map((x) => x[key])).size, 4, key)
  }
  const drawn = new Set(), hosts = new Set()
  for (const one of all) {
    assert.ok(!(one instanceof Error), String(one))
    assert.equal(await one.files.read('f'), 'parent')
    await counts(one)
    assert.ok((await one.commands.list()).some((p) => p.pid === running.pid))
    const [draw, host, env] = (await one.commands.run(`python3 -c 'import os; print(os.urandom(8).hex())'; hostname; echo $A`)).stdout.trim().split('\n')
    drawn.add(draw)
    hosts.add(host)
    assert.equal(env, 'a')
    assert.equal((await one.getInfo()).lifecycle.onTimeout, 'pause')
    await one.files.write('f', one.sandboxId)
  }
  assert.deepEqual([drawn.size, hosts.size], [4, 4])
  for (const one of all) assert.equal(await one.files.read('f'), one.sandboxId)
  const ms = await left(forks[0])
  assert.ok(ms > 50000 && ms <= 101000, `${ms} ms are left`)
  await box.kill()
  assert.equal(await forks[0].isRunning(), true)
  for (const one of forks) assert.equal(await one.kill(), true)
  await rejects(Sandbox.fork(box.sandboxId), e2b.NotFoundError)
  await rejects(Sandbox.fork('sbaaaaaaaaaaaaaaaaaa', { apiKey: process.env.OTHER_API_KEY }), e2b.NotFoundError)
})
await step("another team's key sees nothing", async () => {
  const apiKey = process.env.OTHER_API_KEY
  const box = await Sandbox.create()
  await box.pause()
  const snap = await box.createSnapshot()
  for (const call of [() => Sandbox.connect(box.sandboxId, { apiKey }), () => Sandbox.pause(box.sandboxId, { apiKey }), () => Sandbox.getInfo(box.sandboxId, { apiKey }), () => Sandbox.createSnapshot(box.sandboxId, { apiKey })]) {
    await rejects(call(), e2b.NotFoundError)
  }
  assert.equal(await Sandbox.kill(box.sandboxId, { apiKey }), false)
  assert.equal(await Sandbox.deleteSnapshot(snap.snapshotId, { apiKey }), false)
  await rejects(Sandbox.create(snap.snapshotId, { apiKey }), Error, /no such snapshot/)
  assert.deepEqual(await pages(Sandbox.listSnapshots({ apiKey })), [])
  assert.deepEqual(await pages(Sandbox.list({ apiKey, query: { state: ['paused', 'running'] } })), [])
  await box.connect()
  await Sandbox.deleteSnapshot(snap.snapshotId)
  await box.kill()
})
end()
