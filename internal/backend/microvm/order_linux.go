package microvm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/firebreak-dev/firebreak/internal/guest/machine"
)

// orderPatience bounds what a machine's first process is asked for. A guest's kernel
// that was taken over may never answer.
const orderPatience = 10 * time.Second

// order has the machine's first process do something and returns how long the
// answer took. Orders are given one at a time: by who holds the instance, or when
// nobody else knows it.
func (i *Instance) order(ctx context.Context, o machine.Order) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, orderPatience)
	defer cancel()
	conn, err := dialFIFOs(i.dir, fileOrders)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
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
		return 0, err
	}
	_, err = conn.Write(line)
	answer := 0
	if err == nil { // what comes before is left from answers nobody waited for
		answer, err = seek(conn, []byte(o.Nonce+string(machine.Done)), []byte(o.Nonce+string(machine.Failed)))
	}
	switch took = time.Since(began); {
	case err != nil && ctx.Err() != nil:
		return took, fmt.Errorf("the machine does not answer: %w", ctx.Err())
	case err != nil:
		return took, err
	case answer != 0:
		return took, errors.New("the machine could not do it")
	}
	return took, nil
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
		took, err := i.order(ctx, machine.Order{Time: now, Thaw: true})
		if err != nil || took < closeEnough || n == 3 {
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
