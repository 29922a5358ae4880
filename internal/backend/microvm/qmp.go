package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
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
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
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

// ended waits for the machine to have stopped.
func (q *qmp) ended() (ending, error) {
	cause := ""
	for {
		var s struct{ Status string }
		if err := q.call(&s, "query-status", nil); err != nil {
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
		if why := stopped(s.Status, cause); why != "" {
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
	case "running", "prelaunch", "inmigrate", "paused", "suspended", "":
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
