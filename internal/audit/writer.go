package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// run is the writer.
func (l *Log) run() {
	defer close(l.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.kick:
		case <-timer.C:
		}
		b, after, closed := l.take()
		if b != nil {
			at := time.Now()
			l.flush(b)
			l.patience = min(time.Since(at)/4, maxPatience)
			l.secure()
			l.gather(b.waiters)
			l.wake() // there may be more by now
			continue
		}
		if closed {
			l.finish()
			return
		}
		if l.lacking() {
			l.secure()
			after = min(after, spaceRetry)
		}
		timer.Reset(after)
	}
}

// lacking reports whether the reserve could not be had.
func (l *Log) lacking() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.low != nil
}

// gather lets the callers that a flush woke queue their next records before
// the next flush begins: else callers fall into groups that wait for each
// other's flushes, each of which could have taken all. waiters is how many were
// woken. It waits only as long as that brings records, a small part of what a
// flush takes for each, and a lone caller for nobody. Callers that have long work
// to do in between bring none: then it is tried ever less often.
func (l *Log) gather(waiters int) {
	if waiters < 2 {
		return
	}
	if l.idle > 0 {
		l.idle--
		return
	}
	l.mu.Lock()
	have := l.cur.n
	l.mu.Unlock()
	had, began := have, time.Now()
	defer func() {
		if have > had {
			l.vain = 0
		} else {
			l.vain = min(l.vain+1, maxVain)
			l.idle = 1<<l.vain - 1
		}
	}()
	for want, came := have+waiters, began; have < want && time.Since(came) < l.patience && time.Since(began) < 2*l.patience; {
		runtime.Gosched()
		l.mu.Lock()
		if n := l.cur.n; n > have {
			have, came = n, time.Now()
		}
		l.mu.Unlock()
	}
}

// take returns what to flush now; or nil and when to look again.
func (l *Log) take() (b *batch, after time.Duration, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pending; p != nil {
		if since := time.Since(p.since); since < spaceRetry && !l.closed {
			return nil, spaceRetry - since, false
		}
		l.pending = nil
		return p, 0, l.closed
	}
	b = l.cur
	if b.n == 0 {
		return nil, time.Hour, l.closed
	}
	// Records nobody waits for are given half their time to find company.
	if left := l.o.MaxLagTime/2 - time.Since(b.since); left > 0 && !b.urgent && !l.closed {
		return nil, left, false
	}
	l.cur, l.flying = newBatch(len(b.buf)), b.since
	return b, 0, l.closed
}

// flush makes b durable, or decides what its failure means.
func (l *Log) flush(b *batch) {
	settled := b.err != nil // it was refused for lack of space before
	head, err := l.append(b)
	if err == nil {
		l.notary.put(b.buf)
		defer l.notary.wake()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying = time.Time{}
	switch {
	case err == nil:
		l.head = head
		if settled {
			l.log.Info("audit log: there is space again")
			switch l.refused = nil; {
			case l.fatal != nil:
				l.refused = l.fatal
			case l.closed:
				l.refused = errClosed()
			}
			return
		}
		b.settle(nil)
		return
	case full(err) && !errors.Is(err, errFlush):
		l.refuse(b, settled, noSpace(err))
	default:
		l.refuse(b, settled, l.fails(err))
	}
}

// fails is what to say of an error that ends everything.
func (l *Log) fails(err error) *sandbox.Error {
	var said *sandbox.Error
	if errors.As(err, &said) && said.Kind == sandbox.KindUnavailable {
		return said
	}
	var named *fs.PathError
	if errors.As(err, &named) { // whoever is refused need not know the host's paths
		l.log.Error("audit log", "error", err)
		err = named.Err
	}
	var link *os.LinkError
	if errors.As(err, &link) {
		l.log.Error("audit log", "error", err)
		err = link.Err
	}
	return sandbox.Errorf("record", sandbox.KindUnavailable, "the audit log failed: %w", err).
		WithHint("check the disk, then restart")
}

// die makes err the end of everything, and returns what to say of it. The
// notary calls it; the writer learns of it before it writes again.
func (l *Log) die(err error) error {
	said := l.fails(err)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doom(said)
	l.end = errors.Join(l.end, said)
	l.wake() // to refuse what is queued
	return said
}

// doom makes every Record fail from now on.
// Preconditions: l.mu is held.
func (l *Log) doom(err *sandbox.Error) {
	if l.fatal != nil {
		return
	}
	l.log.Error("audit log: refusing records", "error", err)
	l.fatal, l.refused = err, err
	close(l.dead)
}

// dying is why nothing may be written any more, if so.
func (l *Log) dying() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fatal
}

// unsigned tells Record whether there is no space for a checkpoint.
func (l *Log) unsigned(low *sandbox.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case low == nil:
		l.log.Info("audit log: it can be signed again")
		l.unsign = nil
		return
	case l.unsign == nil:
		l.log.Error("audit log: no space for a checkpoint; only ends are recorded", "error", low)
	}
	l.unsign = low
}

// left tells Close that the last records could not be signed.
func (l *Log) left(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && l.fatal == nil {
		l.end = errors.Join(l.end, fmt.Errorf("the newest records were not signed: %w", err))
	}
}

// refuse tells everybody who waits, and whoever comes, of a failure. What has a
// position is kept: it is written when there is space again, before anything
// else. After a fatal error nothing is ever written again.
// Preconditions: l.mu is held.
func (l *Log) refuse(b *batch, settled bool, err *sandbox.Error) {
	more := l.cur
	l.cur = newBatch(0)
	if err.Kind != sandbox.KindNoSpace {
		l.doom(err)
	} else if !settled {
		l.log.Error("audit log: refusing records", "error", err)
	}
	if !settled {
		b.settle(err)
	}
	l.refused = err
	b.buf, b.n = append(b.buf, more.buf...), b.n+more.n
	more.settle(err)
	switch {
	case l.closed || err.Kind != sandbox.KindNoSpace:
		l.end = errors.Join(l.end, fmt.Errorf("%d records were not written: %w", b.n, err))
	default:
		b.since = time.Now()
		l.pending = b
	}
}

// append writes b's frames and flushes them.
func (l *Log) append(b *batch) (Head, error) {
	if err := l.dying(); err != nil {
		return Head{}, err
	}
	if l.seg.size >= l.o.SegmentBytes {
		if err := l.roll(b.sealed == 0); err != nil && !(full(err) && l.seg.room-l.seg.size >= int64(len(b.buf))) {
			return Head{}, err
		}
	}
	if b.sealed == 0 {
		b.head = l.head // only this goroutine changes it
	}
	for rest := b.buf[b.sealed:]; len(rest) > 0; b.head.Position++ {
		l.links.seal(rest[frameLen : frameLen+int(binary.BigEndian.Uint32(rest))])
		rest, b.head.Hash = l.chain.seal(rest, b.head.Hash)
	}
	b.sealed = len(b.buf)
	return b.head, l.seg.append(b.buf)
}

// finish is the writer's last act.
func (l *Log) finish() {
	err := l.seg.close()
	l.mu.Lock()
	l.end = errors.Join(l.end, err)
	l.mu.Unlock()
}
