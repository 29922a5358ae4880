package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Type writes what in yields to the program's standard input, as it comes, until
// in ends (nil), the program has, or ctx does. It is what a person's keyboard is
// copied with; a script may as well use Write.
//
// While no server answers it waits for one and types on there. A piece whose answer
// was lost with the connection is not written again, since it may have arrived: of
// what is typed in the instant a server dies, a key may be missing, none is there
// twice.
//
// Errors: those of Write and of in. ctx cannot interrupt a Read of in.
func (p *Process) Type(ctx context.Context, in io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if err := untilDelivered(ctx, func() error { _, err := p.Write(ctx, buf[:n]); return err }); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return sandbox.Wrap("type", p.s.id, err)
		}
	}
}

// untilDelivered repeats a call for as long as it surely reached no server. One
// that may have is taken to.
func untilDelivered(ctx context.Context, call func() error) error {
	for wait := resumeFirst; ; wait = min(2*wait, resumeMax) {
		err := call()
		var se *sandbox.Error
		if err == nil || !broken(err) || ctx.Err() != nil {
			return err
		}
		if errors.As(err, &se) && se.Op == opCall { // sent, and the answer is lost
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return sandbox.Wrap("type", "", context.Cause(ctx))
		}
	}
}

// KeepSize makes the program's terminal as large as the last of sizes, until that
// is closed, the program has ended, or ctx has. While no server answers it waits
// for one. Errors: those of Resize.
func (p *Process) KeepSize(ctx context.Context, sizes <-chan Size) error {
	for {
		select {
		case size, more := <-sizes:
			if !more {
				return nil
			}
			if err := untilDelivered(ctx, func() error { return p.Resize(ctx, size) }); err != nil {
				return err
			}
		case <-ctx.Done():
			return sandbox.Wrap("resize", p.s.id, context.Cause(ctx))
		}
	}
}
