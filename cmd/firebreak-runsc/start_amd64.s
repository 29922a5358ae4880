#include "textflag.h"

// Capability sets as bit masks. What the program would itself end with:
// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER and FSETID, and SYS_PTRACE for
// the sentry or SYS_CHROOT for the gofer.
#define BOUNDING_SENTRY $0x8001f
#define BOUNDING_GOFER $0x4001f
#define CAP_SETPCAP $0x100
#define CAP_SYS_ADMIN $0x200000

#define SYS_GETEUID $107
#define SYS_CAPGET $125
#define SYS_CAPSET $126
#define SYS_PRCTL $157
#define PR_CAPBSET_DROP $24

// struct __user_cap_header_struct: version 3, this thread.
DATA caphdr<>+0(SB)/4, $0x20080522
DATA caphdr<>+4(SB)/4, $0
GLOBL caphdr<>(SB), NOPTR, $8

// struct __user_cap_data_struct[2]: effective, permitted, inheritable.
GLOBL capdata<>(SB), NOPTR, $24

// func start()
TEXT ·start(SB),NOSPLIT|NOFRAME,$0
	// As the kernel leaves it: argc at 0(SP), argv[0] at 8(SP).
	MOVQ 8(SP), R8
	TESTQ R8, R8
	JZ   run
	// argv[0] is "runsc-sandbox" or "runsc-gofer"?
	CMPB 0(R8), $'r'
	JNE  run
	CMPB 1(R8), $'u'
	JNE  run
	CMPB 2(R8), $'n'
	JNE  run
	CMPB 3(R8), $'s'
	JNE  run
	CMPB 4(R8), $'c'
	JNE  run
	CMPB 5(R8), $'-'
	JNE  run
	MOVQ BOUNDING_SENTRY, R9
	CMPB 6(R8), $'s'
	JEQ  known
	MOVQ BOUNDING_GOFER, R9
	CMPB 6(R8), $'g'
	JNE  run
known:
	// Rootless processes get their capabilities in another way, with a
	// second exec. They are left alone.
	MOVQ SYS_GETEUID, AX
	SYSCALL
	TESTQ AX, AX
	JNZ  run

	// SYS_ADMIN becomes inheritable: that, not the bounding set, gives it to
	// the child that unmounts /proc. It ends with the program's own capset.
	MOVQ SYS_CAPGET, AX
	LEAQ caphdr<>(SB), DI
	LEAQ capdata<>(SB), SI
	SYSCALL
	TESTQ AX, AX
	JNZ  run
	ORL  CAP_SYS_ADMIN, capdata<>+8(SB)
	MOVQ SYS_CAPSET, AX
	LEAQ caphdr<>(SB), DI
	LEAQ capdata<>(SB), SI
	SYSCALL
	TESTQ AX, AX
	JNZ  run

	XORQ R12, R12
next:
	BTQ  R12, R9
	JCS  skip
	MOVQ SYS_PRCTL, AX
	MOVQ PR_CAPBSET_DROP, DI
	MOVQ R12, SI
	XORQ DX, DX
	XORQ R10, R10
	XORQ R8, R8
	SYSCALL
	CMPQ AX, $-22 // EINVAL: beyond the last capability there is
	JEQ  skip
	TESTQ AX, AX
	JNZ  run
skip:
	INCQ R12
	CMPQ R12, $64
	JLT  next

	// Without an effective SETPCAP the program knows that it has nothing left
	// to drop. Only now: had any step failed, it would do all of it itself.
	MOVL CAP_SETPCAP, AX
	NOTL AX
	ANDL AX, capdata<>+0(SB)
	MOVQ SYS_CAPSET, AX
	LEAQ caphdr<>(SB), DI
	LEAQ capdata<>(SB), SI
	SYSCALL
run:
	XORQ DX, DX
	JMP  _rt0_amd64_linux(SB)
