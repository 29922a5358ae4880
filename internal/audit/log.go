package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Options tunes a Log; zero values are the defaults.
type Options struct {
	SegmentBytes int64         // a new segment begins once one is larger; default 64 MiB
	MaxLag       int           // records that may be accepted and not yet durable; default 1024
	MaxLagTime   time.Duration // age of the oldest such record; default 200 ms
	Reserve      int64         // bytes kept allocated for what ends on a full disk; default 1 MiB, negative: none
	Interval     time.Duration // how long a record may be durable and not signed; default 1 s
	KeyFile      string        // signs checkpoints; default "key" beside the log's directory
	Origin       string        // of a new log; default: the key's name, a slash, the directory's name

	wrap  func(file) file // lets tests break the disk
	write writing
}

// writing is how files beside the segments are made; tests break it.
type writing struct {
	tile       func(dir string, level int, n int64, h []tlog.Hash, sync bool) error
	checkpoint func(path string, b []byte) error
}

const (
	defaultSegment = 64 << 20
	defaultLag     = 1024
	defaultLagTime = 200 * time.Millisecond
	defaultReserve = 1 << 20
	defaultSigning = time.Second
	maxBatch       = 4 << 20 // bytes queued beyond which callers wait to queue
	spaceRetry     = 250 * time.Millisecond
	maxPatience    = time.Millisecond
	maxVain        = 6
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
	dead chan struct{} // closed when nothing can be recorded any more
	boot [16]byte      // of this boot of the machine

	notary   *notary
	rotating sync.Mutex // makes Rotate one step

	mu      sync.Mutex
	cur     *batch           // what the writer takes next; guarded by mu
	next    sandbox.Position // the next record's; guarded by mu
	head    Head             // of what is durable; guarded by mu
	flying  time.Time        // age of the batch being flushed, if any; guarded by mu
	refused error            // why Record refuses now, if it does; guarded by mu
	low     error            // why it refuses all but the late; guarded by mu
	unsign  error            // the same, because nothing can be signed; guarded by mu
	fatal   error            // why nothing is written any more; guarded by mu
	public  string           // the key that signs; guarded by mu
	clock   clock            // guarded by mu
	closed  bool             // guarded by mu
	end     error            // what Close returns; guarded by mu

	// Below: owned by the writer.
	seg      segment
	links    links // as of what is sealed
	chain    chainer
	patience time.Duration // how long a flush waits for one more caller
	vain     int           // how often in a row waiting brought nobody
	idle     int           // how many flushes do not wait, for that
	pending  *batch        // what a full disk refused
}

var _ sandbox.Recorder = (*Log)(nil)

// batch is what shares one flush.
type batch struct {
	buf     []byte // frames
	n       int    // records
	waiters int    // callers that wait for them
	sealed  int    // bytes of buf that have their links, hashes and sums
	head    Head   // behind those
	since   time.Time
	urgent  bool          // somebody waits for it
	done    chan struct{} // closed when settled
	err     error         // valid once done is closed
}

// newBatch makes one with room for as many bytes as the last one took.
func newBatch(room int) *batch {
	return &batch{buf: make([]byte, 0, min(room, maxBatch)), done: make(chan struct{})}
}

// encodings are buffers of callers.
var encodings = sync.Pool{New: func() any { return new([]byte) }}

// defaults fills in what is not set.
func (o *Options) defaults(dir string) {
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = defaultSegment
	}
	if o.MaxLag <= 0 {
		o.MaxLag = defaultLag
	}
	if o.MaxLagTime <= 0 {
		o.MaxLagTime = defaultLagTime
	}
	if o.Reserve == 0 {
		o.Reserve = defaultReserve
	}
	if o.Interval <= 0 {
		o.Interval = defaultSigning
	}
	if o.KeyFile == "" {
		o.KeyFile = filepath.Join(filepath.Dir(dir), "key")
	}
	if o.wrap == nil {
		o.wrap = func(f file) file { return f }
	}
	if o.write.tile == nil {
		o.write.tile = writeTile
	}
	if o.write.checkpoint == nil {
		o.write.checkpoint = swapFile
	}
}

// Open opens the log in dir, or creates both, and its signing key. Records that
// the end of the last process cut short at the very end of the log are removed,
// as far as they were never signed, and their removal is itself recorded
// ("audit.repair", with the file that keeps what was removed, and its digest);
// no acknowledged record can be lost that way. A log of an earlier version,
// which nobody signed, is signed as it is, which is recorded, too ("audit.key").
//
// Errors: KindUnavailable wrapping *store.LockedError when another process has
// the log open; KindConflict wrapping *GapError when the log is not what was
// signed; KindNotFound when it is signed and the key is missing; KindInternal
// when it is damaged behind what was signed. In all these cases nothing was
// touched.
//
// Cost: reading the last segment, and the one with the last record that was
// signed; the whole log where derived files are missing or wrong.
func Open(dir string, o Options, log *slog.Logger) (*Log, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, sandbox.Wrap("open audit log", dir, err)
	}
	o.defaults(dir)
	l := &Log{dir: dir, o: o, log: log, kick: make(chan struct{}, 1), done: make(chan struct{}), dead: make(chan struct{}), cur: newBatch(0), boot: bootID()}
	l.notary = newNotary(l)
	if l.lock, err = store.Lock(dir); err != nil {
		return nil, err
	}
	news, err := l.recover()
	if err != nil {
		l.lock.Close()
		return nil, sandbox.Wrap("open audit log", dir, err)
	}
	l.next = l.head.Position + 1
	l.secure()
	l.wake() // if that failed, it is tried again
	l.notary.wake()
	go l.run()
	go l.notary.run()
	for _, r := range news {
		log.Warn("audit log: "+r.Action, "after", l.head.Position, "detail", r.Detail)
		r.Tenant, r.Principal = sandbox.DefaultTenant, "system"
		if r.Outcome == "" {
			r.Outcome = sandbox.OutcomeDone
		}
		if _, err := l.Record(context.Background(), r); err != nil {
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

// Err says why Record refuses now, be it only what is about to be done; nil
// while it does not.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refused != nil {
		return l.refused
	}
	return l.reluctant()
}

// reluctant is why only what is late may be recorded.
// Preconditions: l.mu is held.
func (l *Log) reluctant() error {
	if l.low != nil {
		return l.low
	}
	return l.unsign
}

// Failed is closed when a flush has failed: nothing will be recorded until the
// process is restarted.
func (l *Log) Failed() <-chan struct{} { return l.dead }

// Record implements sandbox.Recorder.
//
// Errors: KindInvalid without an Action; KindTooLarge beyond MaxDetail or
// MaxRecord; KindNoSpace while the disk is full; KindUnavailable after Close
// or a failed flush; KindCanceled and KindTimeout when ctx ended while it
// waited. After the last three a record may still be written.
//
// Cost: about one flush for a Gate record, some microseconds for a Flow one.
func (l *Log) Record(ctx context.Context, r sandbox.Record) (sandbox.Position, error) {
	buf := encodings.Get().(*[]byte)
	defer encodings.Put(buf)
	payload, err := l.encode(ctx, *buf, &r)
	if err != nil {
		return 0, err
	}
	*buf = payload
	l.mu.Lock()
	for {
		if l.refused != nil {
			err := l.refused
			l.mu.Unlock()
			return 0, err
		}
		if err := l.reluctant(); err != nil && !late(&r) {
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
	b.buf = append(b.buf, zeros[:frameLen-4]...)
	b.buf = append(b.buf, payload...)
	in := b.buf[len(b.buf)-len(payload):]
	binary.BigEndian.PutUint64(in[positionOff:], uint64(p))
	binary.BigEndian.PutUint64(in[monoOff:], uint64(l.clock.now())) // here, so that it follows the positions
	wait := r.Class != sandbox.Flow || int(p-l.head.Position) > l.o.MaxLag || time.Since(l.oldest()) > l.o.MaxLagTime
	if wait {
		b.waiters++
	}
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
func (l *Log) encode(ctx context.Context, buf []byte, r *sandbox.Record) ([]byte, error) {
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
	return appendPayload(slices.Grow(buf[:0], size), &Entry{Version: version, Boot: l.boot, Record: *r}), nil
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

// Close flushes and signs what was accepted, closes the log and frees the
// directory. It is idempotent. Its error tells of accepted records that could
// not be written, or signed.
func (l *Log) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		if l.refused == nil {
			l.refused = errClosed()
		}
	}
	l.mu.Unlock()
	l.wake()
	<-l.done
	l.notary.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.end, l.lock.Close())
}

func errClosed() *sandbox.Error {
	return sandbox.Errorf("record", sandbox.KindUnavailable, "the audit log is closed").WithHint("the daemon is shutting down")
}
