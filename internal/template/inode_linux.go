package template

import (
	"fmt"
	"io/fs"
	"syscall"
)

// appendInode appends what the file system says of a file, times of access
// excepted.
func appendInode(b []byte, st fs.FileInfo) []byte {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Appendf(b, " %v %d %d\n", st.Mode(), st.Size(), st.ModTime().UnixNano())
	}
	return fmt.Appendf(b, " %o %d %d %d %d %d %d\n", s.Mode, s.Uid, s.Gid, s.Size, s.Ino, s.Mtim.Nano(), s.Ctim.Nano())
}
