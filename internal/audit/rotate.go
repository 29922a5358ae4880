package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ActionRotate is the action of the record that a rotation of the key ends with.
const ActionRotate = "audit.rotate"

// nextName holds the private key that a rotation is about to install.
const nextName = "rotate.key"

// RotationName is the file, in a log's directory, of the checkpoint that the
// old and the new key have both signed, for the rotation recorded at p.
func RotationName(p sandbox.Position) string {
	return filepath.Join(rotateDir, fmt.Sprintf("%020d", p))
}

// Rotate replaces the key that signs this log, and all logs of its data
// directory, by a new one and returns the new public key. That is recorded, and
// the checkpoint whose last record says so is signed by both keys: whoever
// trusts the old one can follow. The old private key is gone then.
//
// Another process that has a log of the same data directory open goes on with
// the old key until it is restarted.
//
// Interrupted anywhere, it is finished by Open, or by calling it again; unless it
// was not recorded yet: then nothing has happened. Errors: those of Record and
// Checkpoint; KindConflict when another log's rotation has replaced the key
// since this one was opened.
func (l *Log) Rotate(ctx context.Context, principal string) (public string, err error) {
	const op = "rotate signing key"
	l.rotating.Lock()
	defer l.rotating.Unlock()
	old, err := readKey(l.o.KeyFile)
	if err != nil {
		return "", sandbox.Wrap(op, "", err)
	}
	if old.public != l.PublicKey() {
		return "", sandbox.Errorf(op, sandbox.KindConflict, "the key was rotated already, by another process").WithHint("restart this one first")
	}
	// What an earlier call had recorded may not be on disk yet.
	if err := l.durable(ctx); err != nil {
		return "", sandbox.Wrap(op, "", err)
	}
	h, err := findHandover(l.dir, old)
	if err != nil {
		return "", sandbox.Wrap(op, "", err)
	}
	if h.at == 0 {
		if h.next, err = newKey(); err == nil {
			err = replaceFile(filepath.Join(l.dir, nextName), []byte(h.next.secret+"\n"), 0o600)
		}
		if err != nil {
			return "", sandbox.Wrap(op, "", err)
		}
		failpoint.Hit("audit/rotate-made")
		if h.at, err = l.Record(ctx, sandbox.Record{
			Class: sandbox.Gate, Tenant: sandbox.DefaultTenant, Principal: principal, Action: ActionRotate, Outcome: sandbox.OutcomeAllowed,
			Detail: map[string]string{"from": old.public, "to": h.next.public},
		}); err != nil {
			return "", err // whether it was recorded is found out by whoever goes on
		}
		failpoint.Hit("audit/rotate-recorded")
	}
	if err := h.sign(l.dir, l.notary.origin, old); err != nil {
		return "", sandbox.Wrap(op, "", err)
	}
	if err := h.next.install(l.o.KeyFile, old); err != nil {
		return "", sandbox.Wrap(op, "", err)
	}
	failpoint.Hit("audit/rotate-installed")
	l.notary.mu.Lock()
	l.notary.next = h.next
	l.notary.mu.Unlock()
	l.mu.Lock()
	l.public = h.next.public
	l.mu.Unlock()
	if _, err := l.Checkpoint(ctx); err != nil {
		return h.next.public, sandbox.Wrap(op, "", err)
	}
	return h.next.public, sandbox.Wrap(op, "", os.Remove(filepath.Join(l.dir, nextName)))
}

// durable waits until everything that was accepted so far is durable.
func (l *Log) durable(ctx context.Context) error {
	l.mu.Lock()
	last := l.next - 1
	l.mu.Unlock()
	for l.Head().Position < last {
		l.mu.Lock()
		err := l.refused
		l.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// handover is a rotation under way.
type handover struct {
	next *key             // nil: there is none
	at   sandbox.Position // of the record that tells of it; 0: none does
}

// findHandover looks for a rotation of the log in dir that was interrupted: k
// is its key, before or after. It reads the log only where there was one.
func findHandover(dir string, k *key) (h handover, err error) {
	h.next, err = readKey(filepath.Join(dir, nextName))
	if errors.Is(err, fs.ErrNotExist) {
		return handover{}, nil
	}
	if err != nil {
		return handover{}, err
	}
	for e, err := range Scan(dir, 1) {
		if err != nil {
			return handover{}, err
		}
		if e.Record.Action == ActionRotate && e.Record.Detail["to"] == h.next.public {
			h.at = e.Position
		}
	}
	return h, nil
}

// sign has both keys sign the log up to the record of the rotation.
func (h handover) sign(dir, origin string, old *key) error {
	root, err := tlog.TreeHash(int64(h.at), &hashes{dir: dir, size: int64(h.at), recompute: true})
	if err != nil {
		return err
	}
	c := Checkpoint{origin, int64(h.at), root}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, old.signer, h.next.signer)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, rotateDir), 0o700); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, RotationName(h.at)), msg, 0o600); err != nil {
		return err
	}
	failpoint.Hit("audit/rotate-signed")
	return nil
}

// finish ends an interrupted rotation, and returns the key to go on with.
func (h handover) finish(dir, origin, path string, k *key) (*key, error) {
	if h.next == nil {
		return k, nil
	}
	if h.at > 0 && h.next.public != k.public {
		if err := h.sign(dir, origin, k); err != nil {
			return nil, err
		}
		if err := h.next.install(path, k); err != nil {
			return nil, err
		}
	}
	if h.at > 0 {
		k = h.next
	}
	return k, os.Remove(filepath.Join(dir, nextName))
}

// install makes k the key of the data directory, after old.
func (k *key) install(path string, old *key) error {
	had, err := readBounded(formerPath(path), maxKeyFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if line := []byte(old.public + "\n"); !bytes.Contains(had, line) {
		if err := replaceFile(formerPath(path), append(had, line...), 0o644); err != nil {
			return err
		}
	}
	failpoint.Hit("audit/rotate-remembered")
	if err := replaceFile(path, []byte(k.secret+"\n"), 0o600); err != nil {
		return err
	}
	failpoint.Hit("audit/rotate-replaced")
	return k.publish(path)
}
