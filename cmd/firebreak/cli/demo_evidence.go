package cli

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// witnessed is what the demo puts aside while the log is being written, as anybody
// can who does not want to believe it later.
type witnessed struct {
	key string // the log's public key
	dir string // the log as it was, with its checkpoint
}

// putAside remembers the public key and copies the log as it is now, once
// something of it is signed.
func (d *demo) putAside(dir string) error {
	key, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "key.pub"))
	if err != nil {
		return sandbox.Wrap("demo", "", err)
	}
	d.aside.key = strings.TrimSpace(string(key))
	if d.aside.dir, err = os.MkdirTemp("", "firebreak-demo-"); err != nil {
		return sandbox.Wrap("demo", "", err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var rep audit.Report
		err := copyLog(d.aside.dir, dir)
		if err == nil {
			rep, err = audit.VerifyLog(d.aside.dir, audit.VerifyOptions{Key: d.aside.key})
		}
		if err == nil && rep.Signed > 0 && rep.Unsigned() == 0 || time.Now().After(end) {
			return sandbox.Wrap("demo", "", err)
		}
		// Copied while it was written, or before it was signed: again.
		if err := os.RemoveAll(d.aside.dir); err != nil {
			return sandbox.Wrap("demo", "", err)
		}
	}
}

// copyLog copies a log: the checkpoint first, so that the records it covers are
// in the copy.
func copyLog(to, dir string) error {
	text, err := audit.ReadCheckpoint(dir)
	if err == nil {
		err = os.CopyFS(to, os.DirFS(dir))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "checkpoint"), text, 0o600)
	}
	return err
}

// checkLog verifies the evidence in dir with the key put aside, then damages
// copies of it: each must be rejected, and the place named.
func (d *demo) checkLog(dir string) error {
	sc := d.open("audit", "The audit log: is every record there, and is a change noticed?")
	start := time.Now()
	rep, err := audit.VerifyLog(dir, audit.VerifyOptions{Key: d.aside.key})
	took := time.Since(start)
	if err != nil {
		d.note(sc, found(false, "audit log", "%v", err))
		return nil
	}
	name, _, _ := strings.Cut(rep.Key, "+")
	d.note(sc,
		found(rep.Records > 0 && rep.Signed == int64(rep.Records), "audit log", "%d records, %d signed, verified in %.1f ms", rep.Records, rep.Signed, float64(took.Microseconds())/1000),
		found(rep.Root != "" && rep.KeyOutside, "signature", "root %.20s.. by %s", rep.Root, name))
	newest, err := audit.ReadCheckpoint(dir)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		control string
		from    string // the log that is changed
		pinned  []byte
		change  func(dir string) (string, error)
	}{
		{"a changed byte", dir, nil, flipByte},
		{"a removed record", dir, nil, dropRecord},
		{"a cut end", dir, nil, cutEnd},
		{"a forger's key", dir, nil, signAnew},
		{"an old copy", d.aside.dir, newest, func(dir string) (string, error) { return "the log of a few seconds ago", nil }},
	} {
		f, err := d.tamper(c.from, c.control, c.pinned, c.change)
		if err != nil {
			return err
		}
		d.note(sc, f)
	}
	return nil
}

// tamper changes a copy of the log in dir and has it verified.
func (d *demo) tamper(dir, control string, pinned []byte, change func(dir string) (string, error)) (finding, error) {
	parent, err := os.MkdirTemp("", "firebreak-demo-")
	if err != nil {
		return finding{}, sandbox.Wrap("demo", "", err)
	}
	defer os.RemoveAll(parent)
	log, what := filepath.Join(parent, "log"), ""
	if err = os.CopyFS(log, os.DirFS(dir)); err == nil {
		what, err = change(log)
	}
	if err != nil {
		return finding{}, sandbox.Wrap("demo", "", err)
	}
	rep, err := audit.VerifyLog(log, audit.VerifyOptions{Key: d.aside.key, From: pinned})
	var bad *audit.EvidenceError
	switch {
	case err == nil:
		return found(false, control, "%s: %d records verify as if nothing had happened", what, rep.Records), nil
	case !errors.As(err, &bad):
		return finding{}, sandbox.Wrap("demo", "", err)
	}
	where := bad.File
	if bad.Position != 0 {
		where = fmt.Sprintf("record %d, byte %d", bad.Position, bad.Offset)
	}
	return found(where != "", control, "%s: rejected at %s: %s", what, where, bad.What), nil
}

// segment reads the newest segment of a log and where in it its records are.
func segment(dir string) (path string, data []byte, frames [][2]int, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(names) == 0 {
		return "", nil, nil, fmt.Errorf("no segment in %s: %w", dir, err)
	}
	path = names[len(names)-1]
	if data, err = os.ReadFile(path); err != nil {
		return "", nil, nil, err
	}
	const header, head = 52, 40 // of a segment, of a frame: see package audit
	for at := header; at+head <= len(data); {
		n := int(binary.BigEndian.Uint32(data[at:]))
		if n == 0 || at+head+n > len(data) {
			break
		}
		frames = append(frames, [2]int{at, at + head + n})
		at += head + n
	}
	if len(frames) < 3 {
		return "", nil, nil, fmt.Errorf("%d records in %s", len(frames), path)
	}
	return path, data, frames, nil
}

// flipByte inverts a byte of the record in the middle.
func flipByte(dir string) (string, error) {
	path, data, frames, err := segment(dir)
	if err != nil {
		return "", err
	}
	f := frames[len(frames)/2]
	at := (f[0] + f[1]) / 2
	data[at] ^= 0xff
	return fmt.Sprintf("byte %d", at), os.WriteFile(path, data, 0o600)
}

// dropRecord takes out the record in the middle.
func dropRecord(dir string) (string, error) {
	path, data, frames, err := segment(dir)
	if err != nil {
		return "", err
	}
	n := len(frames) / 2
	return fmt.Sprintf("the %dth", n+1), os.WriteFile(path, append(data[:frames[n][0]:frames[n][0]], data[frames[n][1]:]...), 0o600)
}

// cutEnd takes away the newest record.
func cutEnd(dir string) (string, error) {
	path, data, frames, err := segment(dir)
	if err != nil {
		return "", err
	}
	return "the last record", os.WriteFile(path, data[:frames[len(frames)-1][0]], 0o600)
}

// signAnew signs the log's own checkpoint with a key that is not the log's, under
// the same name, and puts the public half where the log's lies.
func signAnew(dir string) (string, error) {
	path := filepath.Join(dir, "checkpoint")
	old, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	text, signature, _ := bytes.Cut(old, []byte("\n\n"))
	name := strings.Fields(string(signature))[1]
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return "", err
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return "", err
	}
	signed, err := note.Sign(&note.Note{Text: string(text) + "\n"}, signer)
	if err == nil {
		err = os.WriteFile(path, signed, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(filepath.Dir(dir), "key.pub"), []byte(public+"\n"), 0o644)
	}
	return "signed anew", err
}
