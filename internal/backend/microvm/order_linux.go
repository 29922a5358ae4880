package microvm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest/machine"
)

// orderPatience bounds what a machine's first process is asked for. A guest's kernel
// that was taken over may never answer.
const orderPatience = 10 * time.Second

// givePatience bounds one attempt over a connection that may have been cut without a
// word.
const givePatience = 4 * time.Second

// reply is what came of an order.
type reply struct {
	took time.Duration // the answer
	sent int64         // of what the agent has said, see machine.Order
}

// order has the machine's first process do something. Orders are given one at a time:
// by who holds the instance, or when nobody else knows it. Where they go over a
// connection that ends before the answer, as those to a machine do that has been
// restored just now, they are given again: what they ask for can be done twice.
func (i *Instance) order(ctx context.Context, o machine.Order) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, orderPatience)
	defer cancel()
	k, ok := i.monitor.(keeper)
	if !ok {
		return reply{}, errNoChannel
	}
	for {
		r, err := i.give(ctx, k, o)
		if err == nil || ctx.Err() != nil || errors.Is(err, errNoChannel) || errors.Is(err, errNotDone) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("the machine does not answer: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var errNotDone = errors.New("the machine could not do it")

// give gives an order once.
func (i *Instance) give(ctx context.Context, k keeper, o machine.Order) (r reply, err error) {
	conn, err := k.orders(ctx, i.dir)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	if _, ok := conn.(*stream); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, givePatience)
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(past) })
	defer stop()
	nonce := make([]byte, 16)
	rand.Read(nonce)
	o.Nonce = hex.EncodeToString(nonce)
	began := time.Now()
	if o.Time != 0 {
		o.Time = began.UnixNano()
	}
	line, err := o.Line()
	if err != nil {
		return r, err
	}
	if _, err = conn.Write(line); err == nil {
		r.sent, err = answerTo(conn, o.Nonce)
	}
	if r.took = time.Since(began); err != nil && ctx.Err() != nil {
		err = fmt.Errorf("the machine does not answer: %w", ctx.Err())
	}
	return r, err
}

// answerTo reads until an order's answer has come by. What comes before is left from
// answers nobody waited for.
func answerTo(conn io.Reader, nonce string) (sent int64, err error) {
	const digits = machine.AnswerDigits
	buf, seen := make([]byte, 4096), []byte{}
	for {
		n, err := conn.Read(buf)
		seen = append(seen, buf[:n]...)
		if at := bytes.Index(seen, []byte(nonce)); at >= 0 && len(seen) >= at+len(nonce)+1+digits {
			answer := seen[at+len(nonce):]
			if answer[0] != machine.Done {
				return 0, errNotDone
			}
			return strconv.ParseInt(string(answer[1:1+digits]), 16, 64)
		}
		if err != nil {
			return 0, err
		}
		if keep := len(nonce) + digits; len(seen) > keep {
			seen = append(seen[:0], seen[len(seen)-keep:]...)
		}
	}
}

// now asks for the clock to be set, to when the order is sent.
const now = 1

// closeEnough is how far a machine's clock may be off: as long as an order took, at
// most.
const closeEnough = 100 * time.Millisecond

// thaw sets the clock of a machine that stood still, and lets it go on. On a busy
// host the time has grown old when it arrives: it is sent again.
func (i *Instance) thaw(ctx context.Context) error {
	for n := 0; ; n++ {
		r, err := i.order(ctx, machine.Order{Time: now, Thaw: true})
		if err != nil || r.took < closeEnough || n == 3 {
			return err
		}
	}
}

// renew makes a restored machine, which is frozen, another than the one it was.
func (i *Instance) renew(ctx context.Context, hostname string) error {
	b := make([]byte, 64+16+16)
	rand.Read(b)
	boot, id := b[64:80], b[80:]
	boot[6], boot[8] = boot[6]&0x0f|0x40, boot[8]&0x3f|0x80 // as random identifiers are marked
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	_, err := i.order(ctx, machine.Order{Time: now, Renew: &machine.Renewal{Seed: b[:64], Hostname: hostname, BootID: boot, MachineID: id}})
	if err != nil {
		return fmt.Errorf("make the machine another: %w", err)
	}
	return nil
}
