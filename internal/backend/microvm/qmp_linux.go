package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxMessage bounds a message of QEMU's, which holds the console at most. A
// monitor that a guest has taken over may send anything.
const maxMessage = 1 << 20

// consoleSize is what QEMU keeps of the serial console.
const consoleSize = 64 << 10

// qmp is a connection to QEMU's control socket. It is for one goroutine.
type qmp struct {
	conn net.Conn
	in   *bufio.Scanner
	// events that came while an answer was awaited, the oldest first.
	events []event
}

// event is one of QEMU's.
type event struct {
	Name string `json:"event"`
	Data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	} `json:"data"`
}

// message is whatever QEMU sends.
type message struct {
	event
	Greeting *json.RawMessage `json:"QMP"`
	Return   json.RawMessage  `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// newQMP takes over a fresh connection. QEMU serves one at a time: the greeting
// comes when the one before is closed.
func newQMP(conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, in: bufio.NewScanner(conn)}
	q.in.Buffer(make([]byte, 4096), maxMessage)
	m, err := q.next()
	if err != nil {
		return nil, err
	}
	if m.Greeting == nil {
		return nil, errors.New("qmp: no greeting")
	}
	return q, q.call(nil, "qmp_capabilities", nil)
}

func (q *qmp) next() (m message, err error) {
	if !q.in.Scan() {
		if err = q.in.Err(); err == nil {
			err = net.ErrClosed
		}
		return m, fmt.Errorf("qmp: %w", err)
	}
	if err := json.Unmarshal(q.in.Bytes(), &m); err != nil {
		return m, fmt.Errorf("qmp: %w", err)
	}
	return m, nil
}

// call runs a command and decodes what it returns, if result is not nil.
func (q *qmp) call(result any, command string, arguments any) error {
	return q.callWith(nil, result, command, arguments)
}

// callWith hands a file over with the command.
func (q *qmp) callWith(file *os.File, result any, command string, arguments any) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	if err := q.send(append(b, '\n'), file); err != nil {
		return err
	}
	for {
		m, err := q.next()
		switch {
		case err != nil:
			return err
		case m.Name != "":
			if q.events = append(q.events, m.event); len(q.events) > 64 {
				q.events = q.events[1:]
			}
		case m.Error != nil:
			return fmt.Errorf("qmp: %s: %s", command, m.Error.Desc)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(m.Return, result)
		}
	}
}

func (q *qmp) send(b []byte, file *os.File) error {
	if file == nil {
		_, err := q.conn.Write(b)
		return err
	}
	c, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("qmp: no socket to send a file over")
	}
	_, _, err := c.WriteMsgUnix(b, syscall.UnixRights(int(file.Fd())), nil)
	return err
}

// status is the machine's run state.
func (q *qmp) status() (string, error) {
	var s struct{ Status string }
	err := q.call(&s, "query-status", nil)
	return s.Status, err
}

// goOn lets a machine run that was stopped to be saved, and does nothing to others.
// A migration that has yet to notice its end is waited for.
func (q *qmp) goOn() error {
	switch s, err := q.status(); {
	case err != nil:
		return err
	case s != "paused" && s != "finish-migrate" && s != "postmigrate":
		return nil // it runs, or it has stopped for a reason of its own
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		err := q.call(nil, "cont", nil)
		if s, e := q.status(); e != nil || s != "finish-migrate" || time.Now().After(end) {
			return err
		}
	}
}

// ended waits for the machine to have stopped.
func (q *qmp) ended() (ending, error) {
	cause := ""
	for {
		status, err := q.status()
		if err != nil {
			return ending{}, err
		}
		for _, e := range q.events {
			switch {
			case e.Name == "SHUTDOWN":
				cause = e.Data.Reason
			case e.Name == "GUEST_PANICKED":
				cause = "guest-panicked"
			}
		}
		q.events = nil
		if why := stopped(status, cause); why != "" {
			return ending{why: why, console: q.console()}, nil
		}
		m, err := q.next()
		if err != nil {
			return ending{}, err
		}
		if m.Name != "" {
			q.events = append(q.events, m.event)
		}
	}
}

// stopped says how a machine in a run state has ended; "" when it has not.
func stopped(status, cause string) string {
	switch status {
	case "running", "prelaunch", "inmigrate", "paused", "suspended", "finish-migrate", "postmigrate", "":
		return ""
	case "internal-error":
		return "the virtualization of this host cannot go on with it"
	case "guest-panicked":
		return "its kernel panicked"
	case "io-error", "watchdog":
		return "it stopped: " + status
	}
	switch cause {
	case "guest-shutdown":
		return "it switched itself off"
	case "guest-reset":
		return "its processor was reset: a panic, or a triple fault"
	case "guest-panicked":
		return "its kernel panicked"
	}
	return "it stopped"
}

// console is what the machine last wrote to its serial port.
func (q *qmp) console() string {
	var text string
	if q.call(&text, "ringbuf-read", map[string]any{"device": "console", "size": consoleSize}) != nil {
		return ""
	}
	return text
}

// lastWords finds in a console what says most about an end, in one printable line.
func lastWords(console string) string {
	var last string
	for line := range strings.Lines(console) {
		line = strings.TrimSpace(printable(line))
		if _, rest, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(line, "[") {
			line = strings.TrimSpace(rest) // without the kernel's time
		}
		switch {
		case strings.HasPrefix(line, "Kernel panic"):
			return clip(line)
		case strings.HasPrefix(line, "firebreak: "):
			last = strings.TrimPrefix(line, "firebreak: ")
		}
	}
	return clip(last)
}

// printable drops what a terminal could take for a command.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

func clip(s string) string {
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return s
}

// follow runs ended on a connection that is closed when ctx ends.
func follow(ctx context.Context, conn net.Conn) (ending, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	q, err := newQMP(conn)
	if err != nil {
		return ending{}, err
	}
	return q.ended()
}
