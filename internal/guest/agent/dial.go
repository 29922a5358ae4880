package agent

import (
	"context"
	"errors"
	"io"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// dialBuffer is how much of a connection is read at once.
const dialBuffer = 32 << 10

// errBroken says that a server has closed a connection that was in use.
var errBroken = sandbox.Errorf("dial", sandbox.KindGone, "the server broke the connection")

// dial connects the call id to a port: the answer, then bytes both ways until
// both have ended or the host has had enough.
func (l *link) dial(id uint32, port int) {
	t := &transfer{down: newCredit(guest.DialWindow)}
	t.up = guest.NewStream(id, guest.TypeFile, guest.DialWindow, 0,
		func(at uint64) { _ = l.mark(guest.TypeWindow, id, guest.TypeFile, at) })
	l.start(id, guest.OpDial, t, func(t *transfer) (guest.Reply, error) {
		conn, err := l.s.sys.Dial(t.ctx, port)
		if err != nil {
			return guest.Reply{}, err
		}
		stop := context.AfterFunc(t.ctx, func() { conn.Close() })
		defer stop()
		defer conn.Close()
		l.reply(id, guest.Reply{})
		sent := make(chan error, 1)
		l.s.wg.Add(1)
		go func() {
			defer l.s.wg.Done()
			_, err := t.up.WriteTo(conn)
			if err == nil {
				err = conn.CloseWrite()
			}
			t.up.Close() // what the server does not take any more vanishes
			sent <- err
		}()
		err = l.receive(id, t, conn)
		if err != nil { // nothing goes on, either way
			t.up.Fail(err)
			conn.Close()
			<-sent
			return guest.Reply{}, err
		}
		// It has said all. It may still listen, or not.
		if <-sent == nil || t.ctx.Err() != nil {
			return guest.Reply{}, errAnswered
		}
		return guest.Reply{}, errBroken
	})
}

// receive sends the host what comes from r, and its end. It returns errAnswered
// after that, or when the host has had enough.
func (l *link) receive(id uint32, t *transfer, r io.Reader) error {
	buf := make([]byte, dialBuffer)
	for {
		offset, room := t.down.take(t.ctx.Done(), len(buf))
		if room == 0 {
			return errAnswered
		}
		n, err := r.Read(buf[:room])
		t.down.untake(room - n)
		if n > 0 && l.data(guest.TypeFile, id, offset, buf[:n], nil) != nil {
			return errAnswered
		}
		switch {
		case t.ctx.Err() != nil:
			return errAnswered
		case errors.Is(err, io.EOF):
			_ = l.mark(guest.TypeEnd, id, guest.TypeFile, offset+uint64(n))
			return nil
		case err != nil:
			return errBroken
		}
	}
}
