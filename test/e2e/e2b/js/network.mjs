// What the network options of the SDK let a sandbox reach; run with sites that
// answer, one of them without an end.
import { step, assert, rejects, until, end } from './step.mjs'
import { Sandbox, SandboxError } from 'e2b'

const allow = ['api.example', 'within.example']
const everything = '0.0.0.0/0'
let s, open
// curl says what it got, or how it failed.
const get = async (url) => (await s.commands.run(`curl -sSk -m 10 ${url} 2>&1 || true`)).stdout
const reached = async (url) => assert.match(await get(url), /^reached /)
const denied = async (url) => assert.match(await get(url), /^curl: \(\d+\)/)

await step('create: network.allowOut, denyOut', async () => {
  s = await Sandbox.create({ allowInternetAccess: true, network: { allowOut: allow, denyOut: [everything, '93.184.216.0/24'] } })
  await reached('https://api.example/first')
})
await step('create: allowInternetAccess: true is answered with what holds', async () => {
  const i = await s.getInfo()
  assert.equal(i.allowInternetAccess, false)
  assert.deepEqual([i.network.allowOut.toSorted(), i.network.denyOut.toSorted()], [allow, [everything, '93.184.216.0/24']])
})
await step('nothing else is reached', async () => {
  for (const url of ['https://denied.example/early', 'http://denied.example/early', 'https://second.example/early', 'https://within.example/early', 'https://1.2.3.4/early',
    'http://169.254.169.254/early', 'https://api.example:8443/early']) await denied(url)
  await s.commands.run('getent hosts what-was-found.tunnel.example || true')
})
await step('a connection that goes on', async () => {
  open = await s.commands.run('curl -sSN http://api.example/slow > slow 2> why; echo "ended $?"', { background: true, timeoutMs: 0 })
  await until('its bytes come', async () => (await s.commands.run('stat -c %s slow 2>/dev/null || echo 0')).stdout.trim() > 10)
})
await step('updateNetwork', async () => {
  await s.updateNetwork({ allowOut: ['second.example'], denyOut: [everything] })
  await reached('https://second.example/second')
  await denied('https://api.example/late')
  await denied('https://denied.example/late')
})
await step('updateNetwork ends the connections of the rules before', async () => {
  const r = await open.wait()
  assert.match(r.stdout, /^ended (18|52|55|56)$/m)
})
await step('updateNetwork is answered by getInfo', async () => {
  const i = await s.getInfo()
  assert.deepEqual([i.allowInternetAccess, i.network.allowOut, i.network.denyOut], [false, ['second.example'], [everything]])
})
await step('updateNetwork that is refused changes nothing', async () => {
  await rejects(s.updateNetwork({ allowOut: [everything] }), SandboxError, /reaches everything/)
  assert.deepEqual((await s.getInfo()).network.allowOut, ['second.example'])
})
await step('updateNetwork with nothing', async () => {
  await s.updateNetwork({})
  await denied('https://second.example/late')
  assert.deepEqual((await s.getInfo()).network.allowOut, [])
})
await step('create: allowInternetAccess: false', async () => {
  await s.kill()
  s = await Sandbox.create({ allowInternetAccess: false })
  const i = await s.getInfo()
  assert.deepEqual([i.allowInternetAccess, i.network.allowOut, i.network.denyOut], [false, [], [everything]])
  await denied('https://api.example/late')
  await s.kill()
})
end()
