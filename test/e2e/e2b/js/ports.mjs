// Servers inside a sandbox, reached through the server by E2B's headers: HTTP,
// streams, WebSocket; what hostile ones can do.
import http from 'node:http'
import { step, assert, until, end } from './step.mjs'
import { Sandbox } from 'e2b'
import WebSocket from 'ws'

const url = process.env.E2B_SANDBOX_URL
const s = await Sandbox.create({ timeoutMs: 600000 })
const other = await Sandbox.create({ timeoutMs: 600000 })
const headers = (port, box = s) => ({ 'E2b-Sandbox-Id': box.sandboxId, 'E2b-Sandbox-Port': String(port), 'E2B-Traffic-Access-Token': box.trafficAccessToken })
const get = (path, port, more = {}) => fetch(url + path, { headers: { ...headers(port), ...more }, redirect: 'manual', signal: AbortSignal.timeout(60000) })

await s.files.write('server.py', `
import http.server, json, time, threading, socket, hashlib, base64
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        if self.path.startswith("/ws"): return self.ws()
        if self.path == "/events":
            self.send_response(200); self.send_header("Content-Type", "text/event-stream"); self.send_header("Connection", "close"); self.end_headers()
            for i in range(3):
                self.wfile.write(f"data: {i}\\n\\n".encode()); self.wfile.flush(); time.sleep(1)
            self.close_connection = True
            return
        if self.path == "/redirect":
            self.send_response(302); self.send_header("Location", "/redirect"); self.send_header("Content-Length", "0"); self.end_headers(); return
        body = json.dumps({"path": self.path, "headers": dict(self.headers), "from": self.client_address[0]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "a=b; Domain=sbx.test; Path=/"); self.send_header("Strict-Transport-Security", "max-age=1"); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        h = hashlib.sha256(); left = int(self.headers.get("Content-Length") or 0)
        while left:
            b = self.rfile.read(min(left, 65536)); left -= len(b); h.update(b)
        body = h.hexdigest().encode()
        self.send_response(201); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def ws(self):
        k = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101); self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(k.encode()).digest()).decode()); self.end_headers(); self.wfile.flush()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 15 == 8: break
            n = head[1] & 127
            mask = self.rfile.read(4); data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(n)))
            self.wfile.write(bytes([0x80 | head[0] & 15, n]) + data); self.wfile.flush()
        self.close_connection = True
class S(http.server.ThreadingHTTPServer): request_queue_size = 128
S(("127.0.0.1", 3000), H).serve_forever()
`)
await s.files.write('raw.py', `
import socket, threading, time
def serve(port, answer):
    l = socket.create_server(("127.0.0.1", port), backlog=64)
    def one(c):
        try:
            c.recv(65536); answer(c)
        except OSError: pass
        finally: c.close()
    def loop():
        while True: threading.Thread(target=one, args=(l.accept()[0],), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
def endless(c):
    c.sendall(b"HTTP/1.1 200 OK\\r\\n")
    while True: c.sendall(b"X-More: " + b"x" * 4096 + b"\\r\\n")
def informs(c):
    while True: c.sendall(b"HTTP/1.1 103 Early Hints\\r\\nLink: <" + b"x" * 1000 + b">\\r\\n\\r\\n")
serve(4001, endless)
serve(4002, lambda c: c.sendall(b"SSH-2.0-nothing\\r\\n"))
serve(4003, lambda c: time.sleep(600))
serve(4004, lambda c: c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nX-A: b\\r\\n\\r\\nhelloHTTP/1.1 200 OK\\r\\nContent-Length: 4\\r\\nX-Forged: 1\\r\\n\\r\\nevil"))
serve(4005, lambda c: c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\nshort"))
serve(4006, informs)
time.sleep(3600)
`)
await s.commands.run('python3 server.py', { background: true, timeoutMs: 0 })
await s.commands.run('python3 raw.py', { background: true, timeoutMs: 0 })

await step('http', async () => {
  await until('it listens', async () => (await get('/', 3000)).status === 200)
  const r = await get('/a/b%2Fc?d=e%20f', 3000, { 'X-Mine': 'kept', Authorization: 'Bearer of-the-server' })
  const seen = await r.json()
  assert.equal(seen.path, '/a/b%2Fc?d=e%20f')
  assert.equal(seen.from, '127.0.0.1')
  const h = Object.fromEntries(Object.entries(seen.headers).map(([k, v]) => [k.toLowerCase(), v]))
  assert.deepEqual([h.host, h['x-mine'], h.authorization], ['localhost:3000', 'kept', 'Bearer of-the-server'])
})
await step('no credential of ours goes in', async () => {
  const r = await get('/', 3000, { 'X-Access-Token': 'inner', 'X-API-Key': process.env.E2B_API_KEY, Authorization: `Bearer ${process.env.E2B_API_KEY}` })
  const text = (await r.text()).toLowerCase()
  for (const secret of [s.trafficAccessToken, process.env.E2B_API_KEY, 'e2b-sandbox', 'e2b-traffic', 'x-access-token', 'x-api-key', 'bearer'])
    assert.ok(!text.includes(secret.toLowerCase()), secret)
})
await step('nothing that binds its neighbours comes out', async () => {
  const r = await get('/', 3000)
  assert.equal(r.headers.get('set-cookie'), 'a=b; Path=/')
  assert.equal(r.headers.get('strict-transport-security'), null)
})
await step('large bodies', async () => {
  const big = Buffer.alloc(32 << 20, 7)
  const r = await fetch(url + '/', { method: 'POST', headers: headers(3000), body: big })
  const { createHash } = await import('node:crypto')
  assert.deepEqual([r.status, await r.text()], [201, createHash('sha256').update(big).digest('hex')])
})
await step('a stream comes as it is sent', async () => {
  const r = await get('/events', 3000), at = []
  for await (const c of r.body) at.push([Date.now(), Buffer.from(c).toString()])
  assert.equal(at.map((x) => x[1]).join(''), 'data: 0\n\ndata: 1\n\ndata: 2\n\n')
  assert.ok(at.at(-1)[0] - at[0][0] > 1000, JSON.stringify(at))
})
await step('websocket', async () => {
  const ws = new WebSocket(url.replace('http', 'ws') + '/ws', { headers: headers(3000) })
  const got = []
  ws.on('message', (m) => got.push(m.toString()))
  await new Promise((ok, bad) => { ws.once('open', ok); ws.once('error', bad) })
  for (const m of ['one', 'two']) ws.send(m)
  await until('both come back', () => got.length === 2)
  assert.deepEqual(got, ['one', 'two'])
  ws.close()
})
await step('many at once', async () => {
  const all = await Promise.all(Array.from({ length: 60 }, (_, i) => get(`/${i}`, 3000).then((r) => r.json())))
  assert.deepEqual(all.map((x) => x.path), all.map((_, i) => `/${i}`))
})
await step('a token is needed, and the right one', async () => {
  const ask = (h) => fetch(url + '/', { headers: h })
  const missing = headers(3000)
  delete missing['E2B-Traffic-Access-Token']
  const r = await ask(missing)
  assert.equal(r.status, 403)
  assert.match((await r.json()).message, /traffic access token.*missing/)
  assert.equal((await ask({ ...headers(3000), 'E2B-Traffic-Access-Token': other.trafficAccessToken })).status, 403)
  assert.equal((await ask({ ...headers(3000), 'E2B-Traffic-Access-Token': s.envdAccessToken })).status, 403)
  assert.equal((await ask({ ...headers(3000, other) })).status, 502)
})
await step('a closed port, no port, a dead sandbox', async () => {
  const closed = await get('/', 3999)
  assert.equal(closed.status, 502)
  assert.match((await closed.json()).message, /port 3999 is not open/)
  assert.equal((await get('/', 'x')).status, 400)
  assert.equal((await get('/', 70000)).status, 400)
  const gone = await fetch(url + '/', { headers: { ...headers(3000), 'E2b-Sandbox-Id': 'sbaaaaaaaaaaaaaaaaaa' } })
  assert.equal(gone.status, 502)
  assert.match((await gone.json()).message, /was not found/)
})
await step('hostile servers hurt only themselves', async () => {
  assert.equal((await get('/', 4001)).status, 502)
  assert.equal((await get('/', 4002)).status, 502)
  const split = await get('/', 4004)
  assert.deepEqual([split.status, split.headers.get('x-forged'), await split.text()], [200, null, 'hello'])
  assert.equal((await get('/again', 3000)).status, 200)
  await assert.rejects(async () => { const r = await get('/', 4005); await r.text() })
  const informing = await fetch(url + '/', { headers: headers(4006), signal: AbortSignal.timeout(2000) }).then((r) => r.status, () => 'given up')
  assert.ok([502, 'given up'].includes(informing), informing)
  const loop = await get('/redirect', 3000)
  assert.deepEqual([loop.status, loop.headers.get('location')], [302, '/redirect'])
  const silent = new AbortController()
  const waiting = Array.from({ length: 20 }, () => fetch(url + '/', { headers: headers(4003), signal: silent.signal }).catch(() => 'given up'))
  assert.equal((await get('/beside', 3000)).status, 200)
  silent.abort()
  assert.ok((await Promise.all(waiting)).every((x) => x === 'given up'))
})
await step('by host name', async () => {
  const ask = (host, more = {}) => new Promise((ok, bad) => {
    const u = new URL(url)
    http.get({ host: u.hostname, port: u.port, path: '/named', headers: { Host: host, ...more } }, (r) => {
      let b = ''
      r.on('data', (d) => { b += d })
      r.on('end', () => ok([r.statusCode, b]))
    }).on('error', bad)
  })
  const [status, body] = await ask(`3000-${s.sandboxId}.sbx.test`, { 'E2B-Traffic-Access-Token': s.trafficAccessToken })
  assert.equal(status, 200)
  assert.match(body, /\/named/)
  assert.equal((await ask(`3000-${s.sandboxId}.sbx.test`))[0], 403)
  assert.equal((await ask('evil.example'))[0], 403)
  assert.equal((await ask(`3000-${s.sandboxId}.evil.example`, { 'E2B-Traffic-Access-Token': s.trafficAccessToken }))[0], 403)
  assert.equal(s.getHost(3000), `3000-${s.sandboxId}.sbx.test`)
})
await step('kill ends what is open', async () => {
  const ws = new WebSocket(url.replace('http', 'ws') + '/ws', { headers: headers(3000) })
  await new Promise((ok, bad) => { ws.once('open', ok); ws.once('error', bad) })
  const closed = new Promise((ok) => { ws.once('close', ok); ws.on('error', () => {}) })
  await s.kill()
  await closed
  assert.equal((await get('/', 3000)).status, 502)
})
await other.kill()
end()
