package orchestrator

import (
	"encoding/json"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest/driver"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// TurnEvent is the Data of an event about a turn.
type TurnEvent struct {
	Context  string         `json:"context"`
	Turn     int            `json:"turn"`
	Result   *driver.Result `json:"result,omitempty"` // Display
	Error    *driver.Error  `json:"error,omitempty"`  // Exception
	Reason   sandbox.Reason `json:"reason,omitempty"` // TurnEnd, and all that follows
	Detail   string         `json:"detail,omitempty"`
	Count    int            `json:"execution_count,omitempty"`
	Duration float64        `json:"duration_ms,omitempty"`
	Alive    bool           `json:"alive,omitempty"`
}

var _ Sink = (*warm)(nil)

// Started implements Sink.
func (w *warm) Started(int, uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest()
	return nil
}

// Stdout implements Sink.
func (w *warm) Stdout(data []byte, id uint64) error {
	w.printed(func(s TurnSink) error { return s.Stdout(data, id) })
	return nil
}

// Stderr implements Sink.
func (w *warm) Stderr(data []byte, id uint64) error {
	w.printed(func(s TurnSink) error { return s.Stderr(data, id) })
	return nil
}

// printed gives output to the turn that runs. Between turns it is among the
// sandbox's events only.
func (w *warm) printed(item func(TurnSink) error) {
	w.mu.Lock()
	t := w.turn
	w.mu.Unlock()
	if t != nil {
		t.give(item)
	}
}

// piece is what of a driver's output can be dealt with now.
func (w *warm) piece(channel int, data []byte, eof bool) output {
	n, c := w.token.Cut(data, eof)
	o := output{channel: channel, part: c != nil}
	if c == nil {
		if n == len(data) && !eof {
			n -= partial(data)
		}
		o.data = data[:n:n]
		return o
	}
	o.data = data[:n:n]
	text, whole := w.parts[channel].Add(c)
	if !whole {
		return o
	}
	if text == nil {
		w.mu.Lock()
		o.said = &driver.Message{Type: driver.Shown, Turn: w.turns, Result: &driver.Result{Text: driver.TooLarge}}
		w.mu.Unlock()
		return o
	}
	if m, err := driver.Parse(text); err == nil { // else user code wrote it
		o.said = &m
	}
	return o
}

// tell makes an event of what is shown, and of what went wrong.
func (w *warm) tell(m *driver.Message) uint64 {
	e, kind := TurnEvent{Context: w.entry.ID, Turn: m.Turn, Result: m.Result, Error: m.Error}, event.Display
	switch m.Type {
	case driver.Shown:
	case driver.Fail:
		kind = event.Exception
	default:
		return 0
	}
	b, err := json.Marshal(e)
	if err == nil && len(b) > event.MaxData {
		if m.Error != nil {
			e.Error = &driver.Error{Name: clip(m.Error.Name), Value: clip(m.Error.Value)}
		} else {
			e.Result = &driver.Result{Main: m.Result.Main, Text: "[this result is too large for an event]"}
		}
		b, err = json.Marshal(e)
	}
	if err != nil { // Parse has seen to it that it can be written
		return 0
	}
	return w.l.o.publish(w.l.id, event.Event{Type: kind, Process: w.x.process(), Data: b})
}

// heard deals with what a driver said.
func (w *warm) heard(channel int, m *driver.Message, id uint64) {
	if m.Type == driver.Ready {
		w.set.Do(func() { close(w.ready) })
		return
	}
	w.mu.Lock()
	if m.Type == driver.End && w.sync != 0 && m.Turn == w.sync {
		w.caughtUp(channel)
		return
	}
	t := w.turn
	if t == nil || t.n != m.Turn {
		w.mu.Unlock()
		return
	}
	switch m.Type {
	case driver.End:
		w.ended(t, channel, m.Count)
		return
	case driver.Fail:
		t.failed = m.Error
	}
	w.mu.Unlock()
	switch m.Type {
	case driver.Shown:
		t.give(func(s TurnSink) error { return s.Result(m.Result, id) })
	case driver.Fail:
		t.give(func(s TurnSink) error { return s.Failed(m.Error, id) })
	}
}

// caughtUp ends, once both channels have said so, what an earlier server began. Of an
// end that is not told again that server has told; of half an end, which it has dealt
// with on the other channel, it has not. Preconditions: w.mu is held, and is not
// afterwards.
func (w *warm) caughtUp(channel int) {
	w.synced[channel] = true
	if !w.synced[0] || !w.synced[1] {
		w.mu.Unlock()
		return
	}
	t := w.turn
	w.sync, w.turn = 0, nil
	w.rest()
	w.mu.Unlock()
	switch {
	case t == nil:
	case t.ends[0] || t.ends[1]:
		w.finish(t, sandbox.ReasonDone, "", true)
	default:
		if t.timer != nil {
			t.timer.Stop()
		}
		close(t.over)
	}
	w.set.Do(func() { close(w.ready) })
	w.queue.leave()
}

// ended ends t once both channels have said so. Preconditions: w.mu is held, and is
// not afterwards.
func (w *warm) ended(t *turn, channel, count int) {
	t.ends[channel], t.count = true, count
	if !t.ends[0] || !t.ends[1] {
		w.mu.Unlock()
		return
	}
	w.turn = nil
	reason, detail := sandbox.ReasonDone, ""
	if t.failed != nil && t.reason != "" {
		reason, detail = t.reason, t.detail
	}
	resumed := w.sync != 0 // then the turn of the queue is that of whoever catches up
	w.rest()
	w.mu.Unlock()
	w.finish(t, reason, detail, true)
	if !resumed {
		w.queue.leave()
	}
}
