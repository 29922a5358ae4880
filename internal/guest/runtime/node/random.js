'use strict';
// Randomness that can be made a sandbox's own. Not for require() by user code.
//
// A sandbox that is made of another begins with its memory, and would draw what that
// draws. Neither V8's generator nor OpenSSL's can be seeded again from here. So
// Math.random is one that can; and what crypto hands out comes from OpenSSL until
// reseed is called, and from the kernel afterwards. All of it is in place from the
// beginning, since code keeps what it once took from a module.

const fs = require('fs');
const crypto = require('crypto');

const urandom = fs.openSync('/dev/urandom', 'r');
let copied = false; // OpenSSL's generator is in the same state elsewhere

function fill(bytes) {
  for (let at = 0; at < bytes.length;) {
    at += fs.readSync(urandom, bytes, at, Math.min(bytes.length - at, 1 << 20), null);
  }
}

// Math.random is xoshiro128**, two of whose words make a double.

const state = new Uint32Array(4);

function seed() {
  fill(new Uint8Array(state.buffer));
  state[0] |= 1; // never all zero
}

function word() {
  const x = Math.imul(state[1], 5);
  const out = Math.imul(x << 7 | x >>> 25, 9) >>> 0;
  const t = state[1] << 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= t;
  state[3] = state[3] << 11 | state[3] >>> 21;
  return out;
}

// put replaces a method by one that looks the same to whoever enumerates.
function put(object, name, value) {
  const was = Object.getOwnPropertyDescriptor(object, name);
  if (was !== undefined && was.configurable) {
    Object.defineProperty(value, 'length', {value: (was.value || was.get()).length, configurable: true});
    Object.defineProperty(object, name, {value, writable: true, configurable: true, enumerable: was.enumerable});
  }
}

// Each calls what it replaces, which checks the arguments and answers as ever, and then
// puts other bytes in place of its own.

const {randomBytes, randomFill, randomFillSync, randomInt, randomUUID} = crypto;

// range is the part of a buffer that randomFill fills.
function range(buffer, offset = 0, size = undefined) {
  const bytes = ArrayBuffer.isView(buffer) ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength) : new Uint8Array(buffer);
  const unit = buffer.BYTES_PER_ELEMENT || 1;
  return bytes.subarray(offset * unit, size === undefined ? bytes.length : (offset + size) * unit);
}

function uuid() {
  const b = Buffer.alloc(16);
  fill(b);
  b[6] = b[6] & 0x0f | 0x40;
  b[8] = b[8] & 0x3f | 0x80;
  return b.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

// integer draws one of [0, n) with equal chances; n is at most 2^48.
function integer(n) {
  const b = Buffer.alloc(6);
  const limit = 0x1000000000000 - 0x1000000000000 % n;
  for (;;) {
    fill(b);
    const x = b.readUIntBE(0, 6);
    if (x < limit) {
      return x % n;
    }
  }
}

const replaced = {
  randomBytes(size, callback) {
    if (!copied) {
      return randomBytes(size, callback);
    }
    if (callback === undefined) {
      const bytes = randomBytes(size);
      fill(bytes);
      return bytes;
    }
    return randomBytes(size, typeof callback !== 'function' ? callback : function(err, bytes) {
      if (bytes) {
        fill(bytes);
      }
      callback.call(this, err, bytes);
    });
  },
  randomFillSync(buffer, offset, size) {
    randomFillSync(...arguments);
    if (copied) {
      fill(range(buffer, offset, size));
    }
    return buffer;
  },
  randomFill(buffer, ...rest) {
    const callback = rest[rest.length - 1];
    if (!copied || typeof callback !== 'function') {
      return randomFill(...arguments);
    }
    const part = rest.slice(0, -1);
    return randomFill(buffer, ...part, function(err, filled) {
      if (!err) {
        fill(range(buffer, ...part));
      }
      callback.call(this, err, filled);
    });
  },
  randomInt(...rest) {
    const callback = rest[rest.length - 1];
    if (!copied) {
      return randomInt(...rest);
    }
    const [low, high] = typeof rest[1] === 'number' ? rest : [0, rest[0]];
    if (typeof callback !== 'function') {
      randomInt(...rest);
      return low + integer(high - low);
    }
    return randomInt(...rest.slice(0, -1), (err, n) => callback(err, err ? n : low + integer(high - low)));
  },
  randomUUID(options) {
    const id = randomUUID(options);
    return copied ? uuid() : id;
  },
};

for (const [name, value] of Object.entries(replaced)) {
  put(crypto, name, value);
}
for (const name of ['pseudoRandomBytes', 'prng', 'rng']) {
  put(crypto, name, replaced.randomBytes);
}

if (crypto.webcrypto) {
  const web = Object.getPrototypeOf(crypto.webcrypto);
  const {getRandomValues, randomUUID: webUUID} = web;
  put(web, 'getRandomValues', {getRandomValues(view) {
    getRandomValues.call(this, view);
    if (copied) {
      fill(range(view));
    }
    return view;
  }}.getRandomValues);
  put(web, 'randomUUID', {randomUUID() {
    const id = webUUID.call(this);
    return copied ? uuid() : id;
  }}.randomUUID);
}
put(crypto, 'getRandomValues', {getRandomValues(view) {
  return crypto.webcrypto.getRandomValues(view);
}}.getRandomValues);
require('module').syncBuiltinESMExports();

put(Math, 'random', {random() {
  return ((word() >>> 5) * 0x4000000 + (word() >>> 6)) / 0x20000000000000;
}}.random);
seed();

// reseed makes what is drawn from now on this sandbox's own.
module.exports = function reseed() {
  copied = true;
  seed();
};
