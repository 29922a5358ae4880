package sim

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// shell models `sh -c SCRIPT`, `sh FILE` and a script on standard input, for
// scripts that consist of simple commands joined by ";", "&&", "||" and
// newlines, with quotes, $NAME, $? and redirections. Anything else, such as a
// pipe or a loop, is refused as a whole before its first command runs.
func shell(p *proc, args []string) int {
	script, rest, err := scriptOf(p, args)
	if err != nil {
		p.complain("%s", err)
		return notModelled
	}
	before := p.params
	defer func() { p.params = before }()
	p.params = rest
	return p.script(script)
}

// script runs the text of a shell script.
func (p *proc) script(text string) int {
	if lines, ok := directives(text); ok {
		return runDirectives(p, lines, p.params[min(1, len(p.params)):])
	}
	cmds, err := parseShell(text)
	if err != nil {
		return refuse(p, err.Error())
	}
	last := 0
	for _, c := range cmds {
		if c.join == "&&" && last != 0 || c.join == "||" && last == 0 {
			continue
		}
		last = p.simple(c, last)
	}
	return last
}

// scriptOf finds the text that an interpreter called with args is to run:
// "-c TEXT", a file, or standard input. rest is what a shell calls $0, $1 and so
// on.
func scriptOf(p *proc, args []string) (script string, rest []string, err error) {
	i := 1
	for ; i < len(args) && strings.HasPrefix(args[i], "-") && args[i] != "-"; i++ {
		switch args[i] {
		case "-c", "-e", "-lc":
			if i+1 >= len(args) {
				return "", nil, errors.New(args[i] + ": an argument is needed")
			}
			return args[i+1], args[i+2:], nil
		}
	}
	if i < len(args) && args[i] != "-" {
		b, err := p.m.fs.ReadFile(p.cred, p.abs(args[i]))
		if err != nil {
			return "", nil, errors.New(args[i] + ": " + reasonText(err))
		}
		return string(b), args[i:], nil
	}
	b, err := io.ReadAll(p.stdin)
	return string(b), append([]string{args[0]}, args[min(len(args), i+1):]...), err
}

// command is one simple command of a script.
type command struct {
	join  string // how it follows the one before: "", "&&" or "||"
	words []word
	redir []redirect
}

// word is a sequence of literal and expanded pieces.
type word []piece

type piece struct {
	text   string
	expand bool // text may hold $NAME
}

type redirect struct {
	op string // ">", ">>", "<", "2>", "2>>", "2>&1", "1>&2"
	to word
}

// parseShell splits a script into commands, or says what in it is not
// modelled.
func parseShell(s string) ([]command, error) {
	var cmds []command
	cur := command{}
	flush := func(next string) error {
		if len(cur.words) == 0 && len(cur.redir) == 0 {
			if cur.join != "" || next != "" {
				return errors.New("shell syntax: a command is missing")
			}
			return nil
		}
		cmds = append(cmds, cur)
		cur = command{join: next}
		return nil
	}
	lex := lexer{s: s}
	for {
		t, err := lex.next()
		if err != nil {
			return nil, err
		}
		switch {
		case t.end:
			err := flush("")
			return cmds, err
		case t.op == ";" || t.op == "\n":
			if t.op == "\n" && cur.join != "" && len(cur.words) == 0 {
				continue
			}
			err = flush("")
		case t.op == "&&" || t.op == "||":
			err = flush(t.op)
		case t.op == "2>&1" || t.op == "1>&2" || t.op == ">&2":
			cur.redir = append(cur.redir, redirect{op: t.op})
		case t.op != "":
			to, err := lex.next()
			if err != nil || to.word == nil {
				return nil, errors.New("shell syntax: a redirection without a file")
			}
			cur.redir = append(cur.redir, redirect{op: t.op, to: to.word})
		default:
			if len(cur.words) == 0 && shellKeyword(t.word) {
				return nil, errors.New("shell: " + t.word[0].text + " is not modelled")
			}
			cur.words = append(cur.words, t.word)
		}
		if err != nil {
			return nil, err
		}
	}
}

func shellKeyword(w word) bool {
	if len(w) != 1 || !w[0].expand {
		return false
	}
	switch w[0].text {
	case "if", "for", "while", "until", "case", "function", "{", "!", "trap", "set", "exec", "eval", "read", "wait", "ulimit", "export", "unset":
		return true
	}
	return strings.Contains(w[0].text, "=")
}

// token is an operator, a word, or the end.
type token struct {
	op   string
	word word
	end  bool
}

type lexer struct {
	s string
	i int
}

// operators, longest first.
var operators = []string{"2>&1", "1>&2", ">&2", "2>>", "2>", ">>", "1>", ">", "<", "&&", "||", ";", "\n"}

func (l *lexer) next() (token, error) {
	for l.i < len(l.s) && (l.s[l.i] == ' ' || l.s[l.i] == '\t' || l.s[l.i] == '\r') {
		l.i++
	}
	if l.i < len(l.s) && l.s[l.i] == '#' {
		for l.i < len(l.s) && l.s[l.i] != '\n' {
			l.i++
		}
	}
	if l.i >= len(l.s) {
		return token{end: true}, nil
	}
	for _, op := range operators {
		if strings.HasPrefix(l.s[l.i:], op) {
			l.i += len(op)
			if op == "1>" {
				return token{op: ">"}, nil
			}
			return token{op: op}, nil
		}
	}
	w, err := l.word()
	return token{word: w}, err
}

func (l *lexer) word() (word, error) {
	var w word
	lit := ""
	add := func() {
		if lit != "" {
			w = append(w, piece{lit, true})
			lit = ""
		}
	}
	for l.i < len(l.s) {
		c := l.s[l.i]
		switch {
		case strings.IndexByte(" \t\r\n;<>", c) >= 0:
			add()
			return w, nil
		case c == '\'' || c == '"':
			add()
			end := strings.IndexByte(l.s[l.i+1:], c)
			if end < 0 {
				return nil, errors.New("shell syntax: a quote is not closed")
			}
			text := l.s[l.i+1 : l.i+1+end]
			if c == '"' && strings.ContainsAny(text, "`\\") || c == '"' && strings.Contains(text, "$(") {
				return nil, errors.New("shell: substitution inside quotes is not modelled")
			}
			w = append(w, piece{text, c == '"'})
			l.i += end + 2
		case strings.HasPrefix(l.s[l.i:], "&&"):
			add()
			return w, nil
		case strings.IndexByte("|&()`*?[\\~", c) >= 0, strings.HasPrefix(l.s[l.i:], "$("):
			if strings.HasPrefix(l.s[l.i:], "||") && (lit != "" || len(w) > 0) {
				add()
				return w, nil
			}
			if c == '?' && strings.HasSuffix(lit, "$") {
				lit += "?"
				l.i++
				continue
			}
			return nil, errors.New("shell: " + strconv.Quote(string(c)) + " is not modelled")
		default:
			lit += string(c)
			l.i++
		}
	}
	add()
	return w, nil
}

// text expands w.
func (p *proc) text(w word, last int) string {
	var b strings.Builder
	for _, pc := range w {
		if !pc.expand {
			b.WriteString(pc.text)
			continue
		}
		s := pc.text
		for {
			i := strings.IndexByte(s, '$')
			if i < 0 || i+1 >= len(s) {
				break
			}
			b.WriteString(s[:i])
			s = s[i+1:]
			if s[0] == '?' {
				b.WriteString(strconv.Itoa(last))
				s = s[1:]
				continue
			}
			braced := s[0] == '{'
			name := strings.TrimPrefix(s, "{")
			n := 0
			for n < len(name) && (name[n] == '_' || name[n] >= '0' && name[n] <= '9' || name[n]|32 >= 'a' && name[n]|32 <= 'z') {
				n++
			}
			if n == 0 || braced && !strings.HasPrefix(name[n:], "}") {
				b.WriteByte('$')
				continue
			}
			if i, err := strconv.Atoi(name[:n]); err == nil {
				if i < len(p.params) {
					b.WriteString(p.params[i])
				}
			} else {
				b.WriteString(p.getenv(name[:n]))
			}
			s = name[n:]
			if braced {
				s = s[1:]
			}
		}
		b.WriteString(s)
	}
	return b.String()
}

// simple runs one command with its redirections and returns its exit code.
func (p *proc) simple(c command, last int) int {
	args := make([]string, 0, len(c.words))
	for _, w := range c.words {
		args = append(args, p.text(w, last))
	}
	in, out, errs := p.stdin, p.stdout, p.stderr
	defer func() { p.stdin, p.stdout, p.stderr = in, out, errs }()
	for _, r := range c.redir {
		if err := p.redirect(r, last); err != nil {
			_, _ = io.WriteString(p.stderr, "sh: "+p.text(r.to, last)+": "+reasonText(err)+"\n")
			return 2
		}
	}
	if len(args) == 0 {
		return 0
	}
	switch args[0] {
	case ":":
		return 0
	case "exit":
		code := last
		if len(args) > 1 {
			code, _ = strconv.Atoi(args[1])
		}
		p.exit(code)
	case "cd":
		return p.chdir(args)
	case ".":
		if len(args) < 2 {
			return 2
		}
		b, err := p.m.fs.ReadFile(p.cred, p.abs(args[1]))
		if err != nil {
			_, _ = io.WriteString(p.stderr, "sh: "+args[1]+": "+reasonText(err)+"\n")
			return 2
		}
		return p.script(string(b))
	}
	prog, err := p.m.lookup(p.cred, args[0], p.cwd)
	if err != nil {
		_, _ = io.WriteString(p.stderr, "sh: "+args[0]+": not found\n")
		return notModelled
	}
	// A command of a script shares the shell's process in the model: it is
	// booked once, and what it is sent reaches the script.
	return p.within(prog, args)
}

// within runs prog as a part of p: an exit ends prog, a kill ends p.
func (p *proc) within(prog program, args []string) (code int) {
	argv := p.argv
	p.argv = args
	defer func() {
		p.argv = argv
		switch r := recover().(type) {
		case nil:
		case stopped:
			p.alive() // killed: go on unwinding
			code = r.code
		default:
			panic(r)
		}
	}()
	return prog(p, args)
}

func (p *proc) redirect(r redirect, last int) error {
	flags := oWrite | oCreate | oTrunc
	switch r.op {
	case "2>&1":
		p.stderr = p.stdout
		return nil
	case "1>&2", ">&2":
		p.stdout = p.stderr
		return nil
	case "<":
		flags = oRead
	case ">>", "2>>":
		flags = oWrite | oCreate | oAppend
	}
	h, err := p.m.fs.Open(p.cred, p.abs(p.text(r.to, last)), flags, fs.FileMode(0o644))
	if err != nil {
		return err
	}
	switch r.op {
	case "<":
		p.stdin = h
	case "2>", "2>>":
		p.stderr = h
	default:
		p.stdout = h
	}
	return nil
}

func (p *proc) chdir(args []string) int {
	to := p.getenv("HOME")
	if len(args) > 1 {
		to = p.abs(args[1])
	}
	st, err := p.m.fs.Stat(p.cred, to, true)
	if err != nil || !st.mode.IsDir() {
		_, _ = io.WriteString(p.stderr, "sh: cd: "+to+": no such directory\n")
		return 2
	}
	p.cwd = path.Clean(to)
	return 0
}
