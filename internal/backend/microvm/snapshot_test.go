//go:build linux

package microvm

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestRestore: try.
func TestRestore(t *testing.T) {
	b := machines(t)
	began := time.Now()
	spec := sandbox.Spec{Instance: sandbox.NewInstanceID(), Root: minimalRoot(t)}
	inst, err := b.Create(patient(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer inst.Destroy(context.Background())
	t.Logf("create %s", time.Since(began))
	began = time.Now()
	snap, err := inst.(sandbox.Snapshotter).Snapshot(patient(t), filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("snapshot %s: %+v", time.Since(began), snap)
	for range 3 {
		spec.Instance = sandbox.NewInstanceID()
		began = time.Now()
		y, err := b.Restore(patient(t), spec, snap)
		if err != nil {
			t.Fatal(err)
		}
		defer y.Destroy(context.Background())
		t.Logf("restore %s", time.Since(began))
		conn, err := y.Dial(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		s, err := guest.Open(patient(t), conn, guest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("session %s", time.Since(began))
		t.Log(probeAs(t, s, "", "read", "/proc/sys/kernel/random/boot_id"))
		t.Logf("probe %s", time.Since(began))
		s.Close()
	}
}
