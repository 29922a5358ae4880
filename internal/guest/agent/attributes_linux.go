package agent

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/guest"
)

// maxAttributes bounds what is read of one file: its names, and each value.
const maxAttributes = 8 << 10

// attributes returns those of the file or directory p that have our prefix, without
// it; nil where there are none, or cannot be.
func attributes(p string) map[string]string {
	n, err := unix.Llistxattr(p, nil)
	if err != nil || n <= 0 || n > maxAttributes {
		return nil
	}
	names := make([]byte, n)
	if n, err = unix.Llistxattr(p, names); err != nil {
		return nil
	}
	var out map[string]string
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		short, ours := strings.CutPrefix(name, guest.AttributePrefix)
		if !ours {
			continue
		}
		value := make([]byte, maxAttributes)
		m, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			continue // gone meanwhile, or too large to be one of ours
		}
		if out == nil {
			out = map[string]string{}
		}
		out[short] = string(value[:m])
	}
	return out
}

// setAttributes gives a new file its attributes.
func setAttributes(fd int, a map[string]string) error {
	for name, value := range a {
		if err := unix.Fsetxattr(fd, guest.AttributePrefix+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}
