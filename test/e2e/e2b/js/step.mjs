// Prints a line for each step, which the Go test reads.
import assert from 'node:assert/strict'
export { assert }

// slowly is how many times longer things may take here.
export const slowly = Number(process.env.SLOWLY || 1)

export async function step(name, fn) {
  const begun = Date.now()
  const late = setTimeout(() => { console.log(`failed ${name}\tno answer in ${2 * slowly} minutes`); process.exit(1) }, 120000 * slowly)
  try {
    await fn()
    console.log(`ok ${name}\t${Date.now() - begun} ms`)
  } catch (e) {
    console.log(`failed ${name}\t${String(e?.stack ?? e).replaceAll('\n', '\\n')}`)
  }
  clearTimeout(late)
}

// rejects demands an error of that class whose text matches.
export async function rejects(promise, cls, text = /./) {
  let value
  try {
    value = await promise
  } catch (e) {
    assert.ok(e instanceof cls, `${e?.constructor?.name}: ${e?.message}`)
    assert.match(e.message, text)
    return e
  }
  assert.fail(`no error: ${JSON.stringify(value)}`)
}

export function end() {
  console.log('end')
  process.exit(0)
}

export const sleep = (ms) => new Promise((r) => setTimeout(r, ms))

// until waits for a condition, a minute at most, or longer where things are slow.
export async function until(what, cond) {
  for (const give = Date.now() + 60000 * slowly; Date.now() < give; await sleep(50)) if (await cond()) return
  assert.fail(`never: ${what}`)
}
