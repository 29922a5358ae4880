package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// person sits at a terminal in which the program runs.
type person struct {
	t       *testing.T
	cmd     *exec.Cmd
	master  *os.File
	replica *os.File
	before  unix.Termios
	ended   chan struct{} // the program has

	mu     sync.Mutex
	shown  []byte        // guarded by mu
	seen   int           // guarded by mu; what expect is done with
	more   chan struct{} // guarded by mu; closed at the next output
	answer time.Duration // how long the terminal takes to answer questions; 0: it does not
}

// sit starts firebreak with args in a terminal of 100 columns and 30 rows.
func (w *world) sit(t *testing.T, answer time.Duration, args ...string) *person {
	t.Helper()
	p := &person{t: t, ended: make(chan struct{}), more: make(chan struct{}), answer: answer}
	var err error
	if p.master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Skipf("not run: no terminals here: %v", err)
	}
	fd := int(p.master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if p.replica, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	p.resize(100, 30)
	p.before = p.modes()
	p.cmd = w.command(args...)
	p.cmd.Env = append(p.cmd.Env, "TERM=xterm")
	own, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = own, own, own
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	own.Close()
	read := make(chan struct{})
	go func() { defer close(read); p.read() }()
	go func() { defer close(p.ended); p.cmd.Wait() }()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.ended
		p.replica.Close()
		<-read // end of file: nobody has the terminal
		p.master.Close()
		if t.Failed() {
			t.Logf("the terminal showed %q", p.screen())
		}
	})
	return p
}

var (
	question = regexp.MustCompile(`\x1b\[6n`)
	jump     = regexp.MustCompile(`\x1b\[(\d+);(\d+)H\x1b\[6n`)
)

// read shows what comes, and answers what asks where the cursor is.
func (p *person) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := p.master.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.shown = append(p.shown, buf[:n]...)
		close(p.more)
		p.more = make(chan struct{})
		p.mu.Unlock()
		if p.answer == 0 {
			continue
		}
		answers := bytes.Repeat([]byte("\x1b[1;1R"), len(question.FindAll(buf[:n], -1)))
		if m := jump.FindSubmatch(buf[:n]); m != nil {
			answers = append(answers, "\x1b["+string(m[1])+";"+string(m[2])+"R"...)
		}
		if len(answers) > 0 {
			time.Sleep(p.answer)
			p.master.Write(answers)
		}
	}
}

// screen is all that was shown so far.
func (p *person) screen() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.shown)
}

func (p *person) resize(cols, rows uint16) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) modes() unix.Termios {
	p.t.Helper()
	m, err := unix.IoctlGetTermios(int(p.replica.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return *m
}

func (p *person) types(keys string) {
	p.t.Helper()
	if _, err := p.master.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// expect waits until text is shown, behind what was expected before, and returns
// what came up to its end.
func (p *person) expect(text string) string {
	p.t.Helper()
	late := time.After(time.Minute)
	for {
		p.mu.Lock()
		i := bytes.Index(p.shown[p.seen:], []byte(text))
		if i >= 0 {
			got := string(p.shown[p.seen : p.seen+i+len(text)])
			p.seen += i + len(text)
			p.mu.Unlock()
			return got
		}
		more, left := p.more, string(p.shown[p.seen:])
		p.mu.Unlock()
		select {
		case <-more:
		case <-late:
			p.t.Fatalf("%q is not shown; but %q", text, left)
		}
	}
}

// code waits for the end, and checks that the terminal is as it was and that
// nothing is waiting in it to be read by a shell.
func (p *person) code() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(time.Minute):
		p.t.Fatal("it does not end")
	}
	if after := p.modes(); !reflect.DeepEqual(after, p.before) {
		p.t.Errorf("the terminal's modes are %+v, were %+v", after, p.before)
	}
	time.Sleep(p.answer * 3) // what a slow terminal still says
	raw := p.before
	raw.Lflag &^= unix.ICANON
	if err := unix.IoctlSetTermios(int(p.replica.Fd()), unix.TCSETS, &raw); err != nil {
		p.t.Fatal(err)
	}
	buf := make([]byte, 1000)
	if n, err := unix.Read(int(p.replica.Fd()), buf); err == nil && n > 0 {
		p.t.Errorf("whoever reads the terminal next gets %q", buf[:n])
	}
	return p.cmd.ProcessState.ExitCode()
}

// TestShell: a terminal like any other.
func TestShell(t *testing.T) {
	s := newWorld(t).serve()
	id := s.sandbox()
	p := s.sit(t, 0, "shell", "-e", "PS1=% ", id, "--", "sh", "-i")
	p.expect("% ")
	p.types("stty size; echo $TERM; id -un; tty\r")
	p.expect("30 100\r\nxterm\r\nuser\r\n/dev/pts/")
	p.resize(133, 50)
	for size := ""; size != "50 133"; { // when it arrives is the kernel's and the net's affair
		p.types("stty size\r")
		p.expect("stty size\r\n")
		size = strings.TrimSpace(strings.TrimSuffix(p.expect("%"), "%"))
	}
	p.types("sh -c 'echo up; exec sleep 1000'\r")
	p.expect("up\r\n")           // what is typed before it has the terminal is the shell's
	p.types("typed ahead\r\x03") // and nobody reads it
	p.expect("% ")
	p.types("cat\rhello\r")
	p.expect("hello\r\nhello\r\n")
	p.types("\x04") // the end of file, of cat
	p.expect("% ")
	p.types("echo a~b; exit 7\r")
	p.expect("a~b\r\n")
	if c := p.code(); c != 7 {
		t.Errorf("exit code %d", c)
	}

	p = s.sit(t, 0, "shell", "--user", "nobody", "--cwd", "/tmp", id, "--", "sh", "-c", "id -un; pwd; sleep 1000")
	p.expect("nobody\r\n/tmp\r\n")
	for ended := false; !ended; { // a person would try again, too
		p.types("\x03")
		select {
		case <-p.ended:
			ended = true
		case <-time.After(5 * time.Second):
		}
	}
	if c := p.code(); c != 130 {
		t.Errorf("^C: exit code %d", c)
	}
	p = s.sit(t, 0, "shell", id, "--", "no-such-program")
	p.expect("no program")
	if c := p.code(); c != 127 {
		t.Errorf("no program: exit code %d", c)
	}
	p = s.sit(t, 0, "shell", id)
	p.expect("$ ")
	p.types("exit\r")
	if c := p.code(); c != 0 {
		t.Errorf("the shell of the sandbox: exit code %d", c)
	}
}

// TestShellPiped: without a terminal here there is none there, and the rest works.
func TestShellPiped(t *testing.T) {
	s := newWorld(t).serve()
	id := s.sandbox()
	r := s.run("tty; echo out; echo err >&2; exit 5\n", "shell", id, "--", "sh")
	if r.stdout != "not a tty\nout\n" || r.stderr != "err\n" || r.code != 5 {
		t.Errorf("%+v", r)
	}
	if r := s.run("", "shell", id, "--", "cat"); r.code != 0 || r.stdout != "" {
		t.Errorf("no input: %+v", r)
	}
	if r := s.run(strings.Repeat("x", 65<<20), "shell", id, "--", "sleep", "1000"); r.code != 125 || !strings.Contains(r.stderr, "64 MiB") {
		t.Errorf("more than a process gets: %+v", r)
	}
	for _, args := range [][]string{{"shell", id, "ls"}, {"shell", id, "x", "--", "ls"}, {"shell", "--escape", "ab", id}, {"shell", "--memory", "64MiB", id}, {"shell", "--cpus", "0"}} {
		if r := s.run("", args...); r.code != 2 || !strings.Contains(r.stderr, "hint:") {
			t.Errorf("%q: %+v", args, r)
		}
	}
}

// TestShellDetached: what was left to itself, by its person, by a terminal that
// was closed with kill -9, is there to be taken up again, with what it showed.
func TestShellDetached(t *testing.T) {
	s := newWorld(t).serve()
	id := s.sandbox()
	p := s.sit(t, 0, "shell", "--tag", "sh", "-e", "PS1=% ", id, "--", "sh", "-i")
	p.expect("% ")
	p.types("echo first; x=kept\r")
	p.expect("first\r\n")
	p.expect("% ")
	p.types("\recho =~~=\r~~\x15\r~.") // at the beginning of a line ~~ is ~, here thrown away; then detach
	p.expect("attach " + id)
	if c := p.code(); c != 0 {
		t.Errorf("detach: exit code %d", c)
	}
	p = s.sit(t, 0, "attach", id, "sh")
	p.expect("first\r\n")
	p.expect("=~~=\r\n% ~")
	p.types("\recho $x\r")
	p.expect("kept\r\n")
	p.cmd.Process.Kill() // the client vanishes
	<-p.ended
	watch := s.command("attach", id, "sh") // only to look at
	var out bytes.Buffer
	watch.Stdout = &out
	if err := watch.Start(); err != nil {
		t.Fatal(err)
	}
	p = s.sit(t, 0, "attach", id, "sh")
	p.expect("kept\r\n")
	p.types("\rexit 3\r")
	if c := p.code(); c != 3 {
		t.Errorf("exit code %d", c)
	}
	if watch.Wait(); watch.ProcessState.ExitCode() != 3 || !strings.Contains(out.String(), "kept") {
		t.Errorf("who watched: %v %q", watch.ProcessState, out.String())
	}
}

// TestShellOverServers: the server is killed, the next one goes on: what was shown
// is not shown again, what is typed arrives, the size is right.
func TestShellOverServers(t *testing.T) {
	w := newWorld(t)
	s := w.serve("--stop-sandboxes=false")
	id := s.sandbox()
	p := s.sit(t, 0, "shell", "-e", "PS1=% ", id, "--", "sh", "-i")
	p.expect("% ")
	for i := range 3 {
		p.types("echo life $((40+" + strconv.Itoa(i) + "))\r")
		p.expect("\r\nlife 4" + strconv.Itoa(i) + "\r\n")
		p.expect("% ")
		s.cmd.Process.Kill()
		s.cmd.Wait()
		p.resize(uint16(90+i), 20) // while nobody is there
		s = w.serve("--stop-sandboxes=false")
		for size := ""; size != "20 9"+strconv.Itoa(i); {
			p.types("stty size\r")
			p.expect("stty size\r\n")
			size = strings.TrimSpace(strings.TrimSuffix(p.expect("%"), "%"))
		}
	}
	p.types("exit 4\r")
	if c := p.code(); c != 4 {
		t.Errorf("exit code %d", c)
	}
	for i := range 3 {
		if n := strings.Count(string(p.screen()), "\r\nlife 4"+strconv.Itoa(i)); n != 1 {
			t.Errorf("life %d is shown %d times", i, n)
		}
	}
	if r := s.run("", "rm", id); r.code != 0 {
		t.Errorf("%+v", r)
	}
}

// TestShellEnds: whatever ends under a shell, it ends, says why, and gives the
// terminal back.
func TestShellEnds(t *testing.T) {
	s := newWorld(t).serve()
	sit := func(id string, argv ...string) *person {
		p := s.sit(t, 0, append([]string{"shell", "--tag", "it", id, "--"}, argv...)...)
		p.expect("ready\r\n")
		return p
	}
	holds := []string{"sh", "-c", "echo ready; exec sleep 1000"}
	t.Run("Sandbox", func(t *testing.T) {
		id := s.sandbox()
		p := sit(id, holds...)
		if r := s.run("", "rm", id); r.code != 0 {
			t.Fatalf("%+v", r)
		}
		p.expect("firebreak: ")
		if c := p.code(); c != 137 {
			t.Errorf("exit code %d", c)
		}
	})
	t.Run("Killed", func(t *testing.T) {
		id := s.sandbox()
		p := sit(id, holds...)
		if r := s.run("", "kill", id, "it"); r.code != 0 {
			t.Fatalf("%+v", r)
		}
		p.expect("killed")
		if c := p.code(); c != 137 {
			t.Errorf("exit code %d", c)
		}
	})
	for _, role := range []string{"sentry", "stub"} { // the last stub is the agent

		t.Run("Crash of the "+role, func(t *testing.T) {
			w := newWorld(t)
			s := w.serve()
			id := s.sandbox()
			p := s.sit(t, 0, "shell", "--tag", "it", id, "--", "sh", "-c", "echo ready; exec sleep 1000")
			p.expect("ready\r\n")
			pid := w.process(role)
			if pid == 0 {
				t.Fatal("no such process is recorded")
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.expect("firebreak: the sandbox crashed")
			if c := p.code(); c != 125 {
				t.Errorf("exit code %d", c)
			}
		})
	}
	for name, n := range map[string]int{"Signal": 1, "Signals": 2} {
		t.Run(name, func(t *testing.T) {
			id := s.sandbox()
			p := sit(id, holds...)
			for range n {
				p.cmd.Process.Signal(syscall.SIGTERM)
				time.Sleep(10 * time.Millisecond) // not merged
			}
			if c := p.code(); c != 128+15 {
				t.Errorf("exit code %d", c)
			}
			if n > 1 {
				return // nobody had the time to tell
			}
			var v struct {
				Exit struct {
					ExitCode int `json:"exit_code"`
				}
			}
			_, body, _ := s.do("GET", "/v1/sandboxes/"+id+"/processes/it?wait_ms=60000", "")
			if err := json.Unmarshal([]byte(body), &v); err != nil || v.Exit.ExitCode != 129 {
				t.Errorf("the program was not hung up: %v %s", err, body)
			}
		})
	}
}

// process is the last that plays a role for the one instance there is; 0 if none
// does.
func (w *world) process(role string) (pid int) {
	w.t.Helper()
	files, _ := filepath.Glob(filepath.Join(w.dir, "data", "instances", "in*", "processes"))
	if len(files) != 1 {
		w.t.Fatalf("instances: %v", files)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		w.t.Fatal(err)
	}
	var r struct {
		Processes []struct {
			PID  int
			Role string
		}
	}
	if err := json.Unmarshal(b, &r); err != nil {
		w.t.Fatalf("%v: %s", err, b)
	}
	for _, p := range r.Processes {
		if p.Role == role {
			pid = p.PID
		}
	}
	return pid
}

// TestShellAnswers: a program makes the terminal talk, with questions and by the
// mouse, and ends. Nothing of that is left for the shell that called us.
func TestShellAnswers(t *testing.T) {
	s := newWorld(t).serve()
	id := s.sandbox()
	for name, program := range map[string]string{
		"questions":     `printf 'x\033[6n%.0s' $(seq 200)`,
		"modes":         `printf '\033[?1003h\033[?1006h\033[?1004h\033[?2004h\033[?1049h\033[?25l\033[6n'`,
		"half a string": `printf '\033]0;\033[6n\033P\033[6n'`,
	} {
		p := s.sit(t, 200*time.Millisecond, "shell", id, "--", "sh", "-c", program)
		if c := p.code(); c != 0 {
			t.Errorf("%s: exit code %d", name, c)
		}
		for _, mode := range []string{"1003", "1006", "1004", "2004", "1047"} {
			shown := p.screen()
			on, off := bytes.LastIndex(shown, []byte("\x1b[?"+mode+"h")), bytes.LastIndex(shown, []byte("\x1b[?"+mode+"l"))
			if off < on || off < 0 {
				t.Errorf("%s: mode %s is on at the end", name, mode)
			}
		}
	}
}
