package e2b

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/e2b/gen/process"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Signs of life on a silent stream: how often, unless the client says.
const (
	defaultPing = 90 * time.Second
	minPing     = time.Second
	maxPing     = 10 * time.Minute
)

// pingOf is how often a client wants a sign of life.
func pingOf(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || n <= 0 {
		return defaultPing
	}
	return min(max(time.Duration(n)*time.Second, minPing), maxPing)
}

// pinger sends messages from one goroutine, and signs of life from its own.
type pinger[T any] struct {
	mu      sync.Mutex // held while something is sent
	deliver func(T) error
	quit    chan struct{}
	done    sync.WaitGroup
}

// newPinger begins the signs of life, each made by alive, once begun reports that
// the stream has. Its owner calls stop.
func newPinger[T any](every time.Duration, deliver func(T) error, alive T) *pinger[T] {
	p := &pinger[T]{deliver: deliver, quit: make(chan struct{})}
	p.done.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-p.quit:
				return
			case <-t.C:
			}
			if p.send(alive) != nil {
				return // whoever sends next is told
			}
		}
	})
	return p
}

func (p *pinger[T]) send(m T) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deliver(m)
}

// stop ends the signs of life and waits for the last.
func (p *pinger[T]) stop() {
	close(p.quit)
	p.done.Wait()
}

// events is a stream of one process's events.
type events struct {
	*pinger[*process.ProcessEvent]
	every   time.Duration
	deliver func(*process.ProcessEvent) error
}

// stream sends a process's events with deliver. The first has to be its start.
func (s *Server) stream(h http.Header, deliver func(*process.ProcessEvent) error) *events {
	return &events{every: pingOf(h), deliver: deliver}
}

func (e *events) start(pid uint32) error {
	if err := e.deliver(&process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: pid}}}); err != nil {
		return err
	}
	e.pinger = newPinger(e.every, e.deliver, &process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}})
	return nil
}

func (e *events) stop() {
	if e.pinger != nil {
		e.pinger.stop()
	}
}

// end says how the process ended. One that ran out of time ends its call as E2B's
// does; one that a limit killed says so.
func (e *events) end(code int32, reason, detail string) error {
	end := &process.ProcessEvent_EndEvent{ExitCode: code, Exited: true, Status: fmt.Sprintf("exit status %d", code)}
	switch sandbox.Reason(reason) {
	case sandbox.ReasonDone:
		if code != 0 {
			end.Error = &end.Status
		}
	case sandbox.ReasonTimeout:
		return sandbox.Errorf("run", sandbox.KindTimeout, "the command ran out of its time").WithHint("%s", detail)
	case sandbox.ReasonOperator: // by a signal, which E2B's clients know by these words
		end.ExitCode, end.Exited, end.Status = -1, false, "signal: killed"
		end.Error = &end.Status
	default:
		said := fmt.Sprintf("killed: %s (%s)", reason, detail)
		end.ExitCode, end.Exited, end.Status, end.Error = -1, false, "signal: killed", &said
	}
	return e.send(&process.ProcessEvent{Event: &process.ProcessEvent_End{End: end}})
}

func data(d *process.ProcessEvent_DataEvent) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: d}}
}

func stdout(b []byte) *process.ProcessEvent {
	return data(&process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: b}})
}

func stderr(b []byte) *process.ProcessEvent {
	return data(&process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: b}})
}

func shown(b []byte) *process.ProcessEvent {
	return data(&process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Pty{Pty: b}})
}

func outputOf(o *v1.Output) []byte {
	if o.GetText() != "" {
		return []byte(o.GetText())
	}
	return o.GetData()
}

func eventBytes(e *v1.Event) []byte {
	if e.GetText() != "" {
		return []byte(e.GetText())
	}
	return e.GetData()
}
