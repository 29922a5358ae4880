package probe

// forkSleepers makes up to n children that sleep for ever and returns how many
// it made. forkBomb forks for ever, children in sessions of their own forking
// too.
//
// They are written in assembly so that neither parent nor child touches memory:
// what is counted is tasks. A Go program that forks would copy, on gVisor, a few
// megabytes for each child and meet the memory limit first, which no shell's
// fork bomb does.
//
//go:noescape
func forkSleepers(n uintptr) (made uintptr)

//go:noescape
func forkBomb()
