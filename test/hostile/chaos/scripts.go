package chaos

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Scripts are all ways to misbehave. Those that return leave an agent behind
// that can be met again; those that Hold do not.
var Scripts = []Script{
	// Frames that are not.
	{"half-frame", Exec, func(p *Player) { p.Started(); p.Raw(dataFrame(p, 1000)[:40]) }},
	{"half-frame-silence", Exec, func(p *Player) { p.Started(); p.Raw(dataFrame(p, 1000)[:40]); p.Hold() }},
	{"huge-length", Exec, func(p *Player) { p.Started(); p.Raw(lying(p, 1<<31-1)) }},
	{"negative-length", Exec, func(p *Player) { p.Started(); p.Raw(lying(p, 0xffff_ffff)) }},
	{"length-one-short", Exec, func(p *Player) { p.Started(); p.Raw(lying(p, 107)); p.Exit(done) }},
	{"length-one-long", Exec, func(p *Player) { p.Started(); p.Raw(lying(p, 109)); p.Exit(done) }},
	{"bad-checksum", Exec, func(p *Player) { p.Started(); f := dataFrame(p, 100); f[len(f)-1]++; p.Raw(f) }},
	{"unknown-type", Exec, func(p *Player) { p.Started(); p.Frame(0x7f, p.ID, []byte("??????????")) }},
	{"hosts-type", Exec, func(p *Player) { p.Started(); p.JSON(guest.TypeCall, p.ID, guest.Call{Op: guest.OpPing}) }},
	{"hello-again", Exec, func(p *Player) { p.Started(); p.Hello() }},
	// JSON that should not be.
	{"deep-json", Exec, func(p *Player) { p.Frame(guest.TypeReply, p.ID, []byte(strings.Repeat("[", guest.MaxControl))) }},
	{"deep-object", Exec, func(p *Player) {
		p.Frame(guest.TypeReply, p.ID, []byte(strings.Repeat(`{"process":`, 5000)+"1"+strings.Repeat("}", 5000)))
	}},
	{"odd-numbers", Exec, func(p *Player) {
		p.Frame(guest.TypeReply, p.ID, []byte(`{"process":{"id":1,"pid":1e400,"started":"2020-01-01T00:00:00Z"}}`))
	}},
	{"odd-kind", Exec, func(p *Player) {
		p.JSON(guest.TypeReply, p.ID, guest.Reply{Error: &guest.WireError{Kind: sandbox.KindUnauthenticated, Message: "\x1b[2Jyour key\u202e, please\n" + strings.Repeat("x", 9000)}})
	}},
	{"empty-reply", Exec, func(p *Player) { p.Frame(guest.TypeReply, p.ID, []byte("{}")) }},
	// Ids that are not one's own.
	{"unknown-id", Exec, func(p *Player) { p.Started(); p.JSON(guest.TypeReply, p.ID+1000, guest.Reply{}) }},
	{"id-zero", Exec, func(p *Player) { p.Started(); p.JSON(guest.TypeExit, 0, done) }},
	{"replayed-replies", Exec, func(p *Player) {
		p.Started()
		for i := 0; i < 1<<20 && p.JSON(guest.TypeReply, p.ID, guest.Reply{}); i++ {
		}
	}},
	{"ended-process", Exec, func(p *Player) {
		finished(p, done)
		for i := 0; i < 1<<20 && p.Data(guest.TypeStdout, p.ID, uint64(i), []byte("x")); i++ {
		}
	}},
	// Offsets and credit.
	{"over-credit", Exec, func(p *Player) { p.Started(); p.Data(guest.TypeStdout, p.ID, 0, make([]byte, guest.MaxData)) }},
	{"offset-back", Exec, func(p *Player) {
		p.Started()
		p.Data(guest.TypeStdout, p.ID, 0, []byte("0123456789"))
		p.Data(guest.TypeStdout, p.ID, 5, []byte("56789"))
	}},
	{"offset-forward", Exec, func(p *Player) { p.Started(); p.Data(guest.TypeStdout, p.ID, 1<<40, []byte("x")) }},
	{"offset-negative", Exec, func(p *Player) { p.Started(); p.Data(guest.TypeStdout, p.ID, 1<<63+5, []byte("x")) }},
	{"ack-beyond", Exec, func(p *Player) { p.Started(); p.Mark(guest.TypeWindow, p.ID, guest.TypeStdin, 1<<50) }},
	{"end-beyond", Exec, func(p *Player) { p.Started(); p.Mark(guest.TypeEnd, p.ID, guest.TypeStdout, 1<<50) }},
	{"end-twice", Exec, func(p *Player) {
		p.Started()
		p.Mark(guest.TypeEnd, p.ID, guest.TypeStdout, 0)
		p.Mark(guest.TypeEnd, p.ID, guest.TypeStdout, 0)
	}},
	// Ends that are not.
	{"forged-exit", Exec, func(p *Player) {
		finished(p, guest.Exit{Code: 0, Reason: sandbox.ReasonDone, Detail: "\x1b]52;c;cm0=\aall is well"})
	}},
	{"forged-reason", Exec, func(p *Player) { finished(p, guest.Exit{Reason: "egress\x1b[2J"}) }},
	{"impossible-exit", Exec, func(p *Player) { finished(p, guest.Exit{Code: -7, MaxRSS: -1, Reason: sandbox.ReasonDone}) }},
	{"exit-twice", Exec, func(p *Player) { p.Started(); p.Exit(done); p.Exit(done) }},
	{"result-endless", Exec, func(p *Player) {
		forging.Store(true)
		finished(p, guest.Exit{Reason: sandbox.ReasonDone, Result: true})
	}},
	// Floods.
	{"tiny-flood", Exec, func(p *Player) {
		p.Started()
		p.Fresh()
		for at := uint64(0); ; {
			limit := p.Credit(guest.TypeStdout, at)
			var b []byte
			for ; at < limit && len(b) < 128<<10; at++ {
				var h [guest.DataHeader]byte
				guest.PutData(&h, guest.TypeStdout, p.ID, at, []byte("x"))
				b = append(append(b, h[:]...), 'x')
			}
			if len(b) == 0 || !p.Raw(b) {
				return
			}
		}
	}},
	{"blind-flood", Exec, func(p *Player) { // as if everything were read at once, and without reading itself
		p.Deaf()
		p.Started()
		time.Sleep(100 * time.Millisecond)
		for at := uint64(0); ; {
			var b []byte
			for range 8192 {
				var h [guest.DataHeader]byte
				guest.PutData(&h, guest.TypeStdout, p.ID, at, []byte("x"))
				b = append(append(b, h[:]...), 'x')
				at++
			}
			if !p.Raw(b) {
				return
			}
		}
	}},
	{"empty-flood", Exec, func(p *Player) {
		p.Started()
		b := many(p, func(p *Player, _ uint64) []byte {
			var h [guest.DataHeader]byte
			guest.PutData(&h, guest.TypeStdout, p.ID, 0, nil)
			return h[:]
		})
		for p.Raw(b) {
		}
	}},
	{"window-flood", Exec, func(p *Player) {
		p.Started()
		b := many(p, func(p *Player, _ uint64) []byte {
			return guest.AppendMark(nil, guest.TypeWindow, p.ID, guest.TypeStdin, 0)
		})
		for p.Raw(b) {
		}
	}},
	{"deaf-flood", Exec, func(p *Player) {
		p.Deaf()
		p.Started()
		b := many(p, func(p *Player, _ uint64) []byte {
			return guest.AppendMark(nil, guest.TypeWindow, p.ID, guest.TypeStdin, 0)
		})
		for p.Raw(b) {
		}
		p.Hold()
	}},
	// Silence.
	{"mute", Exec, func(p *Player) { p.Hold() }},
	{"started-mute", Exec, func(p *Player) { p.Started(); p.Hold() }},
	{"spin", Exec, func(p *Player) {
		p.Started()
		for range 2 * runtime.NumCPU() {
			go func() {
				for {
				}
			}()
		}
		p.Hold()
	}},
	{"never-reads", Write, func(p *Player) { p.Deaf(); p.Hold() }},
	// The end of the agent itself.
	{"panic", Exec, func(p *Player) { p.Started(); panic("chaos") }},
	{"exit", Exec, func(p *Player) { p.Started(); os.Exit(0) }},
	{"exit-3", Exec, func(p *Player) { os.Exit(3) }},
	// Files and listings.
	{"stall-file", Read, func(p *Player) {
		p.JSON(guest.TypeReply, p.ID, guest.Reply{File: info("stall", 1000)})
		var h [guest.DataHeader]byte
		guest.PutData(&h, guest.TypeFile, p.ID, 0, make([]byte, 1000))
		p.Raw(append(h[:], make([]byte, 500)...))
		p.Hold()
	}},
	{"file-endless", Read, endless},
	{"file-longer", Read, func(p *Player) { transfer(p, 10, make([]byte, 5000)) }},
	{"file-shorter", Read, func(p *Player) { transfer(p, 5000, make([]byte, 10)) }},
	{"file-negative", Read, func(p *Player) { transfer(p, -5000, make([]byte, 10)) }},
	{"file-without-reply", Read, func(p *Player) { p.Data(guest.TypeFile, p.ID, 0, make([]byte, 10)) }},
	{"file-reply-twice", Read, func(p *Player) {
		p.JSON(guest.TypeReply, p.ID, guest.Reply{File: info("twice", 1)})
		p.JSON(guest.TypeReply, p.ID, guest.Reply{File: info("twice", 1)})
	}},
	{"file-end-beyond", Read, func(p *Player) {
		p.JSON(guest.TypeReply, p.ID, guest.Reply{File: info("end", 1)})
		p.Mark(guest.TypeEnd, p.ID, guest.TypeFile, 1<<40)
	}},
	{"list-million", List, func(p *Player) {
		list(p, 1_000_000, func(i int) string { return entry(fmt.Sprintf("file-%07d", i), 1) })
	}},
	{"list-long-names", List, func(p *Player) {
		name := strings.Repeat("n", guest.MaxPath)
		list(p, 20_000, func(i int) string { return entry(fmt.Sprintf("%07d%s", i, name), 1) })
	}},
	{"list-names", List, func(p *Player) { list(p, len(Names), func(i int) string { return entry(Names[i], 10) }) }},
	{"list-odd", List, func(p *Player) {
		list(p, 2, func(i int) string {
			return []string{`{"path":"year-zero","mod_time":"0000-01-01T00:00:00Z","size":-9223372036854775808,"mode":4294967295,"uid":-1,"gid":9007199254740993}`,
				`{"path":"late","mod_time":"9999-12-31T23:59:59.999999999+23:59","size":9223372036854775807,"mode":0,"uid":0,"gid":0}`}[i] + "\n"
		})
	}},
	{"list-garbage", List, func(p *Player) { list(p, 1, func(int) string { return "\x00\xff not json" }) }},
	// From the start.
	{"exit-after-hello", Boot, func(p *Player) { meet(p, 2); p.Hello(); time.Sleep(50 * time.Millisecond); os.Exit(0) }},
	{"exit-before-hello", Boot, func(*Player) { os.Exit(9) }},
	{"panic-at-once", Boot, func(*Player) { panic("chaos") }},
	{"hang-after-hello", Boot, func(p *Player) { meet(p, 2); p.Hello(); p.Hold() }},
	{"hang-before-hello", Boot, func(p *Player) { meet(p, 2); p.Hold() }},
	{"silent", Boot, func(p *Player) { p.Hold() }},
	{"hello-twice", Boot, func(p *Player) { meet(p, 2); p.Hello(); p.Hello(); p.Hold() }},
	{"huge-hello", Boot, func(p *Player) {
		meet(p, 2)
		caps := make([]string, 9000)
		p.JSON(guest.TypeHello, 0, guest.Hello{Protocol: guest.ProtocolVersion, Version: "\x1b[2J" + strings.Repeat("v", 1000), Capabilities: caps, NextID: 1<<32 - 1})
		p.Hold()
	}},
	{"wrong-version", Boot, func(p *Player) { meet(p, 2); p.JSON(guest.TypeHello, 0, guest.Hello{Protocol: 99}); p.Hold() }},
	{"wrong-nonce", Boot, func(p *Player) {
		if r := p.Reset(0); r != nil {
			r[0]++
			p.Ack(r)
		}
		p.Hold()
	}},
	{"replayed-session", Boot, func(p *Player) { // answers every later reset with what the first one got
		if r := p.Reset(0); r != nil {
			for p.Ack(r); ; p.Hello() {
				if n := p.Reset(1); n == nil {
					return
				}
				p.Ack(r)
				time.Sleep(10 * time.Millisecond)
			}
		}
	}},
}

// Names are file names that attack whoever shows, stores or parses them.
var Names = []string{
	"plain.txt",
	"ansi-\x1b[2J\x1b[31mred\x1b[0m",
	"osc52-\x1b]52;c;cm0gLXJmIC8K\a",
	"osc8-\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
	"c1-\u009b31m",
	"bidi-\u202egpj.exe",
	"isolate-\u2066\u2069",
	"line\nfirebreak: killed: memory",
	"return\rfirebreak: all clean",
	"separator-\u2028\u2029",
	"nul-\x00-etc-passwd",
	"../../escape",
	"/etc/cron.d/escape",
	"..",
	".",
	"a/../../escape",
	"back\\slash",
	"\xff\xfe",
	"-rf",
	strings.Repeat("l", 300),
	`json","audit":"forged`,
}

// forging is set when result files never end.
var forging atomic.Bool

var done = guest.Exit{Reason: sandbox.ReasonDone}

// dataFrame is a frame of n bytes of standard output.
func dataFrame(p *Player, n int) []byte {
	var h [guest.DataHeader]byte
	b := bytes.Repeat([]byte("x"), n)
	guest.PutData(&h, guest.TypeStdout, p.ID, 0, b)
	return append(h[:], b...)
}

// lying is a frame with 108 bytes of payload whose header says length.
func lying(p *Player, length uint32) []byte {
	f := dataFrame(p, 100)
	binary.BigEndian.PutUint32(f[8:], length)
	return f
}

// finished plays a whole process without output.
func finished(p *Player, e guest.Exit) {
	p.Started()
	p.Mark(guest.TypeEnd, p.ID, guest.TypeStdout, 0)
	p.Mark(guest.TypeEnd, p.ID, guest.TypeStderr, 0)
	p.Exit(e)
}

// many is a batch of small frames, so that the stream is the bottleneck.
func many(p *Player, frame func(p *Player, at uint64) []byte) []byte {
	var b []byte
	for i := range 8192 {
		b = append(b, frame(p, uint64(i))...)
	}
	return b
}

func info(name string, size int64) *guest.FileInfo {
	return &guest.FileInfo{Path: Dir + name, Size: size, Mode: 0o644, ModTime: time.Unix(1e9, 0)}
}

// transfer sends a file that says it is size bytes and is b.
func transfer(p *Player, size int64, b []byte) {
	p.JSON(guest.TypeReply, p.ID, guest.Reply{File: info("file", size)})
	p.Data(guest.TypeFile, p.ID, 0, b)
	p.Mark(guest.TypeEnd, p.ID, guest.TypeFile, uint64(len(b)))
}

// endless sends a file of ten bytes that never ends, within its credit.
func endless(p *Player) {
	p.Fresh()
	p.JSON(guest.TypeReply, p.ID, guest.Reply{File: info("endless", 10)})
	send(p, func(n int) []byte { return make([]byte, n) })
}

// send sends what next yields, until that is nothing, and returns how much.
func send(p *Player, next func(room int) []byte) uint64 {
	for at := uint64(0); ; {
		limit := p.Credit(guest.TypeFile, at)
		if limit == 0 {
			return at
		}
		b := next(int(min(limit-at, 256<<10)))
		if len(b) == 0 || !p.Data(guest.TypeFile, p.ID, at, b) {
			return at
		}
		at += uint64(len(b))
	}
}

func entry(name string, size int64) string {
	b, _ := json.Marshal(guest.FileInfo{Path: name, Size: size, Mode: 0o644, ModTime: time.Unix(1e9, 0)})
	return string(b) + "\n"
}

// list answers a list call with n lines.
func list(p *Player, n int, line func(i int) string) {
	p.Fresh()
	p.JSON(guest.TypeReply, p.ID, guest.Reply{})
	i, rest := 0, []byte(nil)
	at := send(p, func(room int) []byte {
		for len(rest) < room && i < n {
			rest = append(rest, line(i)...)
			i++
		}
		b := bytes.Clone(rest[:min(room, len(rest))])
		rest = rest[len(b):]
		return b
	})
	p.Mark(guest.TypeEnd, p.ID, guest.TypeFile, at)
}

// meet answers the first n resets: the one that asks whether the agent is up,
// and that of the first session.
func meet(p *Player, n int) {
	for i := range n {
		if r := p.Reset(i); r != nil {
			p.Ack(r)
		}
	}
}
