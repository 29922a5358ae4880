package control

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// foreignCalls: there is one table of calls.
var foreignCalls block

var (
	freeHere  []uint32
	fatalHere = []uint32{unix.SYS_KEXEC_FILE_LOAD}
	pathsHere = []uint32{unix.SYS_FSTATAT}
)
