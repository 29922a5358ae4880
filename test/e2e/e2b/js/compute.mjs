// @computesdk/e2b: what its benchmark does, create to first command.
import { step, assert, end } from './step.mjs'
import { e2b } from '@computesdk/e2b'

const sdk = e2b({ apiKey: process.env.E2B_API_KEY })
let sandbox
await step('create', async () => { sandbox = await sdk.sandbox.create() })
await step('runCommand', async () => {
  const r = await sandbox.runCommand('echo hi; exit 3')
  assert.deepEqual([r.stdout, r.exitCode], ['hi\n', 3])
})
await step('filesystem', async () => {
  await sandbox.filesystem.writeFile('/tmp/x', 'y')
  assert.equal(await sandbox.filesystem.readFile('/tmp/x'), 'y')
})
await step('list, getById', async () => {
  assert.equal((await sdk.sandbox.getById(sandbox.sandboxId)).sandboxId, sandbox.sandboxId)
  assert.ok((await sdk.sandbox.list()).some((x) => x.sandboxId === sandbox.sandboxId))
})
await step('destroy', async () => {
  await sandbox.destroy()
  assert.ok(!(await sdk.sandbox.list()).some((x) => x.sandboxId === sandbox.sandboxId))
})
end()
