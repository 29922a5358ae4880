// Command liar is what a router would be that a sandbox has taken over: it answers
// the keeper's first request, and then says what its argument names.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	last = 0
	more = 1
)

func packet(kind byte, text string) {
	if err := unix.Sendmsg(3, append([]byte{kind}, text...), nil, nil, 0); err != nil {
		os.Exit(0) // the keeper hangs up, as it should
	}
}

func event(seq int, wire, more string) string {
	return fmt.Sprintf(`{"seq":%d,"event":{"wire":%q,"time":"2026-01-02T03:04:05Z","kind":"connect","host":"h","port":1,"decision":"allow","rule":"good","reason":"rule","generation":77,"count":1%s}}`, seq, wire, more)
}

func main() {
	buf := make([]byte, 1<<20)
	read := func() int {
		n, err := unix.Read(3, buf)
		if n <= 0 || err != nil {
			os.Exit(0)
		}
		return n
	}
	if os.Args[1] == "mute" {
		time.Sleep(time.Hour)
	}
	lie := lies[os.Args[1]]
	if lie == nil {
		fmt.Fprintln(os.Stderr, "no such lie")
		os.Exit(1)
	}
	read()
	packet(last, `{"ref":1}`)
	lie()
	for ref := 2; ; { // and then it does as it is told, more or less
		n := read()
		if strings.Contains(string(buf[:n]), `"ref"`) {
			packet(last, fmt.Sprintf(`{"ref":%d,"stats":{"wires":0,"connections":0,"allowed":0,"denied":0,"upload":0,"download":0}}`, ref))
			ref++
		}
	}
}

var lies = map[string]func(){
	"nothing":  func() {},
	"garbage":  func() { packet(last, "\x00\xff{") },
	"empty":    func() { packet(last, "") },
	"kind":     func() { packet(7, "{}") },
	"two":      func() { packet(last, `{"ref":2}{"ref":3}`) },
	"unknown":  func() { packet(last, `{"ref":2,"root":true}`) },
	"stranger": func() { packet(last, `{"ref":99}`) },
	"null":     func() { packet(last, `null`) },
	"both":     func() { packet(last, `{"ref":2,"usage":{}}`) },
	"order":    func() { packet(last, event(2, "in1", "")) },
	"again":    func() { packet(last, event(1, "in1", "")); packet(last, event(1, "in1", "")) },
	"escape":   func() { packet(last, event(1, "in1", `,"hint":"\u001b]52;c;x\u0007"`)) },
	"long":     func() { packet(last, event(1, "in1", `,"address":"`+strings.Repeat("x", 999)+`"`)) },
	"negative": func() { packet(last, event(1, "in1", `,"upload":-1`)) },
	"debt":     func() { packet(last, `{"usage":{"in1":{"good":{"upload":-5}}}}`) },
	"large":    func() { packet(last, strings.Repeat(" ", 40<<10)+"{}") },
	"half":     func() { packet(more, "{") },
	"endless": func() {
		for {
			packet(more, strings.Repeat(" ", 32<<10))
		}
	},
	"flood": func() {
		for i := 1; ; i++ {
			packet(last, event(i, "in1", ""))
		}
	},
	"files": func() {
		rights := unix.UnixRights(0, 1, 2, 0, 1, 2)
		for range 100 {
			unix.Sendmsg(3, []byte("\x00{\"usage\":{}}"), rights, nil, 0)
		}
		packet(last, "enough")
	},
	"kinds": func() { packet(last, `{"ref":2,"error":{"kind":"nonsense","message":"x"}}`) },
	"deep":  func() { packet(last, `{"usage":`+strings.Repeat(`{"a":`, 6000)) },

	// What is no reason to end it.
	"others": func() {
		packet(last, event(1, "in9", ""))
		packet(last, `{"usage":{"in9":{"good":{"upload":5}},"in1":{"nosuch":{"upload":5}}}}`)
	},
	"talk": func() {
		for range 200 {
			fmt.Fprint(os.Stderr, strings.Repeat("\x1b[2J\xff", 10_000)+"\n")
		}
	},
	"usage": func() {
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
			packet(last, `{"usage":{"in1":{`+strings.Repeat(`"x":{"upload":1},`, 1000)+`"y":{"upload":1}}}}`)
		}
	},
}
