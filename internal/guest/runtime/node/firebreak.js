'use strict';
// Report a run's structured result to Firebreak: firebreak.result({ok: 1}).
// Loaded into every Node process, so it does nothing until it is used.

const MAX = 1 << 20;

// check refuses what JSON.stringify would silently change or drop.
function check(value) {
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new TypeError('firebreak.result: JSON cannot express ' + value);
  }
  if (typeof value === 'function' || typeof value === 'symbol' || typeof value === 'bigint') {
    throw new TypeError('firebreak.result: JSON cannot express a ' + typeof value);
  }
  return value;
}

const firebreak = Object.freeze({
  // result makes value the result of this run. The last call wins. It throws
  // for what JSON cannot express or what is larger than 1 MiB, and leaves an
  // earlier result as it was.
  result(value) {
    const fs = require('fs');
    const path = process.env.FIREBREAK_RESULT;
    if (!path) {
      throw new Error('firebreak.result: not running in a Firebreak sandbox');
    }
    const text = JSON.stringify(value, (_, v) => check(v));
    if (text === undefined) {
      throw new TypeError('firebreak.result: JSON cannot express undefined');
    }
    const data = Buffer.from(text, 'utf8');
    if (data.length > MAX) {
      throw new RangeError('firebreak.result: ' + data.length + ' bytes is over the limit of ' + MAX);
    }
    const partial = path + '.' + process.pid;
    try {
      fs.writeFileSync(partial, data, {flag: 'wx', mode: 0o600});
      fs.renameSync(partial, path);
    } catch (err) {
      fs.rmSync(partial, {force: true});
      throw err;
    }
  },
});

Object.defineProperty(globalThis, 'firebreak', {value: firebreak, enumerable: false});
