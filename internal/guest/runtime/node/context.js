'use strict';
// Keep a Node interpreter warm for Firebreak. Not for require().
//
// Turns of code come as lines of JSON on descriptor 3 and share one global scope.
// What they show goes back among what they print; package guest/driver of
// Firebreak says how. A shell has moved standard input, output and error to 3, 4
// and 5, which children do not inherit, and put /dev/null at 0.

const fs = require('fs');
const util = require('util');
const vm = require('vm');
const reseed = require('./random.js');

const COMMANDS = 3;
const OUT = 4;
const ERR = 5;
const PIPE_BUF = 4096;
const LARGEST = 4 << 20; // of a message
const TOO_LARGE = '[this result was too large to be shown: at most 4 MiB]';
const MAX_TEXT = 256 << 10;
const pause = new Int32Array(new SharedArrayBuffer(4));

let token = '';
let turn = 0;
let count = 0;
let running = null; // {reject, over} of the turn that runs

function write(fd, data) {
  for (let at = 0; at < data.length;) {
    try {
      at += fs.writeSync(fd, data, at);
    } catch (err) {
      if (err.code !== 'EAGAIN') {
        throw err;
      }
      Atomics.wait(pause, 0, 0, 1); // the pipe is full, and somebody has made it say so
    }
  }
}

// ascii is JSON without anything beyond ASCII, so that chunks cut no character.
function ascii(message) {
  return JSON.stringify(message).replace(/[\u007f-\uffff]/g, (c) => '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
}

function send(message, ...fds) {
  let text;
  try {
    text = ascii(message);
  } catch (err) { // a form that JSON cannot express
    text = ascii({...message, data: {'text/plain': String(message.data && message.data['text/plain'])}});
  }
  if (text.length > LARGEST) {
    text = ascii({...message, data: {'text/plain': TOO_LARGE}});
  }
  const room = PIPE_BUF - 1 - token.length - 1 - 4;
  for (const fd of fds) {
    for (let at = 0; at === 0 || at < text.length; at += room) {
      const part = text.slice(at, at + room);
      const kind = (at === 0 ? 1 : 0) | (at + room >= text.length ? 2 : 0);
      write(fd, Buffer.from('\x1e' + token + kind + part.length.toString(16).padStart(4, '0') + part, 'latin1'));
    }
  }
}

// What is shown.

const METHODS = {
  toHTML: 'text/html', toMarkdown: 'text/markdown', toSVG: 'image/svg+xml', toPNG: 'image/png', toJPEG: 'image/jpeg', toLatex: 'text/latex',
};

// forms returns {media type: form} of a value: those of its toHTML() and the like,
// or of [Symbol.for('Jupyter.display')]('mime'), and how it is inspected.
function forms(value) {
  const data = {};
  if (value !== null && typeof value === 'object' && !util.types.isProxy(value)) {
    const bundle = value[Symbol.for('Jupyter.display')];
    if (typeof bundle === 'function') {
      Object.assign(data, attempt(() => bundle.call(value)));
    }
    for (const [name, type] of Object.entries(METHODS)) {
      if (typeof value[name] === 'function' && !(type in data)) {
        const form = attempt(() => value[name]());
        if (form !== undefined && form !== null) {
          data[type] = encoded(form);
        }
      }
    }
  }
  if (!('text/plain' in data)) {
    data['text/plain'] = attempt(() => util.inspect(value)) || '(it cannot be inspected)';
  }
  return data;
}

function attempt(form) {
  try {
    return form();
  } catch (err) {
    console.error('a form of the result failed: ' + err);
    return undefined;
  }
}

function encoded(form) {
  return form instanceof Uint8Array ? Buffer.from(form).toString('base64') : form;
}

function show(data, main) {
  send({type: 'result', turn, main, data}, OUT);
}

// display shows values in every form they have. Its helpers show what is one form
// already.
function display(...values) {
  for (const value of values) {
    show(forms(value), false);
  }
}
display.html = (text) => show({'text/html': String(text)}, false);
display.markdown = (text) => show({'text/markdown': String(text)}, false);
display.svg = (text) => show({'image/svg+xml': String(text)}, false);
display.png = (data) => show({'image/png': encoded(data)}, false);
display.jpeg = (data) => show({'image/jpeg': encoded(data)}, false);
display.json = (value) => show({'application/json': value}, false);
display.table = (columns) => show({'firebreak/data': columns, 'text/plain': util.inspect(columns)}, false);

function report(err) {
  let name = 'Error';
  let value = '';
  let traceback = '';
  try {
    if (err instanceof Error || util.types.isNativeError(err)) {
      name = String(err.name);
      value = String(err.message);
      traceback = trimmed(String(err.stack || err));
    } else {
      name = 'Thrown';
      value = traceback = util.inspect(err);
    }
  } catch (_) {
    value = 'an exception that cannot be printed';
  }
  send({type: 'error', turn, name, value: value.slice(-MAX_TEXT), traceback: traceback.slice(-MAX_TEXT)}, OUT);
}

// trimmed is a stack without frames of ours, and of what calls us.
function trimmed(stack) {
  return stack.split('\n').filter((line) => !line.includes(__filename) && !/\((?:node:vm|node:internal)/.test(line)).join('\n');
}

class Interrupted extends Error {
  constructor() {
    super('the turn was interrupted');
    this.name = 'Interrupted';
    this.stack = 'Interrupted: the turn was interrupted';
  }
}

// Turns.

// Node's own REPL knows how to make await at the top level of a script work, but
// its parser is not for others. Here a turn with await becomes the body of an async
// function, and what it declares at its top level a property of the global object.

const DECLARATION = /^(?:const|let|var|class|function|async\s+function|import)\b/;

// import() works in turns; that this is experimental is no news for whoever uses it.
const importModuleDynamically = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
const warn = process.emitWarning;
process.emitWarning = () => {};
new vm.Script('0', {importModuleDynamically});
process.emitWarning = warn;

// runCode runs a script. One with await is not ended by SIGINT where it computes,
// only where it waits: Node's way to do the former may end us instead, when the
// script has just come to its first await.
function runCode(code, filename) {
  let script;
  try {
    script = new vm.Script(code, {filename, importModuleDynamically});
  } catch (err) {
    if (!(err instanceof SyntaxError) || !/\bawait\b/.test(code)) {
      throw err;
    }
    return new vm.Script(awaiting(code), {filename, importModuleDynamically}).runInThisContext();
  }
  return script.runInThisContext({breakOnSigint: true});
}

// parses reports whether text is, as it stands, the body of an async function.
function parses(text) {
  try {
    new vm.Script('(async () => {' + text + '\n})');
    return true;
  } catch (_) {
    return false;
  }
}

function isExpression(text) {
  try {
    new vm.Script('(async () => (' + text + '\n))');
    return true;
  } catch (_) {
    return false;
  }
}

// statements splits a script into its top-level statements: the shortest beginnings,
// by lines and semicolons, that parse and leave what parses.
function statements(code) {
  const out = [];
  let rest = code;
  while (rest.trim() !== '') {
    let end = -1;
    for (let at = 0; at < rest.length; at++) {
      if ((rest[at] === ';' || rest[at] === '\n') && rest.slice(0, at).trim() !== '' &&
          parses(rest.slice(0, at + 1)) && parses(rest.slice(at + 1)) && !continues(rest.slice(at + 1))) {
        end = at + 1;
        break;
      }
    }
    if (end < 0) {
      end = rest.length;
    }
    out.push(rest.slice(0, end));
    rest = rest.slice(end);
  }
  return out;
}

// continues reports whether text goes on with the statement before it, as a line
// that begins with a dot does.
function continues(text) {
  return /^\s*(?:[.,?:*\/%&|^<>=)\]}(\[`+-]|else\b|catch\b|finally\b|instanceof\b|in\b|while\b)/.test(text);
}

// awaiting makes a script with await at its top level one that evaluates to a
// promise of its last value. Names it declares become global ones.
function awaiting(code) {
  const parts = statements(code);
  const names = [];
  const body = parts.map((part, i) => {
    const text = part.trim();
    let m = /^(?:const|let|var)\s+([A-Za-z_$][\w$]*)\s*=([^]*)$/.exec(text);
    if (m && isExpression(m[2].replace(/;\s*$/, ''))) {
      names.push(m[1]);
      return part.replace(/(?:const|let|var)\s+/, '') + ';';
    }
    m = /^(?:const|let|var)\s+([{[][^]*)$/.exec(text);
    const pattern = m && m[1].replace(/;\s*$/, '');
    if (m && isExpression(pattern)) {
      const left = /^([{[][^=]*[}\]])\s*=/.exec(pattern);
      for (const name of left ? left[1].match(/[A-Za-z_$][\w$]*(?=\s*[,}\]=])/g) || [] : []) {
        names.push(name);
      }
      return '(' + pattern + ');';
    }
    m = /^(class|function\*?|async\s+function\*?)\s+([A-Za-z_$][\w$]*)/.exec(text);
    if (m) {
      names.push(m[2]);
      return m[2] + ' = ' + part + ';';
    }
    const last = text.replace(/;\s*$/, '');
    if (i === parts.length - 1 && !DECLARATION.test(text) && isExpression(last)) {
      return 'return (' + last + '\n);';
    }
    return part;
  });
  const declared = names.length ? 'var ' + [...new Set(names)].join(', ') + ';' : '';
  return declared + '(async () => {' + body.join('') + '\n})()';
}

// evaluate runs a turn. A let or class that an earlier turn has declared becomes an
// assignment, so that a turn can be run again; a const stays what it is.
function evaluate(code, filename) {
  try {
    return runCode(code, filename);
  } catch (err) {
    const taken = err instanceof SyntaxError && /^Identifier '(.+)' has already been declared$/.exec(err.message);
    if (!taken) {
      throw err;
    }
    const loose = statements(code).map((part) => part.replace(/^(\s*)(?:const|let|class)\s+([A-Za-z_$][\w$]*)/, (all, space, name) =>
      replaceable(name) ? space + (/class/.test(all) ? name + ' = class ' + name : name) : all)).join('');
    if (loose === code) {
      throw err;
    }
    return runCode(loose, filename);
  }
}

// replaceable reports whether there is such a name, and it is no const.
function replaceable(name) {
  try {
    new vm.Script(name + ' = ' + name).runInThisContext();
    return true;
  } catch (_) {
    return false;
  }
}

async function run(command, mine) {
  turn = command.turn;
  if (command.sync) {
    if (command.fresh) {
      reseed();
    }
    return;
  }
  count++;
  const before = {};
  for (const [name, value] of Object.entries(command.env || {})) {
    before[name] = process.env[name];
    process.env[name] = value;
  }
  try {
    const interrupted = new Promise((_, reject) => {
      mine.reject = reject;
    });
    interrupted.catch(() => {});
    let value = evaluate(command.code, '<turn ' + count + '>');
    if (util.types.isPromise(value)) {
      mine.waiting = true;
      try {
        value = await Promise.race([value, interrupted]);
      } finally {
        mine.waiting = false;
      }
    }
    if (value !== undefined && !/;\s*$/.test(command.code)) {
      globalThis._ = value;
      show(forms(value), true);
    }
  } catch (err) {
    report(err && err.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED' ? new Interrupted() : err);
  }
  for (const [name, value] of Object.entries(before)) {
    if (value === undefined) {
      delete process.env[name];
    } else {
      process.env[name] = value;
    }
  }
}

// interrupt ends what the turn waits for.
function interrupt() {
  if (running !== null && running.reject) {
    running.reject(new Interrupted());
  }
}

process.on('SIGINT', interrupt);

// check looks after a turn from outside. Node ends a script for SIGINT by ending
// whatever runs, which by then may be what is behind the script: us. A turn that
// neither waits nor has come back is given up, and the next one can be taken. It
// also keeps Node alive: what a turn waits for may be nothing that does.
function check(mine) {
  if (!process.listeners('SIGINT').includes(interrupt)) {
    process.on('SIGINT', interrupt);
  }
  if (!mine.over && !mine.waiting) {
    report(new Interrupted());
    finish(mine);
    take();
  }
}

// What goes wrong between turns, or beside one, is said and ends nothing.
for (const event of ['uncaughtException', 'unhandledRejection']) {
  process.on(event, (err) => {
    console.error('Uncaught ' + (err instanceof Error ? trimmed(String(err.stack)) : util.inspect(err)));
  });
}

// Commands are waited for beside the event loop, so timers and sockets of user
// code go on between turns.
let buffer = '';
const decoder = new (require('string_decoder').StringDecoder)('utf8');
const piece = Buffer.allocUnsafe(1 << 16);

function finish(mine) {
  clearInterval(mine.check);
  mine.over = true;
  running = null;
  send({type: 'end', turn, count}, OUT, ERR);
}

async function take() {
  for (let end; (end = buffer.indexOf('\n')) >= 0;) {
    const line = buffer.slice(0, end);
    buffer = buffer.slice(end + 1);
    let command;
    try {
      command = JSON.parse(line);
    } catch (_) {
      continue;
    }
    if (token === '') {
      token = command.token;
      send({type: 'ready'}, OUT);
      continue;
    }
    const mine = running = {};
    mine.check = setInterval(check, 250, mine);
    await run(command, mine);
    if (mine.over) {
      return; // it was given up, and whoever did that goes on
    }
    finish(mine);
  }
  fs.read(COMMANDS, piece, 0, piece.length, null, (err, n) => {
    if (err || n === 0) {
      process.reallyExit(0);
    }
    buffer += decoder.write(piece.subarray(0, n));
    take();
  });
}

Object.assign(globalThis, {display, require: require('module').createRequire(process.cwd() + '/'), module: {exports: {}}});
globalThis.exports = globalThis.module.exports;
take();
