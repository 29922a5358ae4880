package egress

import "os"

// checkTap reports why a file is not a TAP as Attach wants it.
func checkTap(tap *os.File) error {
	_, err := tap.Stat()
	return err
}
