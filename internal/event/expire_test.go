package event

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestExpire: what is old goes unless there is a record of it, ended or not;
// what is young, foreign or somebody's record stays.
func TestExpire(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir, Options{})
	ended, cut, kept, young := sandbox.NewID(), sandbox.NewID(), sandbox.NewID(), sandbox.NewID()
	for _, id := range []sandbox.ID{ended, cut, kept, young} {
		publish(t, h, id, Event{Type: StateChange})
		publish(t, h, id, Event{Type: Stdout, Process: "1", Data: []byte("x"), Final: id == ended})
	}
	foreign := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if err := os.Chtimes(f, now.Add(-2*time.Hour), now.Add(-2*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, h, young, Event{Type: Stdout, Process: "1", Data: []byte("y")}) // one of its two files

	boom := errors.New("boom")
	if _, err := h.Expire(t.Context(), now.Add(-time.Hour), func(context.Context, []sandbox.ID) (map[sandbox.ID]bool, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("when nobody can tell: %v", err)
	}
	known := func(_ context.Context, ids []sandbox.ID) (map[sandbox.ID]bool, error) {
		return map[sandbox.ID]bool{kept: true}, nil
	}
	for range 2 {
		if more, err := h.Expire(t.Context(), now.Add(-time.Hour), known); more || err != nil {
			t.Fatal(more, err)
		}
	}
	for id, want := range map[sandbox.ID]int{ended: 0, cut: 0, kept: 2, young: 2} {
		if files, _ := filepath.Glob(filepath.Join(dir, string(id)+".*")); len(files) != want {
			t.Errorf("%v are left, want %d", files, want)
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	if _, err := h.Publish(cut, Event{Type: StateChange}); err != nil {
		t.Errorf("a sandbox of that name, later: %v", err)
	}
}

// TestExpireIsBounded: one call removes a bounded number.
func TestExpireIsBounded(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir, Options{})
	old := time.Now().Add(-time.Hour)
	for i := range expirePass + 700 {
		path := filepath.Join(dir, fmt.Sprintf("sbz%017d%s", i, eventSuffix))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	none := func(context.Context, []sandbox.ID) (map[sandbox.ID]bool, error) { return nil, nil }
	for _, want := range []bool{true, false} {
		if more, err := h.Expire(t.Context(), old.Add(time.Minute), none); more != want || err != nil {
			t.Fatal(more, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
}
