package hostile

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/internal/audit"
)

// forgery is case 60: somebody who can write the log's directory changes what
// happened, and adjusts as much of the rest as they can without the private key.
type forgery struct {
	name   string
	forge  func(t *testing.T, f *forged)
	pinned bool // found only with the checkpoint from outside
}

// forged is a log in a forger's hands.
type forged struct {
	dir    string
	header []byte
	frames [][]byte // of the only segment
	old    string   // a copy of the log from before, with its checkpoint
}

var forgeries = []forgery{
	{name: "a record removed, the chain mended", forge: func(t *testing.T, f *forged) {
		f.frames = append(f.frames[:5:5], f.frames[6:]...)
		f.mend()
	}},
	{name: "a record changed, the chain mended", forge: func(t *testing.T, f *forged) {
		i := f.find(t, "process.exec")
		f.frames[i] = bytes.Replace(f.frames[i], []byte("process.exec"), []byte("sandbox.lock"), 1)
		f.mend()
	}},
	{name: "two records exchanged", forge: func(t *testing.T, f *forged) { f.frames[4], f.frames[5] = f.frames[5], f.frames[4] }},
	{name: "two records exchanged, the chain mended", forge: func(t *testing.T, f *forged) {
		f.frames[4], f.frames[5] = f.frames[5], f.frames[4]
		f.mend()
	}},
	{name: "a record twice, the chain mended", forge: func(t *testing.T, f *forged) {
		f.frames = append(f.frames[:6:6], f.frames[5:]...)
		f.mend()
	}},
	{name: "the end cut off", forge: func(t *testing.T, f *forged) { f.frames = f.frames[:len(f.frames)-3] }},
	{name: "the end cut off within a record", forge: func(t *testing.T, f *forged) {
		last := len(f.frames) - 1
		f.frames[last] = f.frames[last][:len(f.frames[last])/2]
	}},
	{name: "everything cut off", forge: func(t *testing.T, f *forged) { f.frames = nil }},
	{name: "the end cut off and the rest signed by the forger", forge: func(t *testing.T, f *forged) {
		f.frames = f.frames[:len(f.frames)-3]
		f.write(t)
		f.sign(t, func(c audit.Checkpoint) audit.Checkpoint { c.Size -= 3; return c })
	}},
	{name: "the checkpoint signed by the forger", forge: func(t *testing.T, f *forged) {
		f.sign(t, func(c audit.Checkpoint) audit.Checkpoint { return c })
	}},
	{name: "the checkpoint's size lowered", forge: func(t *testing.T, f *forged) { f.frames = f.frames[:len(f.frames)-1]; f.edit(t, 1, "1") }},
	{name: "the checkpoint's root changed", forge: func(t *testing.T, f *forged) { f.edit(t, 2, strings.Repeat("A", 43)+"=") }},
	{name: "the checkpoint removed", forge: func(t *testing.T, f *forged) {
		if err := os.Remove(filepath.Join(f.dir, "checkpoint")); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "rolled back with its checkpoint", pinned: true, forge: func(t *testing.T, f *forged) { f.replace(t) }},
	{name: "replaced by an empty directory", forge: func(t *testing.T, f *forged) {
		if err := os.RemoveAll(f.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(f.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f.header, f.frames = nil, nil
	}},
}

// TestTampering lets a server work, puts aside what an auditor would, its public
// key and one checkpoint, and then verifies copies of its log that somebody forged.
// Each is rejected with a place; the log as it was is not. A server refuses to go
// on with a log that is less than was signed.
func TestTampering(t *testing.T) {
	w := serve(t, built(t))
	one, two := w.create(t, `"limits":{`+small+`}`), w.create(t, `"limits":{`+small+`}`)
	w.exec(one, 20*time.Second, "true")
	w.destroy(t, one)
	before := filepath.Join(w.dir, "out", "before")
	key := w.putAside(t, before)
	w.exec(two, 20*time.Second, "sh", "-c", "exit 3")
	w.destroy(t, two)
	w.stop()
	log := w.evidence()
	pinned, err := audit.ReadCheckpoint(log)
	if err != nil {
		t.Fatal(err)
	}
	from := filepath.Join(w.dir, "out", "checkpoint")
	if err := os.WriteFile(from, pinned, 0o600); err != nil {
		t.Fatal(err)
	}
	if v, code := w.audit(t, log, "--key", key, "--from", from); code != 0 || !v.OK || v.Unsigned != 0 || !v.KeyOutside || v.Records < 10 {
		t.Fatalf("the log as it is: %d %+v", code, v)
	}
	for _, c := range forgeries {
		t.Run(c.name, func(t *testing.T) {
			f := steal(t, log, before)
			c.forge(t, f)
			f.write(t)
			w.rejects(t, f.dir, "--key", key, "--from", from)
			if !c.pinned {
				w.rejects(t, f.dir, "--key", key)
			} else if v, code := w.audit(t, f.dir, "--key", key); code != 0 {
				t.Errorf("without a checkpoint from outside this cannot be known, and yet: %d %+v", code, v)
			}
		})
	}
	t.Run("any byte", func(t *testing.T) {
		f := steal(t, log, before)
		data, err := os.ReadFile(f.segment())
		if err != nil {
			t.Fatal(err)
		}
		end := len(bytes.Join(append([][]byte{f.header}, f.frames...), nil))
		for at := 0; at < end; at += 97 {
			data[at] ^= 1 << (at % 8)
			if err := os.WriteFile(f.segment(), data, 0o600); err != nil {
				t.Fatal(err)
			}
			data[at] ^= 1 << (at % 8)
			rep, err := audit.VerifyLog(f.dir, audit.VerifyOptions{Key: key})
			var bad *audit.EvidenceError
			if !errors.As(err, &bad) || bad.File == "" || bad.What == "" {
				t.Errorf("byte %d: %d records, %d signed, verify: %v", at, rep.Records, rep.Signed, err)
			}
		}
	})
	t.Run("a server", func(t *testing.T) {
		data, err := os.ReadFile(filepath.Join(log, filepath.Base(steal(t, log, before).segment())))
		if err != nil {
			t.Fatal(err)
		}
		f := steal(t, log, before)
		f.frames, f.dir = f.frames[:len(f.frames)-3], log
		f.write(t)
		out, err := w.command("serve", "--listen", "127.0.0.1:0").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "signed") {
			t.Errorf("a server on a log that lacks records: %v\n%s", err, out)
		}
		if err := os.WriteFile(f.segment(), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if v, code := w.audit(t, log, "--key", key, "--from", from); code != 0 {
			t.Errorf("the refusal changed the log: %d %+v", code, v)
		}
	})
}

// verified is what `firebreak audit verify --json` says of a log.
type verified struct {
	OK         bool
	Error      *struct{ File, What string }
	Unsigned   int64
	Records    uint64
	KeyOutside bool `json:"key_outside"`
}

// audit verifies one log with the program, as an auditor would, without a server.
func (w *world) audit(t *testing.T, dir string, args ...string) (verified, int) {
	t.Helper()
	stdout, stderr, code := w.cli(append([]string{"audit", "verify", dir, "--json"}, args...)...)
	var out struct{ Logs []verified }
	if err := json.Unmarshal([]byte(stdout), &out); err != nil || len(out.Logs) != 1 {
		t.Fatalf("audit verify: %d %v\n%s%s", code, err, stdout, stderr)
	}
	return out.Logs[0], code
}

// rejects checks that a forgery is found, with the exit code that says so, and that
// the place is named.
func (w *world) rejects(t *testing.T, dir string, args ...string) {
	t.Helper()
	v, code := w.audit(t, dir, args...)
	if code != 1 || v.OK || v.Error == nil {
		t.Errorf("%v: exit code %d, %d records, ok %v", args[2:], code, v.Records, v.OK)
		return
	}
	if v.Error.What == "" || v.Error.File == "" {
		t.Errorf("no place is named: %+v", *v.Error)
	}
}

// putAside copies the log of the running server and returns its public key.
func (w *world) putAside(t *testing.T, to string) (key string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(w.evidence()), "key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	key = strings.TrimSpace(string(b))
	copied := func() error {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		text, err := audit.ReadCheckpoint(w.evidence())
		if err == nil {
			err = os.CopyFS(to, os.DirFS(w.evidence()))
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, "checkpoint"), text, 0o600)
		}
		var rep audit.Report
		if err == nil {
			rep, err = audit.VerifyLog(to, audit.VerifyOptions{Key: key})
		}
		if err == nil && (rep.Signed < 5 || rep.Unsigned() != 0) {
			err = fmt.Errorf("%d of %d records are signed", rep.Signed, rep.Records)
		}
		return err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := copied()
		if err == nil {
			return key
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// steal copies a log and takes its one segment apart.
func steal(t *testing.T, log, old string) *forged {
	t.Helper()
	f := &forged{dir: filepath.Join(t.TempDir(), filepath.Base(log)), old: old}
	if err := os.CopyFS(f.dir, os.DirFS(log)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(f.segment())
	if err != nil {
		t.Fatal(err)
	}
	f.header, data = data[:52], data[52:]
	for len(data) > 40 {
		n := 40 + int(binary.BigEndian.Uint32(data))
		if n == 40 {
			break // room for more
		}
		f.frames, data = append(f.frames, bytes.Clone(data[:n])), data[n:]
	}
	if len(f.frames) < 10 {
		t.Fatalf("%d records", len(f.frames))
	}
	return f
}

func (f *forged) segment() string { return filepath.Join(f.dir, "00000000000000000001.log") }

// write puts the segment together again.
func (f *forged) write(t *testing.T) {
	t.Helper()
	if f.header == nil {
		return
	}
	if err := os.WriteFile(f.segment(), bytes.Join(append([][]byte{f.header}, f.frames...), nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// mend gives every record its place in the chain and its checksum, as the format
// is documented.
func (f *forged) mend() {
	prev := bytes.Clone(f.header[16:48])
	for i, frame := range f.frames {
		payload := frame[40:]
		binary.BigEndian.PutUint64(payload[1:], uint64(i+1))
		h := sha256.Sum256(append(append([]byte("firebreak audit chain v1\n"), prev...), payload...))
		prev = h[:]
		copy(frame[8:40], h[:])
		sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
		sum.Write(frame[:4])
		sum.Write(frame[8:])
		binary.BigEndian.PutUint32(frame[4:], sum.Sum32())
	}
}

// find is the first record that mentions an action.
func (f *forged) find(t *testing.T, action string) int {
	t.Helper()
	for i, frame := range f.frames {
		if bytes.Contains(frame, []byte(action)) {
			return i
		}
	}
	t.Fatalf("no record of %s", action)
	return 0
}

// edit changes a line of the checkpoint.
func (f *forged) edit(t *testing.T, line int, text string) {
	t.Helper()
	path := filepath.Join(f.dir, "checkpoint")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	lines[line] = text
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sign writes a checkpoint that a key of the forger's signed, under the log's name
// for its own.
func (f *forged) sign(t *testing.T, change func(audit.Checkpoint) audit.Checkpoint) {
	t.Helper()
	raw, err := audit.ReadCheckpoint(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	text, signature, _ := strings.Cut(string(raw), "\n\n")
	c, err := audit.ParseCheckpoint(text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	private, public, err := note.GenerateKey(rand.Reader, strings.Fields(signature)[1])
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := note.Sign(&note.Note{Text: change(c).Text()}, signer)
	if err == nil {
		err = os.WriteFile(filepath.Join(f.dir, "checkpoint"), signed, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(filepath.Dir(f.dir), "key.pub"), []byte(public+"\n"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// replace puts the old copy in the log's place.
func (f *forged) replace(t *testing.T) {
	t.Helper()
	err := os.RemoveAll(f.dir)
	if err == nil {
		err = os.CopyFS(f.dir, os.DirFS(f.old))
	}
	if err != nil {
		t.Fatal(err)
	}
	f.header = nil
}
