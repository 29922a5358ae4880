package hostile

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/guest/agent"
	"github.com/firebreak-dev/firebreak/sandbox"
	"github.com/firebreak-dev/firebreak/test/hostile/chaos"
)

// meet opens a session with an agent that plays scripts.
func meet(t *testing.T) (*guest.Session, error) {
	t.Helper()
	host, far := net.Pipe()
	conn := chaos.Wrap(far)
	srv := agent.New(chaos.System(nil, conn), "chaos")
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(context.Background(), conn) }()
	t.Cleanup(func() { conn.Close(); <-served; srv.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := guest.Open(ctx, host, guest.Config{Liveness: 500 * time.Millisecond})
	if err == nil {
		t.Cleanup(func() { s.Close() })
	}
	return s, err
}

// call triggers a script and returns what the host made of it, in a word.
func call(ctx context.Context, s *guest.Session, script chaos.Script) string {
	var err error
	switch script.At {
	case chaos.Exec:
		var p *guest.Process
		if p, err = s.Exec(ctx, guest.Command{Argv: []string{chaos.Program, script.Name}, Timeout: 300 * time.Millisecond}); err == nil {
			if script.Name == "blind-flood" {
				p.Stdout().Close() // nobody reads: nothing may be kept, not even acknowledgements
			} else {
				go io.Copy(io.Discard, p.Stdout())
			}
			go io.Copy(io.Discard, p.Stderr())
			var e guest.Exit
			if e, err = p.Wait(ctx); err == nil {
				return "exit " + string(e.Reason)
			}
		}
	case chaos.Read:
		_, err = s.ReadAll(ctx, chaos.Dir+script.Name, "", 4<<20)
	case chaos.Write:
		_, err = s.WriteFile(ctx, chaos.Dir+script.Name, io.LimitReader(zeros{}, 64<<20), guest.WriteOptions{})
	case chaos.List:
		var list []guest.FileInfo
		if list, _, err = s.List(ctx, chaos.Dir+script.Name, guest.ListOptions{}); err == nil {
			return fmt.Sprint("listed ", len(list))
		}
	}
	if err == nil {
		return "fine"
	}
	return string(sandbox.KindOf(err))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// verdicts are what a host may make of each script, over a plain pipe. The
// first is the rule, the others depend on what the real agent had under way.
var verdicts = map[string][]string{
	"half-frame":         {"timeout", "protocol"},
	"half-frame-silence": {"timeout"},
	"length-one-long":    {"protocol", "timeout"},
	"odd-kind":           {"protocol"},
	"ended-process":      {"exit done"},
	"forged-exit":        {"exit done"},
	"end-twice":          {"protocol", "timeout"}, // the same end again is no lie
	"exit-twice":         {"exit done", "protocol"},
	"result-endless":     {"exit done"},
	"tiny-flood":         {"timeout"},
	"empty-flood":        {"timeout"},
	"window-flood":       {"timeout"},
	"deaf-flood":         {"timeout"},
	"mute":               {"timeout"},
	"started-mute":       {"timeout"},
	"never-reads":        {"timeout"},
	"stall-file":         {"timeout"},
	"file-endless":       {"protocol"},
	"file-longer":        {"fine"},
	"file-shorter":       {"fine"},
	"file-negative":      {"fine"},
	"file-without-reply": {"internal"},
	"deep-object":        {"timeout"},
	"blind-flood":        {"timeout"},
	"list-million":       {"protocol"},
	"list-long-names":    {"too_large"},
	"list-names":         {fmt.Sprint("listed ", len(chaos.Names))},
	"list-odd":           {"protocol", "listed 2"},
}

// TestOverAPipe plays every script against the host's side of the protocol
// alone: each call ends with a typed error, in time and in bounded memory, and
// nothing of the session is left.
func TestOverAPipe(t *testing.T) {
	var slow []chaos.Script
	before := runtime.NumGoroutine()
	for _, script := range chaos.Scripts {
		switch {
		case script.At == chaos.Boot || slices.Contains([]string{"panic", "exit", "exit-3", "spin"}, script.Name):
			continue // these need a process of their own
		case slices.Contains(verdicts[script.Name], "timeout"):
			slow = append(slow, script) // waits for a deadline: all of them at once
			continue
		}
		t.Run(script.Name, func(t *testing.T) {
			peak := watchHeap(t)
			play(t, script)
			if grown := peak(); grown > 24<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
		})
		settled(t, before)
	}
	peak := watchHeap(t)
	t.Run("slow", func(t *testing.T) {
		for _, script := range slow {
			t.Run(script.Name, func(t *testing.T) {
				t.Parallel()
				play(t, script)
			})
		}
	})
	if grown := peak(); grown > int64(len(slow))<<20*4 {
		t.Errorf("the heap grew by %d MiB for %d floods and silences", grown>>20, len(slow))
	}
	settled(t, before)
}

func play(t *testing.T, script chaos.Script) {
	s, err := meet(t)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	start := time.Now()
	got := call(ctx, s, script)
	took := time.Since(start)
	if want := verdicts[script.Name]; len(want) == 0 && got != "protocol" || len(want) > 0 && !slices.Contains(want, got) {
		t.Errorf("%s, want %v; the session: %v", got, want, s.Err())
	}
	if took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
}

// watchHeap samples the heap until the function it returns is called, which
// says by how much it has grown at most.
func watchHeap(t *testing.T) func() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	base, peak := int64(m.HeapAlloc), int64(m.HeapAlloc)
	quit, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				peak = max(peak, int64(m.HeapAlloc))
			}
		}
	}()
	return func() int64 { close(quit); <-over; return peak - base }
}

// settled waits until no more goroutines run than before.
func settled(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 64<<10)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, strings.TrimSpace(string(buf[:runtime.Stack(buf, true)])))
		}
	}
}
