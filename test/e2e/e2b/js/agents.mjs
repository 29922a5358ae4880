// The OpenAI Agents SDK's E2B provider: no model is asked.
import { step, assert, end } from './step.mjs'
import { E2BSandboxClient } from '@openai/agents-extensions/sandbox/e2b'
import { Manifest } from '@openai/agents-core/sandbox'
import { Sandbox } from 'e2b'

let client, session
await step('create', async () => {
  client = new E2BSandboxClient({})
  // Its default root is one that only the guest's root may make.
  session = await client.create(new Manifest({ root: '/home/user/workspace' }))
  assert.ok(session)
})
await step('exec', async () => {
  const r = await session.execCommand({ cmd: 'echo $((6*7))' })
  assert.match(JSON.stringify(r), /42/)
})
await step('delete', async () => {
  await (session.close ?? session.delete).call(session)
  assert.deepEqual(await Sandbox.list({ query: { state: ['running'] } }).nextItems(), [])
})
end()
