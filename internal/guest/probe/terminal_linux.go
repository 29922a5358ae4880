package probe

import (
	"errors"
	"os"
	"os/signal"
	"strconv"

	"golang.org/x/sys/unix"
)

// terminal says what it has as a terminal: the same one three times, which
// controls its session.
func terminal(a []string) error {
	times := 0
	if len(a) > 0 {
		var err error
		if times, err = strconv.Atoi(a[0]); err != nil {
			return err
		}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	var st [3]unix.Stat_t
	for fd := range st {
		if err := unix.Fstat(fd, &st[fd]); err != nil {
			return err
		}
		if st[fd].Rdev != st[0].Rdev {
			return errors.New("the standard streams are not one terminal")
		}
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	if int(st[0].Uid) != os.Getuid() {
		return errors.New("the terminal belongs to " + strconv.Itoa(int(st[0].Uid)))
	}
	for ; ; times-- {
		w, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		say(strconv.Itoa(int(w.Col)) + "x" + strconv.Itoa(int(w.Row)) + " " + os.Getenv("TERM"))
		if times == 0 {
			return nil
		}
		<-changed
	}
}

// allTerminals takes what terminals it can get.
func allTerminals([]string) error {
	for n := 0; ; n++ {
		if _, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
			say("full " + strconv.Itoa(n) + " " + err.Error())
			return hold()
		}
	}
}

func say(line string) { _, _ = os.Stdout.WriteString(line + "\n") }

// ignoreHangup says when its terminal hangs up, and stays.
func ignoreHangup([]string) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	say("ready")
	for range hangup {
		say("SIGHUP")
	}
	return nil
}
