package sim

import (
	"bufio"
	"encoding/json"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/guest/driver"
)

// caught is what unwinds a turn when SIGINT comes.
type caught struct{}

// warm models a driver, for turns that consist of directives. Besides those of
// runDirectives there are
//
//	set NAME VALUE     get NAME (shows its value)     show TEXT     json DOCUMENT
//	raise NAME VALUE   sleep DURATION (SIGINT ends it)
//	forge TEXT         writes TEXT to both outputs, T in it is the token
func warm(p *proc) int {
	lines := bufio.NewReader(p.stdin)
	first, err := lines.ReadBytes('\n')
	token, _, ok := driver.ParseHello(first)
	if err != nil || !ok {
		return 1
	}
	p.mu.Lock()
	p.catch = make(chan struct{}, 1)
	p.mu.Unlock()
	m := &warmModel{p: p, token: token, names: map[string]string{}}
	m.say(driver.Message{Type: driver.Ready}, false)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return 0
		}
		var t driver.Turn
		if json.Unmarshal(line, &t) != nil {
			continue
		}
		if m.turn = t.Turn; !t.Sync {
			m.count++
			if code, ends := m.run(t.Code); ends {
				return code
			}
		}
		m.say(driver.Message{Type: driver.End, Turn: m.turn, Count: m.count}, true)
	}
}

type warmModel struct {
	p           *proc
	token       driver.Token
	names       map[string]string
	turn, count int
}

func (m *warmModel) say(s driver.Message, both bool) {
	b := m.token.Append(nil, s.Encode())
	m.p.out(b)
	if both {
		m.p.alive()
		_, _ = m.p.stderr.Write(b)
	}
}

func (m *warmModel) show(r driver.Result) {
	m.say(driver.Message{Type: driver.Shown, Turn: m.turn, Result: &r}, false)
}

func (m *warmModel) fail(name, value string) {
	m.say(driver.Message{Type: driver.Fail, Turn: m.turn, Error: &driver.Error{Name: name, Value: value, Traceback: name + ": " + value + "\n"}}, false)
}

// run executes a turn. ends says that the interpreter has ended, with code.
func (m *warmModel) run(code string) (status int, ends bool) {
	select { // what came between turns
	case <-m.p.catch:
	default:
	}
	defer func() {
		if r := recover(); r == (caught{}) {
			m.fail("KeyboardInterrupt", "")
		} else if r != nil {
			panic(r)
		}
	}()
	lines, ok := directives(code)
	if !ok {
		refuse(m.p, `write "# sim: show TEXT" and the like`)
		m.fail("NotImplementedError", "a model does not execute code")
		return 0, false
	}
	for _, line := range lines {
		verb, rest, _ := strings.Cut(line, " ")
		name, value, _ := strings.Cut(rest, " ")
		switch verb {
		case "set":
			m.names[name] = value
		case "get":
			v, ok := m.names[name]
			if !ok {
				m.fail("NameError", name)
				return 0, false
			}
			m.show(driver.Result{Main: true, Text: v})
		case "show":
			m.show(driver.Result{Text: rest})
		case "json":
			m.show(driver.Result{JSON: json.RawMessage(rest)})
		case "raise":
			m.fail(name, value)
			return 0, false
		case "sleep":
			m.p.sleep(seconds(m.p, rest))
		case "stubborn":
			m.p.ignore(syscall.SIGINT)
		case "forge":
			b := []byte(strings.ReplaceAll(rest, "T", "\x1e"+string(m.token)))
			m.p.out(b)
			_, _ = m.p.stderr.Write(b)
		case "exit":
			return runDirectives(m.p, []string{line}, nil), true
		default:
			runDirectives(m.p, []string{line}, nil)
		}
	}
	return 0, false
}
