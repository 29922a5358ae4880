package control

import (
	"bufio"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// said is what a router writes to stderr: its log, and why it fell. It is a
// hostile process' text: lines and their rate are bounded.
type said struct {
	done chan struct{}

	mu   sync.Mutex
	last []string // guarded by mu; at most saidLines
}

const (
	saidLine  = 1 << 10 // bytes
	saidLines = 12
	saidRate  = 50 // lines a second that are logged; all are read
)

// listen logs what comes out of r until it ends, and closes it.
func listen(r *os.File, log *slog.Logger) *said {
	s := &said{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer r.Close()
		s.read(r, log)
	}()
	return s
}

func (s *said) read(r io.Reader, log *slog.Logger) {
	in := bufio.NewReaderSize(r, saidLine)
	begun, n := time.Now(), 0
	for {
		line, _, err := in.ReadLine() // a long line in pieces
		if err != nil {
			return
		}
		text := strings.ToValidUTF8(string(line), "�")
		s.mu.Lock()
		if s.last = append(s.last, text); len(s.last) > saidLines {
			s.last = s.last[1:]
		}
		s.mu.Unlock()
		if now := time.Now(); now.Sub(begun) > time.Second {
			begun, n = now, 0
		}
		if n++; n <= saidRate {
			log.Info("the router says", "line", text)
		}
	}
}

// wait waits until nothing more is said.
func (s *said) wait() { <-s.done }

// tail is the last lines.
func (s *said) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.last, "\n")
}
