package microvm

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// FuzzQMP: whatever a monitor sends, following it ends with the connection, and
// what is kept of it is bounded and printable.
func FuzzQMP(f *testing.F) {
	f.Add([]byte("{\"QMP\": {}}\n{\"return\": {}}\n{\"return\": {\"status\": \"shutdown\"}}\n{\"return\": \"Kernel panic\"}\n"))
	f.Add([]byte("{\"QMP\": {}}\n{\"event\": \"STOP\"}\n{\"error\": {}}\n"))
	f.Add([]byte("{}\n[]\nnull\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		go func() {
			_, _ = theirs.Write(sent)
			theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		e, err := follow(ctx, ours)
		if ctx.Err() != nil {
			t.Fatal("it hangs")
		}
		if err == nil && e.why == "" {
			t.Error("an end without a reason")
		}
		said := lastWords(e.console)
		if len(said) > 310 || said != printable(said) {
			t.Errorf("last words %q", said)
		}
	})
}
