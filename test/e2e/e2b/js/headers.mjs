// Secrets of the SDK, and headers that are set in requests; run with sites that tell
// what they are sent.
import { step, assert, rejects, end } from './step.mjs'
import { Sandbox, SandboxError, Secret, SecretNotFoundError } from 'e2b'

const one = 'sk-e2b-one-51c0a7', two = 'sk-e2b-two-99bd21', literal = 'literal-t0ken-77aa10'
let s
const get = async (url, ...args) => (await s.commands.run(`curl -sS -m 20 ${args.join(' ')} ${url} 2>&1 || true`)).stdout
const list = async (opts) => {
  const all = []
  for (const p = Secret.list(opts); p.hasNext;) all.push(...await p.nextItems())
  return all
}

await step('Secret.create', async () => {
  const i = await Secret.create('Vendor-Key', one)
  assert.deepEqual([i.name, i.secretId, i.version, i.metadata], ['vendor-key', 'sec_vendor-key', 1, {}])
  assert.ok(i.createdAt instanceof Date && !isNaN(i.createdAt))
  await rejects(Secret.create('vendor-key', two), Error, /there is a secret/)
  await rejects(Secret.create('other', two, { metadata: { a: 'b' } }), Error, /not supported yet/)
})
await step('Secret.getInfo, exists, list', async () => {
  assert.equal((await Secret.getInfo('sec_vendor-key')).name, 'vendor-key')
  assert.deepEqual([await Secret.exists('vendor-key'), await Secret.exists('nobody')], [true, false])
  await Secret.create('second', 'x-second-value')
  assert.deepEqual((await list({ limit: 1 })).map((i) => i.name), ['second', 'vendor-key'])
  await rejects(Secret.getInfo('nobody'), SecretNotFoundError)
})
await step('create: network.rules with a secret', async () => {
  s = await Sandbox.create({
    network: {
      allowOut: ({ rules }) => [...rules.keys()],
      rules: { 'api.example': [{ transform: { headers: { Authorization: `Bearer ${Secret.fill('Vendor-Key')}`, 'X-Literal': literal, 'X-Api-Key': literal } } }] },
    },
  })
  const said = await get('https://api.example/one', '-H', '"Authorization: Bearer mine"', '-H', '"X-Own: own"')
  assert.match(said, /^reached \/one/m)
  assert.match(said, /X-Own: own/)
  assert.doesNotMatch(said, new RegExp(`mine|${one}|${literal}`))
})
await step('getInfo().network.rules', async () => {
  const { headers } = (await s.getInfo()).network.rules['api.example'][0].transform
  assert.deepEqual(headers, { Authorization: 'Bearer ${e2b.secrets.vendor-key}', 'X-Literal': '[redacted]', 'X-Api-Key': '[redacted]' })
})
await step('rules open nothing beside allowOut', async () => {
  assert.match(await get('https://second.example/late'), /^curl: \(\d+\)/)
})
await step('Secret.update, which a living sandbox uses', async () => {
  assert.equal((await Secret.update('vendor-key', two)).version, 2)
  assert.match(await get('https://api.example/two'), /^reached \/two/m)
  await rejects(Secret.update('nobody', two), SecretNotFoundError)
})
await step('a secret that is sent by the sandbox itself', async () => {
  assert.match(await get('https://api.example/leak', '-d', two, '-w', "'%{http_code}'"), /403$/)
})
await step('updateNetwork: rules', async () => {
  await s.updateNetwork({ allowOut: ['api.example', 'second.example'], rules: { '*.example': [{ transform: { headers: { 'X-Vendor': Secret.fill('second') } } }] } }).then(
    () => assert.fail('a rule for what anybody can register was taken'), (e) => assert.ok(e instanceof SandboxError))
  await s.updateNetwork({ allowOut: ['api.example', 'second.example'], rules: { 'second.example': [{ transform: { headers: { 'X-Vendor': Secret.fill('second') } } }] } })
  assert.match(await get('https://second.example/three'), /^reached \/three/m)
  assert.match(await get('https://api.example/four'), /^reached \/four/m)
  assert.deepEqual(Object.keys((await s.getInfo()).network.rules), ['second.example'])
  await s.kill()
})
await step('rules alone open their hosts', async () => {
  s = await Sandbox.create({ network: { rules: { 'api.example': [{ transform: { headers: { 'X-Vendor': Secret.fill('second') } } }] } } })
  assert.match(await get('https://api.example/five'), /^reached \/five/m)
  assert.match(await get('https://second.example/late'), /^curl: \(\d+\)/)
  await s.kill()
})
await step('a secret that is not there', async () => {
  await rejects(Sandbox.create({ network: { rules: { 'api.example': [{ transform: { headers: { A: Secret.fill('nobody') } } }] } } }), SandboxError, /no secret called "nobody"/)
})
await step('workload identity', async () => {
  await rejects(Sandbox.create({ network: { rules: { 'api.example': [{ transform: { headers: { A: '${e2b.identity.tokens.aws}' } } }] } } }), SandboxError, /not supported/)
})
await step('a key that may not', async () => {
  const apiKey = process.env.DEVELOPER_KEY
  await rejects(Secret.create('third', 'value', { apiKey }), Error, /secret:write/)
  await rejects(Sandbox.create({ apiKey, network: { rules: { 'api.example': [{ transform: { headers: { A: Secret.fill('second') } } }] } } }), SandboxError, /binding:write/)
})
await step('Secret.destroy', async () => {
  assert.deepEqual([await Secret.destroy('second'), await Secret.destroy('vendor-key'), await Secret.destroy('vendor-key')], [true, true, false])
})
end()
