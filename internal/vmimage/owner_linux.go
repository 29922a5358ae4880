package vmimage

import (
	"io/fs"
	"syscall"
)

func owner(fi fs.FileInfo) (uid, gid uint32) {
	st := fi.Sys().(*syscall.Stat_t) // of an lstat
	return st.Uid, st.Gid
}

func identity(fi fs.FileInfo) (inode, uint64) {
	st := fi.Sys().(*syscall.Stat_t)
	return inode{uint64(st.Dev), st.Ino}, uint64(st.Nlink)
}
