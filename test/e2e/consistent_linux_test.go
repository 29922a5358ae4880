package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rightClock is how far a guest's clock may be off once it goes on.
const rightClock = 100 * time.Millisecond

// ticking is a thread in a context that reads the clocks for ever.
const ticking = `import threading, time
ticks = []
def tick():
    while True:
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        if after - before < 0.01:  # else it was another's turn in between
            ticks.append((before, wall))
        time.sleep(0.005)
offset = time.time() - time.monotonic()
threading.Thread(target=tick, daemon=True).start()`

// clockRight checks a sandbox's clocks just after it went on: what they say now, and
// that of all the times they were read since the last check none was wrong. Nothing has
// run while it was paused.
func (s *server) clockRight(t testing.TB, id string, paused, resumed time.Time) {
	t.Helper()
	unix := func(at time.Time) string { return strconv.FormatFloat(float64(at.UnixMicro())/1e6, 'f', 6, 64) }
	before := time.Now()
	said := s.eval(t, id, "python", fmt.Sprintf(`f"{time.time()} {len(ticks)} {max(abs(w - m - offset) for m, w in ticks)} {sum(1 for _, w in ticks if %s < w < %s)} {ticks.clear()}"`,
		unix(paused), unix(resumed))).text()
	after := time.Now()
	var now, off float64
	var read, strays int
	if n, err := fmt.Sscanf(strings.Trim(said, "'"), "%f %d %f %d", &now, &read, &off, &strays); n != 4 || read == 0 {
		t.Fatalf("%q: %v", said, err)
	}
	if at := time.UnixMicro(int64(now * 1e6)); at.Before(before.Add(-rightClock)) || at.After(after.Add(rightClock)) {
		t.Errorf("it says %s between %s and %s", at, before, after)
	}
	if d := time.Duration(off * float64(time.Second)); d > rightClock {
		t.Errorf("the two clocks were %s apart in %d readings", d, read)
	}
	if strays > 0 {
		t.Errorf("%d readings between %s, when it was paused, and %s", strays, paused, resumed)
	}
}

// journalled is a program that writes numbered records, each with a checksum over all
// before it, to its memory, a file, and a file of /dev/shm, in this order: a record in
// one has been written to those before it.
const journalled = `import hashlib, os, time
memory, h = [], b''
disk = os.open('/home/user/journal', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
shm = os.open('/dev/shm/journal', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
n = 0
while True:
    n += 1
    h = hashlib.sha256(h + str(n).encode()).digest()
    line = f'{n} {h.hex()}\n'.encode()
    memory.append(line)
    os.write(disk, line)
    os.write(shm, line)
    if os.path.exists('/tmp/tell'):
        open('/tmp/.told', 'wb').writelines(memory)
        os.rename('/tmp/.told', '/tmp/told')
        os.remove('/tmp/tell')
    if n % 8 == 0: time.sleep(0.001)`

// journals reads what a sandbox has of it in this moment, and afterwards what the
// program has in its memory: how many records each has, or what is wrong with it.
const journals = `import hashlib, os, time
def check(name, whole):
    data = open(name, 'rb').read()
    lines, h = data.split(b'\n'), b''
    last = lines.pop()
    if whole and last: return f'{name} ends within a record: {last!r}'
    for n, line in enumerate(lines, 1):
        h = hashlib.sha256(h + str(n).encode()).digest()
        if line != f'{n} {h.hex()}'.encode(): return f'{name} has {line!r} as record {n}'
    return len(lines)
shm = check('/dev/shm/journal', False)
disk = check('/home/user/journal', False)
open('/tmp/tell', 'w').close()
for _ in range(6000):
    if os.path.exists('/tmp/told'): break
    time.sleep(0.01)
memory = check('/tmp/told', True)
os.remove('/tmp/told')
print(shm, disk, memory)`

// begun waits until the program has written its first record everywhere.
const begun = `import os, time
for _ in range(6000):
    if os.path.exists('/dev/shm/journal') and os.path.getsize('/dev/shm/journal'): break
    time.sleep(0.01)`

// records checks a sandbox's journals and returns how far it has come.
func (s *server) records(t testing.TB, id string) int {
	t.Helper()
	said := s.stdout(t, id, journals)
	var shm, disk, memory int
	if n, err := fmt.Sscanf(said, "%d %d %d", &shm, &disk, &memory); n != 3 {
		t.Fatalf("%s: %v", said, err)
	}
	// The files were read one after the other while the program went on.
	if shm == 0 || shm > disk || disk > memory {
		t.Fatalf("%d records in /dev/shm, %d on disk, %d in memory", shm, disk, memory)
	}
	return shm
}

// TestSnapshotsUnderLoad: whatever a program is doing when a snapshot is taken, what is
// made of it has one moment of all of it, and goes on from there; so does the program.
func TestSnapshotsUnderLoad(t *testing.T) {
	enforcing(t)
	w := newWorld(t)
	s := w.serve()
	id := s.made(t, "/v1/sandboxes", `{}`)
	body, _ := json.Marshal(map[string]string{"code": journalled, "language_pack": "python"})
	s.must(t, "POST", "/v1/sandboxes/"+id+"/processes", string(body))
	s.stdout(t, id, begun)
	var snaps []string
	var least, most []int // records there were before and after each
	for range 6 {
		least = append(least, s.records(t, id))
		snaps = append(snaps, s.made(t, "/v1/sandboxes/"+id+"/snapshots", "{}"))
		most = append(most, s.records(t, id))
	}
	for i, snap := range snaps {
		box := s.made(t, "/v1/sandboxes", `{"snapshot":"`+snap+`"}`)
		n := s.records(t, box)
		if n < least[i] {
			t.Errorf("snapshot %d has %d records, there were %d before it was taken", i, n, least[i])
		}
		if again := s.records(t, box); again <= n {
			t.Errorf("snapshot %d: the program stands still at %d", i, again)
		}
		s.must(t, "DELETE", "/v1/sandboxes/"+box, "")
		s.must(t, "DELETE", "/v1/snapshots/"+snap, "")
	}
	if n := s.records(t, id); n <= most[len(most)-1] {
		t.Errorf("the first stands still at %d", n)
	}
}
