//go:build !linux

package template

import (
	"fmt"
	"io/fs"
)

// appendInode appends what the file system says of a file.
func appendInode(b []byte, st fs.FileInfo) []byte {
	return fmt.Appendf(b, " %v %d %d\n", st.Mode(), st.Size(), st.ModTime().UnixNano())
}
