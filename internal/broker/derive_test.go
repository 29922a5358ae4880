package broker

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestDerive: the same for every server with the key, another one for each label and
// key, and nothing of the key.
func TestDerive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	first, err := New(dir, nil).Derive("authority")
	if err != nil || len(first) != derived {
		t.Fatal(len(first), err)
	}
	again, err := New(dir, nil).Derive("authority")
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("another one after a restart: %v", err)
	}
	clear(again) // the caller's
	if once, err := New(dir, nil).Derive("authority"); err != nil || !bytes.Equal(first, once) {
		t.Errorf("what a caller has overwritten is gone: %v", err)
	}
	if other, err := New(dir, nil).Derive("another"); err != nil || bytes.Equal(first, other) {
		t.Errorf("the same for another label: %v", err)
	}
	if other, err := New(filepath.Join(t.TempDir(), "secrets"), nil).Derive("authority"); err != nil || bytes.Equal(first, other) {
		t.Errorf("the same for another key: %v", err)
	}
	path := filepath.Join(dir, keyName)
	text, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(text), fmt.Sprintf("%x", first)) || strings.Contains(string(text), string(first)) {
		t.Errorf("what is derived is written down: %v", err)
	}
	// The first key counts, and one that is added does not.
	more := filepath.Join(t.TempDir(), "secrets")
	if _, err := New(more, nil).Derive("authority"); err != nil {
		t.Fatal(err)
	}
	added, err := os.ReadFile(filepath.Join(more, keyName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, added...), 0o600); err != nil {
		t.Fatal(err)
	}
	if now, err := New(dir, nil).Derive("authority"); err != nil || !bytes.Equal(first, now) {
		t.Errorf("another one since a key was added: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(dir, nil).Derive("authority"); sandbox.KindOf(err) != sandbox.KindDenied {
		t.Errorf("of a key that others may read: %v", err)
	}
}
