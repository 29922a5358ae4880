// Every method of the SDK's Sandbox, commands, pty and files. The package is the
// argument: the newest pinned one, or an older.
import { createHash, randomBytes } from 'node:crypto'
import { step, assert, rejects, until, sleep, end } from './step.mjs'
const e2b = await import(process.argv[2])
const { Sandbox } = e2b
const old = process.argv[2] !== 'e2b'

let s
await step('create', async () => {
  s = await Sandbox.create({ metadata: { 'a b': 'c&d=e', run: '1' }, envs: { FROM_CREATE: 'yes' }, timeoutMs: 120000 })
  assert.match(s.sandboxId, /^[a-z0-9]{20}$/)
})
await step('getInfo', async () => {
  const i = await s.getInfo()
  assert.deepEqual([i.sandboxId, i.templateId, i.state, i.metadata['a b']], [s.sandboxId, 'base', 'running', 'c&d=e'])
  const left = i.endAt - Date.now()
  assert.ok(left > 60000 && left <= 121000, `${left} ms are left`)
})
await step('allow_internet_access is answered with what holds', async () => {
  const open = await Sandbox.create({ allowInternetAccess: true })
  const i = await open.getInfo()
  assert.equal(i.allowInternetAccess, false)
  assert.deepEqual(i.network.denyOut, ['0.0.0.0/0'])
  const r = await open.commands.run("tail -n +3 /proc/net/dev | cut -d: -f1; python3 -c 'import socket; socket.create_connection((\"1.1.1.1\", 443), 5)' || echo refused")
  assert.equal(r.stdout.trim(), 'lo\nrefused')
  await open.kill()
})
await step('isRunning', async () => assert.equal(await s.isRunning(), true))
await step('setTimeout', async () => {
  await s.setTimeout(600000)
  let left = (await s.getInfo()).endAt - Date.now()
  assert.ok(left > 500000 && left <= 601000, `${left} ms are left`)
  await s.setTimeout(300000)
  left = (await s.getInfo()).endAt - Date.now()
  assert.ok(left > 200000 && left <= 301000, `${left} ms are left`)
})
await step('connect', async () => {
  await s.files.write('mark', 'here')
  const again = await Sandbox.connect(s.sandboxId, { timeoutMs: 1000 })
  assert.equal(await again.files.read('mark'), 'here')
  const left = (await s.getInfo()).endAt - Date.now()
  assert.ok(left > 100000, `connect took time away: ${left} ms are left`)
})
await step('list', async () => {
  const other = await Sandbox.create({ metadata: { run: '2' } })
  const all = async (o) => {
    const p = Sandbox.list(o), out = []
    while (p.hasNext) out.push(...(await p.nextItems()))
    return out.map((x) => x.sandboxId)
  }
  assert.deepEqual(await all({ query: { metadata: { 'a b': 'c&d=e' } } }), [s.sandboxId])
  assert.deepEqual(await all({ query: { metadata: { run: '2' }, state: ['running'] } }), [other.sandboxId])
  assert.deepEqual(await all({ query: { metadata: { run: '3' } } }), [])
  const paged = await all({ limit: 1, query: { state: ['running'] } })
  assert.ok(paged.includes(s.sandboxId) && paged.includes(other.sandboxId), paged)
  assert.equal(new Set(paged).size, paged.length)
  assert.deepEqual(await all({ query: { state: ['paused'] } }), [])
  await other.kill()
})
await step('getMetrics', async () => {
  let m
  await until('a sample', async () => (m = await s.getMetrics()).length > 0)
  const last = m.at(-1)
  assert.ok(last.memUsed > 0 && last.memTotal === 256 << 20 && last.cpuCount >= 1 && last.cpuUsedPct >= 0 && last.cpuUsedPct <= 100, JSON.stringify(last))
  assert.ok(Math.abs(last.timestamp - Date.now()) < 60000)
  assert.deepEqual(await s.getMetrics({ start: new Date(Date.now() + 3600000), end: new Date(Date.now() + 7200000) }), [])
})

await step('commands.run', async () => {
  const r = await s.commands.run('echo out; echo err >&2; echo $FROM_CREATE $FROM_RUN; pwd; id -un', { envs: { FROM_RUN: 'too' }, cwd: '/tmp' })
  assert.deepEqual([r.exitCode, r.stdout, r.stderr], [0, 'out\nyes too\n/tmp\nuser\n', 'err\n'])
})
await step('commands.run: exit code', async () => {
  const e = await rejects(s.commands.run('echo before; exit 3'), e2b.CommandExitError)
  assert.deepEqual([e.exitCode, e.stdout], [3, 'before\n'])
})
await step('commands.run: output is utf-8, long and whole', async () => {
  const seen = []
  const r = await s.commands.run(`python3 -c "print('é€😀' * 1000000)"`, { onStdout: (d) => { seen.push(d.length) } })
  assert.equal(r.stdout, 'é€😀'.repeat(1000000) + '\n')
  assert.ok(seen.length > 1)
})
await step('commands.run: stream', async () => {
  const seen = []
  let firstAt
  const begun = Date.now()
  await s.commands.run('echo one; sleep 2; echo two', { onStdout: (d) => { firstAt ??= Date.now(); seen.push(d) } })
  assert.deepEqual(seen.join(''), 'one\ntwo\n')
  assert.ok(Date.now() - firstAt >= 1500, `the first line came ${Date.now() - firstAt} ms before the end, ${firstAt - begun} ms after the beginning`)
})
await step('commands.run: timeout', async () => {
  await rejects(s.commands.run('touch began; sleep 300; touch survived', { timeoutMs: 2000 }), e2b.TimeoutError)
  await until('the command is gone', async () => !(await s.commands.list()).some((p) => true))
  assert.equal(await s.files.exists('began'), true)
  assert.equal(await s.files.exists('survived'), false)
})
await step('commands.run: user root is refused', async () => {
  await rejects(s.commands.run('id', { user: 'root' }), e2b.SandboxError, /root may not be used/)
})
await step('commands.run: background, kill', async () => {
  const c = await s.commands.run('echo up; sleep 300', { background: true, timeoutMs: 0 })
  assert.ok((await s.commands.list()).some((p) => p.pid === c.pid))
  await until('output', () => c.stdout === 'up\n')
  assert.equal(await c.kill(), true)
  const e = await rejects(c.wait(), e2b.CommandExitError, /signal: killed/)
  assert.equal(e.exitCode, -1)
  assert.equal(await s.commands.kill(c.pid), false)
})
await step('commands.sendStdin, closeStdin', async () => {
  const c = await s.commands.run('cat; echo end', { background: true, stdin: true })
  await s.commands.sendStdin(c.pid, 'typed ')
  await s.commands.sendStdin(c.pid, 'words\n')
  if (c.closeStdin) await c.closeStdin()
  else await s.commands.closeStdin(c.pid)
  const r = await c.wait()
  assert.equal(r.stdout, 'typed words\nend\n')
})
await step('commands.connect, disconnect', async () => {
  const c = await s.commands.run('for i in $(seq 600); do echo tick $i; sleep 0.1; done', { background: true, timeoutMs: 0 })
  await c.disconnect()
  const again = await s.commands.connect(c.pid, { timeoutMs: 0 })
  await until('ticks', () => /tick/.test(again.stdout))
  assert.equal(await again.kill(), true)
  await rejects(again.wait(), e2b.CommandExitError)
  await rejects(s.commands.connect(999999), e2b.SandboxError, /no process/)
})
await step('a dropped connection leaves the command running', async () => {
  const c = await s.commands.run('sleep 1; echo done > finished', { background: true, timeoutMs: 0 })
  await c.disconnect()
  await until('it finishes', () => s.files.exists('finished'))
})

await step('pty', async () => {
  let shown = ''
  const t = await s.pty.create({ cols: 91, rows: 33, onData: (d) => { shown += Buffer.from(d).toString() }, timeoutMs: 0, envs: { PS1: '$ ' } })
  const type = (text) => s.pty.sendInput(t.pid, Buffer.from(text))
  await type('stty size; tty\n')
  await until('the size', () => /33 91/.test(shown) && /\/dev\/pts/.test(shown))
  await s.pty.resize(t.pid, { cols: 120, rows: 40 })
  await type('stty size\n')
  await until('the new size', () => /40 120/.test(shown))
  await type('sleep 300\n')
  await sleep(300)
  await type('\x03')
  await type('echo $((6*7))\n')
  await until('^C', () => /\b42\b/.test(shown))
  if (s.pty.connect) {
    let second = ''
    const again = await s.pty.connect(t.pid, { onData: (d) => { second += Buffer.from(d).toString() }, timeoutMs: 0 })
    await type('echo again\n')
    await until('both see it', () => /again/.test(second) && /again/.test(shown))
    await again.disconnect()
  }
  assert.equal(await s.pty.kill(t.pid), true)
  await rejects(t.wait(), e2b.CommandExitError)
})

await step('files.write, read', async () => {
  const w = await s.files.write('dir/deep/a.txt', 'héllo')
  assert.deepEqual([w.name, w.type, w.path], ['a.txt', 'file', '/home/user/dir/deep/a.txt'])
  assert.equal(await s.files.read('dir/deep/a.txt'), 'héllo')
  assert.equal(await s.files.read('~/dir/deep/a.txt'), 'héllo')
  await s.files.write('/home/user/dir/deep/a.txt', 'shorter')
  assert.equal(await s.files.read('/home/user/dir/deep/a.txt'), 'shorter')
  await s.files.write('empty', '')
  assert.equal(await s.files.read('empty'), '')
  await s.files.write('dir/na me é#?%&.txt', 'odd')
  assert.equal(await s.files.read('dir/na me é#?%&.txt'), 'odd')
})
await step('files.read: formats', async () => {
  await s.files.write('bin', new Blob([new Uint8Array([0, 255, 128])]))
  assert.deepEqual([...(await s.files.read('bin', { format: 'bytes' }))], [0, 255, 128])
  assert.equal((await s.files.read('bin', { format: 'blob' })).size, 3)
  const parts = []
  for await (const c of await s.files.read('bin', { format: 'stream' })) parts.push(...c)
  assert.deepEqual(parts, [0, 255, 128])
})
await step('files.write: several', async () => {
  const r = await s.files.write([{ path: 'm/1', data: 'one' }, { path: '/tmp/m/2', data: new Blob(['two']) }])
  assert.deepEqual(r.map((f) => f.path), ['/home/user/m/1', '/tmp/m/2'])
  assert.equal(await s.files.read('/tmp/m/2'), 'two')
})
await step('files: 64 MiB', async () => {
  const big = randomBytes(64 << 20)
  const want = createHash('sha256').update(big).digest('hex')
  await s.files.write('big', new Blob([big]))
  assert.equal((await s.commands.run('sha256sum big')).stdout.slice(0, 64), want)
  const got = createHash('sha256')
  for await (const c of await s.files.read('big', { format: 'stream' })) got.update(c)
  assert.equal(got.digest('hex'), want)
  await s.files.remove('big')
})
if (!old) {
  await step('files.write: octet-stream, gzip', async () => {
    await s.files.write('o', 'octets', { useOctetStream: true })
    assert.equal(await s.files.read('o'), 'octets')
    await s.files.write('z', 'x'.repeat(100000), { gzip: true })
    assert.equal(await s.files.read('z', { gzip: true }), 'x'.repeat(100000))
    await s.files.write('st', new Blob(['streamed']).stream())
    assert.equal(await s.files.read('st'), 'streamed')
  })
  await step('files: metadata', async () => {
    const metadata = { kind: 'report', 'x-note': 'a b' }
    assert.deepEqual((await s.files.write('md/f', 'y', { metadata })).metadata, metadata)
    assert.deepEqual((await s.files.getInfo('md/f')).metadata, metadata)
    assert.deepEqual((await s.files.list('md'))[0].metadata, metadata)
    assert.deepEqual((await s.files.rename('md/f', 'md/g')).metadata, metadata)
    const out = await s.commands.run(`python3 -c "import os; print(os.getxattr('md/g', 'user.e2b.kind')); os.setxattr('md/g', 'user.e2b.inside', b'1'); os.setxattr('md/g', 'user.other', b'1')"`)
    assert.equal(out.stdout, "b'report'\n")
    assert.deepEqual((await s.files.getInfo('md/g')).metadata, { ...metadata, inside: '1' })
    const two = await s.files.write([{ path: 'md/1', data: '1' }, { path: 'md/2', data: '2' }], { metadata: { both: '1' } })
    assert.deepEqual(two.map((f) => f.metadata), [{ both: '1' }, { both: '1' }])
    assert.deepEqual((await s.files.write('md/o', 'o', { useOctetStream: true, metadata: { o: '1' } })).metadata, { o: '1' })
    await s.files.write('md/g', 'without')
    assert.equal((await s.files.getInfo('md/g')).metadata, undefined)
    await rejects(s.files.write('md/big', 'x', { metadata: { a: 'v'.repeat(5000) } }), e2b.InvalidArgumentError)
    assert.equal(await s.files.exists('md/big'), false)
  })
}
await step('files.list', async () => {
  await s.commands.run('mkdir -p l/sub/sub2; touch l/f l/sub/g l/sub/sub2/h; ln -s f l/link')
  const one = await s.files.list('l')
  assert.deepEqual(one.map((e) => e.path).sort(), ['/home/user/l/f', '/home/user/l/link', '/home/user/l/sub'])
  const two = await s.files.list('l', { depth: 2 })
  assert.deepEqual(two.map((e) => e.path).sort(), ['/home/user/l/f', '/home/user/l/link', '/home/user/l/sub', '/home/user/l/sub/g', '/home/user/l/sub/sub2'])
  assert.equal(one.find((e) => e.name === 'sub').type, 'dir')
  assert.equal(one.find((e) => e.name === 'link').symlinkTarget, 'f')
  await rejects(s.files.list('l/f'), e2b.InvalidArgumentError, /not a directory/)
  await rejects(s.files.list('nowhere'), e2b.NotFoundError)
})
await step('files.exists, getInfo', async () => {
  assert.deepEqual([await s.files.exists('l/f'), await s.files.exists('l'), await s.files.exists('l/none')], [true, true, false])
  await s.commands.run('chmod 640 l/f; echo 12345 > l/f')
  const i = await s.files.getInfo('l/f')
  assert.deepEqual([i.name, i.path, i.type, i.size, i.mode, i.permissions, i.owner, i.group], ['f', '/home/user/l/f', 'file', 6, 0o640, '-rw-r-----', 'user', 'user'])
  assert.ok(Math.abs(i.modifiedTime - Date.now()) < 60000)
  assert.equal((await s.files.getInfo('l')).type, 'dir')
  await rejects(s.files.getInfo('l/none'), e2b.NotFoundError)
})
await step('files.makeDir', async () => {
  assert.equal(await s.files.makeDir('n/e/w'), true)
  assert.equal(await s.files.makeDir('n/e/w'), false)
  await rejects(s.files.makeDir('l/f'), e2b.InvalidArgumentError, /not a directory/)
})
await step('files.rename', async () => {
  const i = await s.files.rename('l/f', 'other/place/f2')
  assert.equal(i.path, '/home/user/other/place/f2')
  assert.equal(await s.files.exists('l/f'), false)
  await rejects(s.files.rename('l/f', 'x'), e2b.NotFoundError)
})
await step('files.remove', async () => {
  await s.files.remove('l')
  assert.equal(await s.files.exists('l'), false)
  await s.files.remove('never-was')
})
await step('files.watchDir', async () => {
  await s.files.makeDir('w/sub')
  const seen = []
  const h = await s.files.watchDir('w', (e) => { seen.push(`${e.type} ${e.name}`) }, { timeoutMs: 0 })
  await s.files.write('w/a', '1')
  await s.commands.run('echo 2 >> w/a; chmod 600 w/a; mv w/a w/b; rm w/b; touch w/sub/unseen')
  await until('all of it', () => ['create', 'write', 'chmod', 'rename', 'remove'].every((t) => seen.some((x) => x.startsWith(t))))
  assert.ok(!seen.some((x) => x.includes('unseen')), seen)
  await h.stop()
  const deep = []
  const r = await s.files.watchDir('w', (e) => { deep.push(e) }, { recursive: true, timeoutMs: 0, ...(old ? {} : { includeEntry: true }) })
  await s.commands.run('echo x > w/sub/deep')
  await until('below', () => deep.some((e) => e.name === 'sub/deep'))
  if (!old) assert.equal(deep.find((e) => e.name === 'sub/deep').entry?.path, '/home/user/w/sub/deep')
  await r.stop()
  await rejects(s.files.watchDir('nowhere', () => {}), e2b.NotFoundError)
})
await step('files: errors', async () => {
  await rejects(s.files.read('no/such'), e2b.NotFoundError)
  await rejects(s.files.read('/home/user'), e2b.InvalidArgumentError)
  await rejects(s.files.write('/usr/bin/x', 'y'), e2b.SandboxError)
})
await step('files: no space', async () => {
  await rejects(s.commands.run('head -c 2G /dev/zero > fill'), e2b.CommandExitError, /./)
  await rejects(s.files.write('more', new Blob([new Uint8Array(32 << 20)])), e2b.NotEnoughSpaceError ?? e2b.SandboxError)
  assert.equal(await s.files.exists('more'), false)
  await s.files.remove('fill')
  await s.files.write('more', 'fits')
})
await step('downloadUrl, uploadUrl', async () => {
  await s.files.write('signed.txt', 'secret')
  assert.equal(await (await fetch(await s.downloadUrl('signed.txt'))).text(), 'secret')
  assert.equal(await (await fetch(await s.downloadUrl('signed.txt', { useSignatureExpiration: 60 }))).text(), 'secret')
  const form = new FormData()
  form.append('file', new Blob(['put']), 'ignored')
  assert.equal((await fetch(await s.uploadUrl('up.txt'), { method: 'POST', body: form })).status, 200)
  assert.equal(await s.files.read('up.txt'), 'put')
  // One file, one direction, one user, its time.
  const url = new URL(await s.downloadUrl('signed.txt'))
  const refused = async (change, method) => {
    const u = new URL(url)
    change(u)
    const r = await fetch(u, { method })
    assert.equal(r.status, 401, `${method ?? 'GET'} ${u}: ${await r.text()}`)
  }
  await refused((u) => u.searchParams.set('path', 'up.txt'))
  await refused((u) => u.searchParams.set('username', 'root'))
  await refused(() => {}, 'POST')
  await refused((u) => u.searchParams.set('signature', 'v1_' + 'A'.repeat(43)))
  await refused((u) => u.searchParams.set('signature_expiration', '99999999999'))
  const past = new URL(await s.downloadUrl('signed.txt', { useSignatureExpiration: -5 }))
  await refused((u) => { u.search = past.search })
})

await step('network: what would open everything, or a sandbox without a device, is refused', async () => {
  await rejects(Sandbox.create({ network: { allowOut: ['0.0.0.0/0'] } }), e2b.SandboxError, /reaches everything/)
  await rejects(Sandbox.create({ network: { allowOut: ['8.8.0.0/16'], denyOut: ['8.8.8.0/24'] } }), e2b.SandboxError, /lies within allowOut/)
  if (!s.updateNetwork) return
  await s.updateNetwork({ denyOut: ['1.1.1.1'] }) // which it has
  await rejects(s.updateNetwork({ allowOut: ['example.com'] }), e2b.SandboxError, /without a network device/)
  assert.deepEqual((await s.getInfo()).network.allowOut, [])
})
await step('not yet: volumes', async () => {
  const refused = (p) => rejects(p, e2b.SandboxError, /not supported yet/)
  await refused(Sandbox.create({ volumeMounts: { '/data': 'v' } }))
  if (e2b.Volume) await rejects(e2b.Volume.create('v'), Error, /not supported yet/)
})
await step('errors: unknown template, wrong key, unknown sandbox', async () => {
  await rejects(Sandbox.create('no-such-template'), Error, /no-such-template/)
  await rejects(Sandbox.create({ apiKey: 'e2b_' + '0'.repeat(40) }), e2b.AuthenticationError)
  await rejects(Sandbox.connect('sbaaaaaaaaaaaaaaaaaa'), e2b.NotFoundError)
  await rejects(Sandbox.getInfo('sbaaaaaaaaaaaaaaaaaa'), e2b.NotFoundError)
  assert.equal(await Sandbox.kill('sbaaaaaaaaaaaaaaaaaa'), false)
})
await step('a sandbox ends with its time', async () => {
  const brief = await Sandbox.create({ timeoutMs: 1000 })
  await until('it has ended', async () => !(await brief.isRunning()))
  await rejects(brief.commands.run('true'), e2b.SandboxError, /not running|not found/)
})
await step('kill', async () => {
  const running = s.commands.run('sleep 300', { timeoutMs: 0 }).then(() => null, (e) => e)
  await until('it runs', async () => (await s.commands.list()).length > 0)
  assert.equal(await s.kill(), true)
  assert.ok((await running) instanceof Error)
  assert.equal(await s.kill(), false)
  assert.equal(await s.isRunning(), false)
  await rejects(s.files.read('mark'), e2b.TimeoutError)
  await rejects(s.getInfo(), e2b.NotFoundError)
})
end()
