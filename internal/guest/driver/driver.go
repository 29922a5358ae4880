package driver

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strconv"
)

const (
	// MaxChunk is the most that a pipe takes undivided, on Linux.
	MaxChunk = 4096
	// MaxMessage bounds a message.
	MaxMessage = 4 << 20

	mark      = 0x1e
	tokenSize = 32
	header    = 1 + tokenSize + 1 + 4
	// MaxPayload is how much of a message one chunk carries.
	MaxPayload = MaxChunk - header

	first, last = 1, 2
)

// Token tells a driver's messages from what user code prints: 32 hex digits.
type Token string

// NewToken returns a fresh random one.
func NewToken() Token {
	var b [tokenSize / 2]byte
	rand.Read(b[:]) // never fails
	return Token(hex.EncodeToString(b[:]))
}

// Valid reports whether t is well formed.
func (t Token) Valid() bool {
	_, err := hex.DecodeString(string(t))
	return err == nil && len(t) == tokenSize
}

// hello is the first line.
type hello struct {
	Token Token             `json:"token"`
	Env   map[string]string `json:"env,omitempty"` // for whoever starts another one like it
}

// Hello is the first line a driver gets. It ignores env.
func (t Token) Hello(env map[string]string) []byte { return line(hello{t, env}) }

// ParseHello reads what Hello made.
func ParseHello(line []byte) (t Token, env map[string]string, ok bool) {
	var h hello
	if json.Unmarshal(line, &h) != nil || !h.Token.Valid() {
		return "", nil, false
	}
	return h.Token, h.Env, true
}

// Turn is a command: run Code and say how that went. One without code, and with
// Sync, is answered with an end, once everything before it is over.
type Turn struct {
	Turn int  `json:"turn"`
	Sync bool `json:"sync,omitempty"`
	// Fresh, of a Sync, seeds the interpreter's random generators anew: its memory is
	// another's, too.
	Fresh bool              `json:"fresh,omitempty"`
	Env   map[string]string `json:"env,omitempty"` // during the turn only
	// Until is when the turn is to be over, in Unix milliseconds; 0: never. The
	// host enforces it.
	Until int64  `json:"until,omitempty"`
	Limit int64  `json:"limit,omitempty"` // how long that was, in milliseconds
	Code  string `json:"code"`
}

// Line is the command as the driver reads it.
func (t Turn) Line() []byte { return line(t) }

// ParseTurn reads what Line made, without its code; the zero Turn where that is
// none.
func ParseTurn(line []byte) (t Turn) {
	if json.Unmarshal(line, &t) != nil {
		return Turn{}
	}
	t.Code = ""
	return t
}

// line encodes v in ASCII, on one line.
func line(v any) []byte {
	b, err := json.Marshal(v) // invalid UTF-8 becomes U+FFFD
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return append(b, '\n')
}

// Chunk is a piece of a message.
type Chunk struct {
	First, Last bool
	Payload     []byte // shares the bytes it was cut from
}

// Cut says what stands at the beginning of b, a driver's output from where the
// last piece ended: n bytes that are a chunk or, if c is nil, user code's. n is 0
// when that depends on what follows; with eof nothing does. It never asks for
// more than MaxChunk bytes to decide.
func (t Token) Cut(b []byte, eof bool) (n int, c *Chunk) {
	at := bytes.IndexByte(b, mark)
	for at >= 0 {
		size, c := t.chunk(b[at:])
		switch {
		case size < 0: // the mark is a byte like others
			next := bytes.IndexByte(b[at+1:], mark)
			if next < 0 {
				return len(b), nil
			}
			at += 1 + next
			continue
		case at > 0:
			return at, nil
		case size > 0:
			return size, c
		case eof:
			return len(b), nil
		}
		return 0, nil
	}
	return len(b), nil
}

// chunk reads the chunk that b begins with: its size, -1 where that is none, 0
// where more of b is needed.
func (t Token) chunk(b []byte) (size int, c *Chunk) {
	if known := b[1:min(len(b), 1+tokenSize)]; !bytes.HasPrefix([]byte(t), known) {
		return -1, nil
	}
	if len(b) < header {
		return 0, nil
	}
	kind := b[1+tokenSize] - '0'
	n, err := strconv.ParseUint(string(b[header-4:header]), 16, 16)
	if kind > first|last || err != nil || n > MaxPayload {
		return -1, nil
	}
	size = header + int(n)
	if bytes.IndexByte(b[header:min(len(b), size)], mark) >= 0 {
		return -1, nil // JSON has no such byte: somebody cut a forged chunk short, and a true one follows
	}
	if len(b) < size {
		return 0, nil
	}
	return size, &Chunk{First: kind&first != 0, Last: kind&last != 0, Payload: b[header:size]}
}

// Append appends a message as chunks. Drivers do it; in Go only models of them.
func (t Token) Append(b, message []byte) []byte {
	for i, more := 0, true; more; i++ {
		n := min(len(message), MaxPayload)
		more = n < len(message)
		kind := 0
		if i == 0 {
			kind |= first
		}
		if !more {
			kind |= last
		}
		b = append(append(append(b, mark), t...), '0'+byte(kind))
		b = append(b, strconv.FormatUint(1<<16|uint64(n), 16)[1:]...)
		b = append(b, message[:n]...)
		message = message[n:]
	}
	return b
}

// Budget bounds what many assemblies hold together.
type Budget interface {
	Take(n int) bool // not at all, or all of n
	Give(n int)
}

// free is what an assembly holds without asking the budget.
const free = 64 << 10

// Assembly puts the chunks of one channel together. The zero value is ready.
type Assembly struct {
	Budget Budget

	buf   []byte
	taken int
	open  bool // the first chunk was there
	over  bool // it is too large, or there was no room: the rest is passed over
}

// Add takes the next chunk. It returns the message that the chunk completes; nil
// of one that was too large. A chunk whose beginning is missing is passed over.
func (a *Assembly) Add(c *Chunk) (message []byte, whole bool) {
	if c.First {
		a.Reset()
		a.open = true
	}
	if !a.open {
		return nil, false
	}
	if !a.over && !a.room(len(c.Payload)) {
		a.Reset()
		a.open, a.over = true, true
	}
	if !a.over {
		a.buf = append(a.buf, c.Payload...)
	}
	if !c.Last {
		return nil, false
	}
	message = a.buf
	a.buf = nil
	a.Reset()
	return message, true
}

// room reports whether n more bytes may be held, and makes room for them.
func (a *Assembly) room(n int) bool {
	need := len(a.buf) + n
	if need <= cap(a.buf) {
		return true
	}
	size := min(max(need, 2*cap(a.buf), 4<<10), MaxMessage)
	if need > MaxMessage || !a.take(size) {
		if size = need; size > MaxMessage || !a.take(size) {
			return false
		}
	}
	a.buf = append(make([]byte, 0, size), a.buf...)
	return true
}

// take takes what size needs of the budget beyond what was taken.
func (a *Assembly) take(size int) bool {
	want := size - free - a.taken
	if want <= 0 || a.Budget == nil {
		return true
	}
	if !a.Budget.Take(want) {
		return false
	}
	a.taken += want
	return true
}

// Reset forgets a message that is under way.
func (a *Assembly) Reset() {
	if a.taken > 0 {
		a.Budget.Give(a.taken)
	}
	*a = Assembly{Budget: a.Budget}
}
