package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options tunes a Log; zero values are the defaults.
type Options struct {
	SegmentBytes int64         // a new segment begins once one is larger; default 64 MiB
	MaxLag       int           // records that may be accepted and not yet durable; default 1024
	MaxLagTime   time.Duration // age of the oldest such record; default 200 ms

	wrap func(file) file // lets tests break the disk
}

const (
	defaultSegment = 64 << 20
	defaultLag     = 1024
	defaultLagTime = 200 * time.Millisecond
	maxBatch       = 4 << 20 // bytes queued beyond which callers wait to queue
	spaceRetry     = 250 * time.Millisecond
)

// Head names a prefix of the log: its length and the chain hash over it.
type Head struct {
	Position sandbox.Position // 0 for an empty log
	Hash     [32]byte
}

// Log is an open audit log. It is safe for concurrent use.
type Log struct {
	dir  string
	o    Options
	log  *slog.Logger
	lock *store.Owner
	kick chan struct{} // tells the writer to look; holds one
	done chan struct{} // closed when the writer has ended

	mu      sync.Mutex
	cur     *batch           // what the writer takes next; guarded by mu
	next    sandbox.Position // the next record's; guarded by mu
	head    Head             // of what is durable; guarded by mu
	flying  time.Time        // age of the batch being flushed, if any; guarded by mu
	refused error            // why Record refuses now, if it does; guarded by mu
	closed  bool             // guarded by mu
	end     error            // what Close returns; guarded by mu

	// Below: owned by the writer.
	seg     segment
	pending *batch // what a full disk refused
}

var _ sandbox.Recorder = (*Log)(nil)

// batch is what shares one flush.
type batch struct {
	buf    []byte // frames without sums and hashes
	n      int    // records
	since  time.Time
	urgent bool          // somebody waits for it
	done   chan struct{} // closed when settled
	err    error         // valid once done is closed
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Open opens the log in dir, or creates both. A record that the end of the
// last process cut short at the very end of the log is removed, and its
// removal is itself recorded ("audit.repair"); no acknowledged record can be
// lost that way.
//
// Errors: KindUnavailable wrapping *store.LockedError when another process has
// the log open; KindInternal when the last segment is damaged anywhere else,
// in which case nothing was touched.
//
// Cost: reading the last segment.
func Open(dir string, o Options, log *slog.Logger) (l *Log, err error) {
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = defaultSegment
	}
	if o.MaxLag <= 0 {
		o.MaxLag = defaultLag
	}
	if o.MaxLagTime <= 0 {
		o.MaxLagTime = defaultLagTime
	}
	if o.wrap == nil {
		o.wrap = func(f file) file { return f }
	}
	l = &Log{dir: dir, o: o, log: log, kick: make(chan struct{}, 1), done: make(chan struct{}), cur: newBatch()}
	if l.lock, err = store.Lock(dir); err != nil {
		return nil, err
	}
	cut, err := l.recover()
	if err != nil {
		l.lock.Close()
		return nil, sandbox.Wrap("open audit log", dir, err)
	}
	l.next = l.head.Position + 1
	go l.run()
	if cut > 0 {
		log.Warn("audit log: removed an incomplete record", "bytes", cut, "after", l.head.Position)
		_, err := l.Record(context.Background(), sandbox.Record{
			Class: sandbox.Gate, Tenant: sandbox.DefaultTenant, Principal: "system",
			Action: "audit.repair", Outcome: sandbox.OutcomeDone,
			Detail: map[string]string{"bytes": fmt.Sprint(cut)},
		})
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Head is the newest durable record's.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Record implements sandbox.Recorder.
//
// Errors: KindInvalid without an Action; KindTooLarge beyond MaxDetail or
// MaxRecord; KindNoSpace while the disk is full; KindUnavailable after Close
// or a failed flush; KindCanceled and KindTimeout when ctx ended while it
// waited. After the last three a record may still be written.
//
// Cost: about one flush for a Gate record, some microseconds for a Flow one.
func (l *Log) Record(ctx context.Context, r sandbox.Record) (sandbox.Position, error) {
	payload, err := encode(ctx, &r)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	for {
		if l.refused != nil {
			err := l.refused
			l.mu.Unlock()
			return 0, err
		}
		if len(l.cur.buf) < maxBatch {
			break
		}
		full := l.cur
		l.mu.Unlock()
		if err := full.wait(ctx); err != nil {
			return 0, err
		}
		l.mu.Lock()
	}
	p, b := l.next, l.cur
	l.next++
	first := b.n == 0
	if first {
		b.since = time.Now()
	}
	b.n++
	b.buf = binary.BigEndian.AppendUint32(b.buf, uint32(len(payload)))
	b.buf = append(b.buf, make([]byte, frameLen-4)...)
	b.buf = append(b.buf, payload...)
	binary.BigEndian.PutUint64(b.buf[len(b.buf)-len(payload)+positionOff:], uint64(p))
	wait := r.Class != sandbox.Flow || int(p-l.head.Position) > l.o.MaxLag || time.Since(l.oldest()) > l.o.MaxLagTime
	urgent := b.urgent || wait || b.n > l.o.MaxLag/2 || len(b.buf) > maxBatch/4
	look := first || urgent != b.urgent
	b.urgent = urgent
	l.mu.Unlock()
	if look {
		l.wake()
	}
	if !wait {
		return p, nil
	}
	if err := b.wait(ctx); err != nil {
		return 0, err
	}
	return p, nil
}

// oldest is when the oldest record that is not durable was accepted.
// Preconditions: l.mu is held, l.cur is not empty.
func (l *Log) oldest() time.Time {
	if !l.flying.IsZero() {
		return l.flying
	}
	return l.cur.since
}

// encode checks r and encodes it with no position yet.
func encode(ctx context.Context, r *sandbox.Record) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, sandbox.Wrap("record", "", err)
	}
	if r.Action == "" {
		return nil, sandbox.Errorf("record", sandbox.KindInvalid, "a record needs an action")
	}
	if r.Class > sandbox.Flow {
		return nil, sandbox.Errorf("record", sandbox.KindInvalid, "unknown class %d", r.Class)
	}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	size := minPayload
	for _, s := range fields(r) {
		size += len(*s)
	}
	for k, v := range r.Detail {
		if len(v) > MaxDetail {
			return nil, sandbox.Errorf("record", sandbox.KindTooLarge, "detail %.40q has %d bytes, at most %d are recorded",
				k, len(v), MaxDetail)
		}
		size += 8 + len(k) + len(v)
	}
	if size > MaxRecord {
		return nil, sandbox.Errorf("record", sandbox.KindTooLarge, "the record has %d bytes, at most %d are kept", size, MaxRecord)
	}
	return appendPayload(make([]byte, 0, size), 0, r), nil
}

func (b *batch) wait(ctx context.Context) error {
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return sandbox.Wrap("record", "", ctx.Err())
	}
}

func (b *batch) settle(err error) {
	b.err = err
	close(b.done)
}

func (l *Log) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Close flushes what was accepted, closes the log and frees the directory. It
// is idempotent. Its error tells of accepted records that could not be
// written.
func (l *Log) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		if l.refused == nil {
			l.refused = sandbox.Errorf("record", sandbox.KindUnavailable, "the audit log is closed").
				WithHint("the daemon is shutting down")
		}
	}
	l.mu.Unlock()
	l.wake()
	<-l.done
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.end, l.lock.Close())
}

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
			l.flush(b)
			l.gather(b.n)
			l.wake() // there may be more by now
			continue
		}
		if closed {
			l.finish()
			return
		}
		timer.Reset(after)
	}
}

// gather lets the callers that a flush of n records woke queue their next
// records before the next flush begins: else the first of them would be
// flushed alone and the others wait for that. It yields only as long as that
// brings records, so a lone caller waits for nobody.
func (l *Log) gather(n int) {
	for have, last := 0, -1; n > 1 && have < n && have > last; {
		runtime.Gosched()
		l.mu.Lock()
		have, last = l.cur.n, have
		l.mu.Unlock()
		if have == 0 && last == 0 {
			return
		}
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
	l.cur, l.flying = newBatch(), b.since
	return b, 0, l.closed
}

// flush makes b durable, or decides what its failure means.
func (l *Log) flush(b *batch) {
	settled := b.err != nil // it was refused for lack of space before
	head, err := l.append(b)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying = time.Time{}
	switch {
	case err == nil:
		l.head = head
		if settled {
			l.log.Info("audit log: there is space again")
			l.refused = nil
			if l.closed {
				l.refused = sandbox.Errorf("record", sandbox.KindUnavailable, "the audit log is closed")
			}
			return
		}
		b.settle(nil)
		return
	case (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && !errors.Is(err, errFlush):
		l.refuse(b, settled, sandbox.Errorf("record", sandbox.KindNoSpace, "%w", err).
			WithHint("free space on the disk of the audit log"))
	default:
		l.refuse(b, settled, sandbox.Errorf("record", sandbox.KindUnavailable, "the audit log failed: %w", err).
			WithHint("check the disk, then restart"))
	}
}

// refuse tells everybody who waits, and whoever comes, of a failure. What has a
// position is kept: it is written when there is space again, before anything
// else. After a fatal error nothing is ever written again.
// Preconditions: l.mu is held.
func (l *Log) refuse(b *batch, settled bool, err *sandbox.Error) {
	more := l.cur
	l.cur = newBatch()
	if !settled {
		l.log.Error("audit log: refusing records", "error", err)
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
	if l.seg.failed != nil {
		return Head{}, l.seg.failed
	}
	head := l.head // only this goroutine changes it
	if l.seg.size >= l.o.SegmentBytes {
		if err := l.rotate(head); err != nil {
			return head, err
		}
	}
	for rest := b.buf; len(rest) > 0; {
		rest, head.Hash = sealFrame(rest, head.Hash)
	}
	head.Position += sandbox.Position(b.n)
	return head, l.seg.append(b.buf)
}

// finish is the writer's last act.
func (l *Log) finish() {
	err := l.seg.close()
	l.mu.Lock()
	l.end = errors.Join(l.end, err)
	l.mu.Unlock()
}
