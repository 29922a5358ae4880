package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// TestCheckpointNeedsNoSpace: once there were two, a checkpoint can be written
// on a disk that has neither a block nor an inode left.
func TestCheckpointNeedsNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not run: needs root")
	}
	mount := memory(t)
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=4m,nr_inodes=100"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(mount, syscall.MNT_DETACH)
	l := open(t, filepath.Join(mount, "log"), Options{Reserve: 1 << 20})
	for range 2 {
		mustRecord(t, l, gate("before"))
		signed(t, l)
	}
	var err error
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(mount, fmt.Sprint(i)), make([]byte, 1<<18), 0o600)
	}
	for i := 1000; ; i++ {
		f, err := os.Create(filepath.Join(mount, fmt.Sprint(i)))
		if err != nil {
			break
		}
		f.Close()
	}
	for range 300 { // over the edge of a tile
		mustRecord(t, l, sandbox.Record{Action: "ends", Outcome: sandbox.OutcomeDone, Class: sandbox.Flow})
	}
	mustRecord(t, l, sandbox.Record{Action: "ends", Outcome: sandbox.OutcomeDone})
	if c := signed(t, l); c.Size != 303 {
		t.Error(c)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
