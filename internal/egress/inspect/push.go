package inspect

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// The most the commands of a push may be.
const (
	maxPacket   = 65520
	maxCommands = 2000
	maxList     = 256 << 10 // bytes
)

const flush = "0000"

// push is how a push begins: with packets that say which refs become what, before
// the pack. gitprotocol-pack(5) and git's receive-pack have the grammar; what other
// servers could read differently is refused.
type push struct {
	head    []byte   // all that was read, the pack's first bytes included
	refs    []string // that it makes, changes or deletes: any text without spaces
	digits  int      // of ids
	reports bool     // the sandbox wants to know what became of each
	band    bool     // between packets with its own words
}

// packet appends a packet of git's to out.
func packet(out []byte, text string) []byte {
	return append(fmt.Appendf(out, "%04x", len(text)+4), text...)
}

func noPush(text string) *Refusal { return odd(http.StatusBadRequest, "this is no push: "+text) }

// readPush reads the commands of a push and where its pack begins. Errors: a
// *Refusal, those of from.
func readPush(from io.Reader) (*push, error) {
	p := new(push)
	for {
		line, end, err := p.packet(from)
		if err != nil {
			return nil, err
		}
		if end {
			break
		}
		if no := p.line(line); no != nil {
			return nil, no
		}
	}
	start, err := p.take(from, len("PACK"))
	switch {
	case errors.Is(err, io.EOF): // only deletions, or git has asked whether it may
		return p, nil
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, err
	case len(p.refs) == 0 || string(start) != "PACK":
		return nil, noPush("what follows its commands is no pack")
	}
	return p, nil
}

// packet reads the next packet. end: there is none, but the end of the commands.
func (p *push) packet(from io.Reader) (line string, end bool, err error) {
	digits, err := p.take(from, 4)
	n := 0
	for _, c := range digits {
		d := unhex(c)
		if d < 0 {
			return "", false, noPush("a packet has no length")
		}
		n = n<<4 | d
	}
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "", false, noPush("it ends within its commands")
	case err != nil:
		return "", false, err
	case n == 0:
		return "", true, nil
	case n < 5 || n > maxPacket:
		return "", false, noPush("a packet has a wrong length")
	case len(p.head)+n > maxList:
		return "", false, odd(http.StatusRequestEntityTooLarge, "the commands of the push are longer than 256 KiB")
	}
	b, err := p.take(from, n-4)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = noPush("it ends within its commands")
	}
	return string(b), false, err
}

// take reads n bytes. Errors: those of io.ReadFull.
func (p *push) take(from io.Reader, n int) ([]byte, error) {
	at := len(p.head)
	p.head = slices.Grow(p.head, n)[:at+n]
	m, err := io.ReadFull(from, p.head[at:])
	p.head = p.head[:at+m]
	return p.head[at:], err
}

// line reads "shallow ID", or "OLD NEW REF", behind the first of which are NUL and
// what the sandbox's git can do.
func (p *push) line(line string) *Refusal {
	line, abilities, able := strings.Cut(line, "\x00")
	if !able {
		line = strings.TrimSuffix(line, "\n")
	}
	if id, ok := strings.CutPrefix(line, "shallow "); ok {
		if able || len(p.refs) > 0 || !p.id(id) {
			return noPush("a line about history that is left out is none")
		}
		return nil
	}
	if line == "push-cert" {
		return noPush("signed pushes are not read; push without --signed")
	}
	before, rest, _ := strings.Cut(line, " ")
	after, ref, _ := strings.Cut(rest, " ")
	if !p.id(before) || !p.id(after) || ref == "" {
		return noPush("a command is not an old id, a new one and a ref")
	}
	for i := range len(ref) {
		if ref[i] <= ' ' || ref[i] == 0x7f {
			return noPush("a ref has a space or a control character")
		}
	}
	if able {
		if len(p.refs) > 0 {
			return noPush("what git can do is not behind the first command alone")
		}
		if no := p.abilities(abilities); no != nil {
			return no
		}
	}
	if p.refs = append(p.refs, ref); len(p.refs) > maxCommands {
		return odd(http.StatusRequestEntityTooLarge, fmt.Sprintf("the push has more than %d commands", maxCommands))
	}
	return nil
}

// id reports whether s is an object's id, as long as those before.
func (p *push) id(s string) bool {
	if len(s) != 40 && len(s) != 64 || p.digits != 0 && p.digits != len(s) || strings.Trim(s, "0123456789abcdef") != "" {
		return false
	}
	p.digits = len(s)
	return true
}

// abilities reads what the sandbox's git can do. What would put more between the
// commands and the pack, or ask the server for more than the commands, is refused.
func (p *push) abilities(list string) *Refusal {
	for a := range strings.SplitSeq(strings.TrimSuffix(list, "\n"), " ") {
		name, _, _ := strings.Cut(a, "=")
		switch {
		case a == "report-status", a == "report-status-v2":
			p.reports = true
		case a == "side-band-64k":
			p.band = true
		case a == "", a == "quiet", a == "atomic", a == "ofs-delta", a == "delete-refs", a == "no-thin":
		case name == "agent", name == "session-id", name == "object-format":
			for i := range len(a) {
				if a[i] <= ' ' || a[i] >= 0x7f {
					return noPush("what git can do is not text")
				}
			}
		case name == "push-options":
			return noPush("push options tell the server to do more than to push; push without -o")
		default:
			return noPush(fmt.Sprintf("git can %.40q, which is not known", a))
		}
	}
	return nil
}
