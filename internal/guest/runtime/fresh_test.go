package runtime

import (
	"testing"

	"github.com/firebreak-dev/firebreak/internal/guest/driver"
)

// copied tells a driver that its memory is another's, too, as the first thing that one
// reads in a sandbox that was made of another.
func (k *kept) copied() {
	k.t.Helper()
	k.n++
	k.write(driver.Turn{Turn: k.n, Sync: true, Fresh: true}.Line())
	if s := k.until(driver.End); s.end.Turn != k.n {
		k.t.Fatalf("%+v", s.end)
	}
	k.n-- // it counts no turn
}

// TestPythonFresh: what was seeded before is no longer what is drawn, in modules that
// programs share; what a program made for itself is.
func TestPythonFresh(t *testing.T) {
	k := keep(t, "python3", "python3", "DIR/python/firebreak_context.py")
	k.turn("import random, ssl, uuid, tempfile\nrandom.seed(7)\nwant = random.Random(7).random()\nmine = random.Random(7)\nuuid.uuid1(); tempfile.mktemp(); node, names = uuid.getnode(), tempfile._name_sequence\nadded = []\nimport _ssl\nadd = _ssl.RAND_add\n_ssl.RAND_add = lambda b, n: (added.append((len(b), n)), add(b, n))")
	k.copied()
	k.turn("ok = [random.random() != want, mine.random() == want, uuid.getnode() != node, uuid.uuid1().node == uuid.getnode(), uuid.uuid1() != uuid.uuid1(), uuid.getnode() >> 40 & 1 == 1, tempfile._name_sequence is not names, added == [(64, 64.0)], len(ssl.RAND_bytes(8)) == 8]")
	if s := k.turn("all(ok) or ok"); len(s.results) != 1 || s.results[0].Text != "True" {
		t.Errorf("%+v %+v", s.results, s.failed)
	}
}

// drawing tries all that Node draws with, in every form it takes, and what it refuses.
const drawing = `(async () => {
  const c = require('crypto'), a = require('assert');
  const later = (f, ...args) => new Promise((done, fail) => f(...args, (err, v) => err ? fail(err) : done(v)));
  const twice = async (f) => { const x = await f(), y = await f(); a.notDeepStrictEqual(x, y); return x; };
  a.equal((await twice(() => c.randomBytes(16))).length, 16);
  a.equal((await twice(() => later(c.randomBytes, 16))).length, 16);
  a.equal((await twice(() => kept.randomBytes(16))).length, 16);
  const words = c.randomFillSync(new Uint16Array(40), 1, 38);
  a.ok(words[0] === 0 && words[39] === 0 && words.some((w) => w > 255));
  const bytes = await later(c.randomFill, new Uint8Array(64), 32);
  a.ok(bytes.subarray(0, 32).every((b) => b === 0) && bytes.subarray(32).some((b) => b !== 0));
  a.ok(new Uint8Array(c.randomFillSync(new ArrayBuffer(64))).some((b) => b !== 0));
  for (let n = 0; n < 200; n++) {
    const x = c.randomInt(3), y = c.randomInt(-5, 5), z = Math.random();
    a.ok(x >= 0 && x < 3 && y >= -5 && y < 5 && Number.isInteger(x + y) && z >= 0 && z < 1);
  }
  const n = await later(c.randomInt, 10, 12);
  a.ok(n === 10 || n === 11);
  const form = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
  for (const id of [await twice(() => c.randomUUID()), await twice(() => crypto.randomUUID())]) a.match(id, form);
  a.ok(crypto.getRandomValues(new Uint32Array(16)).some((w) => w > 65535));
  a.notEqual(Math.random(), Math.random());
  for (const bad of [() => c.randomBytes(-1), () => c.randomBytes(4, 5), () => c.randomInt(0), () => c.randomInt(5, 5), () => c.randomInt(), () => c.randomInt(1, 'x'),
    () => c.randomFillSync(new Uint8Array(4), 5), () => c.randomFill(new Uint8Array(3)), () => c.randomUUID({disableEntropyCache: 1}),
    () => crypto.getRandomValues(new Float32Array(2)), () => crypto.getRandomValues.call({}, new Uint8Array(2))]) a.throws(bad, undefined, String(bad));
  a.equal((await import('crypto')).randomBytes, c.randomBytes);
  a.deepEqual([Math.random.name, Math.random.length, Object.keys(Math).length, c.randomBytes.name, c.randomBytes.length], ['random', 0, 0, 'randomBytes', 2]);
  return 'drawn';
})()`

// TestNodeFresh: what crypto and Math hand out is as ever before and after the
// interpreter is told that it is a copy, and afterwards the kernel's.
func TestNodeFresh(t *testing.T) {
	k := keep(t, "node", "sh", "-c", `exec node "$0" 3<&0 4>&1 5>&2 0</dev/null`, "DIR/node/context.js")
	k.turn("const kept = {...require('crypto')}; const fs = require('fs'), read = fs.readSync; let reads = 0; fs.readSync = (...args) => (reads++, read(...args)); undefined")
	k.all(turns{{drawing, "", "'drawn'", ""}, {"reads", "", "0", ""}})
	k.copied()
	k.all(turns{{drawing, "", "'drawn'", ""}, {"reads > 20", "", "true", ""}})
}
