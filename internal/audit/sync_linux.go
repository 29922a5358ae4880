package audit

import (
	"errors"
	"os"
	"syscall"
)

// dataFile is an *os.File whose Sync leaves out what reading back does not
// need, such as times.
type dataFile struct{ *os.File }

// Sync implements file.
func (f dataFile) Sync() error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
