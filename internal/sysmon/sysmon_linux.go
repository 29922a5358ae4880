package sysmon

import (
	"syscall"
)

// slack is what the monitor's naps may be put off by, in nanoseconds. It looks for
// goroutines that ran for 10 ms, and sleeps as long by itself when there is nothing to do.
// With twice as much a guest that sleeps for a millisecond sleeps for half of one longer,
// and nothing more is saved.
const slack = "1000000"

// init comes before that of most packages, since this one imports next to nothing. It
// is best effort: without it everything works, at its price.
func init() {
	tid := second()
	if tid == 0 {
		return
	}
	fd, err := syscall.Open("/proc/"+decimal(tid)+"/timerslack_ns", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_, _ = syscall.Write(fd, []byte(slack))
	_ = syscall.Close(fd)
}

// second is the second thread of this process, which the runtime starts before all
// others and before any goroutine but the first: the monitor. Where ids of threads have
// begun anew in between it may be another one. 0: cannot tell.
func second() (tid int) {
	fd, err := syscall.Open("/proc/self/task", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer syscall.Close(fd)
	buf := make([]byte, 4096)
	n, err := syscall.ReadDirent(fd, buf)
	if err != nil {
		return 0
	}
	_, _, names := syscall.ParseDirent(buf[:n], -1, nil)
	first, second := 0, 0
	for _, name := range names {
		switch id := number(name); {
		case id == 0:
		case first == 0 || id < first:
			first, second = id, first
		case second == 0 || id < second:
			second = id
		}
	}
	return second
}

// number and decimal are strconv's, which is initialised later.
func number(s string) (n int) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0
		}
		n = 10*n + int(c-'0')
	}
	return n
}

func decimal(n int) string {
	var b [20]byte
	k := len(b)
	for ; n > 0; n /= 10 {
		k--
		b[k] = byte('0' + n%10)
	}
	return string(b[k:])
}
