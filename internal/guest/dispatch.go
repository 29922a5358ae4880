package guest

import (
	"encoding/json"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// readLoop is the session's reader. Nothing in it waits for anybody but the
// stream, so that one reader that does not read stalls no other.
func (s *Session) readLoop(d *Decoder) error {
	for {
		h, err := d.Next()
		if err != nil {
			return err
		}
		s.heard.Store(int64(steady()))
		switch h.Type {
		case TypeStdout, TypeStderr, TypeFile:
			err = s.onData(d, h)
		default:
			var p []byte
			if p, err = d.Payload(h); err == nil {
				err = s.onControl(h, p)
			}
		}
		if err != nil {
			return err
		}
	}
}

// stray accounts for a frame whose addressee is gone. A guest may send what was
// under way; one that goes on is lying.
func (s *Session) stray(h Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.Stream == 0 || h.Stream >= s.nextID {
		return violation("frame type %#x for id %d, which was never used", byte(h.Type), h.Stream)
	}
	if s.allowance -= HeaderSize + h.Length; s.allowance < 0 {
		return violation("too many frames for ids that have ended")
	}
	return nil
}

func (s *Session) onData(d *Decoder, h Header) error {
	s.mu.Lock()
	var st *Stream
	if h.Type == TypeFile {
		if c := s.calls[h.Stream]; c != nil && c.open {
			st = c.in
		}
	} else if p := s.procs[h.Stream]; p != nil {
		st = p.output(h.Type)
	}
	s.mu.Unlock()
	if st != nil {
		return st.Receive(d, h)
	}
	if err := s.stray(h); err != nil {
		return err
	}
	if err := d.Skip(); err != nil {
		return err
	}
	return d.Verify()
}

func (s *Session) onControl(h Header, p []byte) error {
	switch h.Type {
	case TypeReply:
		return s.onReply(h, p)
	case TypeExit:
		return s.onExit(h, p)
	case TypeWindow:
		return s.onWindow(h, p)
	case TypeEnd:
		return s.onEnd(h, p)
	}
	return violation("frame type %#x in a running session", byte(h.Type))
}

func (s *Session) onReply(h Header, body []byte) error {
	var r Reply
	if err := json.Unmarshal(body, &r); err != nil {
		return violation("reply: %v", err)
	}
	s.mu.Lock()
	c := s.calls[h.Stream]
	if c == nil {
		s.mu.Unlock()
		return s.stray(h)
	}
	again := c.open
	if c.in != nil && r.Error == nil && !again {
		c.open = true // data and end follow
	} else {
		delete(s.calls, h.Stream)
	}
	s.mu.Unlock()
	if c.up != nil && (!c.both || r.Error != nil) {
		defer c.up.stop(errAnswered)
	}
	if again {
		// A second reply is how a transfer fails half way. The call is not the
		// session's any more, so its reader has to be told of a violation here.
		if r.Error == nil {
			err := violation("call %d answered twice", h.Stream)
			c.in.Fail(sessionError("read", err))
			return err
		}
		c.in.Fail(unwire("read", r.Error))
		return nil
	}
	c.reply <- r // capacity 1, and only this goroutine sends, once
	return nil
}

func (s *Session) onExit(h Header, body []byte) error {
	var e Exit
	if err := json.Unmarshal(body, &e); err != nil {
		return violation("exit: %v", err)
	}
	switch e.Reason {
	case sandbox.ReasonDone, sandbox.ReasonTimeout, sandbox.ReasonMemory, sandbox.ReasonPIDs,
		sandbox.ReasonDisk, sandbox.ReasonOperator:
	default:
		return violation("exit for the unknown reason %q", clean(string(e.Reason), 32))
	}
	if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > 64 || e.Duration < 0 || e.CPU < 0 || e.MaxRSS < 0 {
		return violation("exit with impossible numbers")
	}
	if e.Detail = clean(e.Detail, maxMessage); e.Reason == sandbox.ReasonDone {
		e.Detail = "" // what is said of a program that just ended, the host says
	}
	s.mu.Lock()
	p := s.procs[h.Stream]
	s.mu.Unlock()
	if p == nil {
		return s.stray(h)
	}
	return p.exited(e)
}

func (s *Session) onWindow(h Header, body []byte) error {
	channel, at, err := ParseMark(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	var o *outflow
	switch channel {
	case TypeFile:
		if c := s.calls[h.Stream]; c != nil {
			o = c.up
		}
	case TypeStdin:
		if p := s.procs[h.Stream]; p != nil {
			o = p.stdin
		}
	}
	s.mu.Unlock()
	if o == nil {
		return s.stray(h)
	}
	return o.granted(at)
}

func (s *Session) onEnd(h Header, body []byte) error {
	channel, at, err := ParseMark(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	c, p := s.calls[h.Stream], s.procs[h.Stream]
	transfer := channel == TypeFile && c != nil && c.open
	s.mu.Unlock()
	switch {
	case transfer:
		if err := c.in.Finish(at); err != nil {
			return err // the call is still there, so that its reader learns of it
		}
		if c.both { // the other half goes on until Close
			return nil
		}
		s.mu.Lock()
		delete(s.calls, h.Stream)
		s.mu.Unlock()
		return nil
	case channel == TypeStdin && p != nil && p.stdin != nil:
		p.stdin.stop(errStdinClosed)
		return nil
	case p != nil && p.output(channel) != nil:
		return p.output(channel).Finish(at)
	}
	return s.stray(h)
}
