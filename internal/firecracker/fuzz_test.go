package firecracker

import (
	"io"
	"net"
	"strings"
	"testing"
)

// FuzzConnect: an answer is one or an error, and not a byte behind it is taken.
func FuzzConnect(f *testing.F) {
	f.Add("OK 1073741824\nrest")
	f.Add("OK \n")
	f.Add(strings.Repeat("x", 100))
	f.Fuzz(func(t *testing.T, answer string) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Read(make([]byte, 64))
			_, _ = io.WriteString(theirs, answer)
			theirs.Close()
		}()
		if Connect(t.Context(), ours, 7) != nil {
			if _, err := ours.Read(make([]byte, 1)); err == nil {
				t.Error("a refused connection stays open")
			}
			return
		}
		line, want, ok := strings.Cut(answer, "\n")
		rest, err := io.ReadAll(ours)
		ours.Close()
		if !ok || !strings.HasPrefix(line, "OK ") || err != nil || string(rest) != want {
			t.Errorf("%q was taken, and %q left of %q (%v)", line, rest, want, err)
		}
	})
}
