package audit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxUnhashed bounds the bytes of records that are durable and not yet in the
// tree. The writer waits beyond: it is faster only in bursts.
const maxUnhashed = 16 << 20

// notary builds the tree over what is durable, and signs it: in a goroutine of
// its own, because no caller has to wait for that.
type notary struct {
	l    *Log
	kick chan struct{} // tells it to look; holds one
	done chan struct{} // closed when it has ended

	mu      sync.Mutex
	queue   [][]byte         // durable frames that are not in the tree; guarded by mu
	queued  int              // their bytes; guarded by mu
	waiting []chan<- signing // whoever asked for a checkpoint; guarded by mu
	room    chan struct{}    // closed, and replaced, when the queue has been taken; guarded by mu
	next    *key             // to sign with from now on, if not nil; guarded by mu
	closing bool             // guarded by mu

	edge    sync.Mutex       // makes the files of one tile, that is not full, one step
	expired sandbox.Position // what has no record any more, but only tiles; guarded by edge

	// Below: owned by its goroutine, once that runs.
	key    *key
	origin string
	tree   tree
	tiles  []fullTile // full ones that have no file yet
	wide   int64      // records that the newest file of a tile at level 0 reaches to
	signed int64      // size of the newest checkpoint; -1: none
	note   []byte     // that checkpoint
	since  time.Time  // when the oldest record it lacks came
	retry  time.Time  // when to try again what failed for lack of space
	failed error      // why it failed
}

type fullTile struct {
	level  int
	n      int64
	hashes []tlog.Hash
}

type signing struct {
	note []byte
	err  error
}

func newNotary(l *Log) *notary {
	n := &notary{l: l, kick: make(chan struct{}, 1), done: make(chan struct{}), room: make(chan struct{}), signed: -1}
	n.tree.full = n.collect
	return n
}

// collect keeps a full tile until it is written.
func (n *notary) collect(level int, at int64, h []tlog.Hash) {
	n.tiles = append(n.tiles, fullTile{level, at, append([]tlog.Hash(nil), h...)})
}

// put hands over durable frames, which from then on are the notary's to change.
func (n *notary) put(frames []byte) {
	n.mu.Lock()
	for n.queued > maxUnhashed {
		room := n.room
		n.mu.Unlock()
		n.wake()
		<-room
		n.mu.Lock()
	}
	n.queue = append(n.queue, frames)
	n.queued += len(frames)
	n.mu.Unlock()
}

func (n *notary) wake() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// Checkpoint signs, and returns, a checkpoint that covers at least everything
// that was durable when it was called. Errors: KindNoSpace when the disk is
// full; KindUnavailable after Close or a fatal error; KindCanceled and
// KindTimeout when ctx ended while it waited.
//
// Cost: three flushes, unless the newest checkpoint covers everything already.
func (l *Log) Checkpoint(ctx context.Context) ([]byte, error) {
	l.mu.Lock()
	refused := l.fatal
	if l.closed {
		refused = l.refused
	}
	l.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	answer := make(chan signing, 1)
	n := l.notary
	n.mu.Lock()
	n.waiting = append(n.waiting, answer)
	n.mu.Unlock()
	n.wake()
	select {
	case s := <-answer:
		return s.note, s.err
	case <-n.done:
		select {
		case s := <-answer:
			return s.note, s.err
		default:
			return nil, errClosed()
		}
	case <-ctx.Done():
		return nil, sandbox.Wrap("sign audit log", "", ctx.Err())
	}
}

// PublicKey is the key to check this log's checkpoints with, in the form of
// golang.org/x/mod/sumdb/note.
func (l *Log) PublicKey() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.public
}

// close signs what is left and ends the notary. The writer has ended.
func (n *notary) close() {
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	n.wake()
	<-n.done
}

// run is the notary's goroutine.
func (n *notary) run() {
	defer close(n.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-n.kick:
		case <-timer.C:
		}
		queue, waiting, closing := n.take()
		for _, frames := range queue {
			n.hash(frames)
		}
		if n.tree.size > n.signed && n.since.IsZero() {
			n.since = time.Now()
		}
		if len(waiting) > 0 || closing || n.due() <= 0 {
			err := n.sign()
			if closing {
				n.l.left(err)
			}
			for _, w := range waiting {
				w <- signing{n.note, err}
			}
		}
		if closing {
			return
		}
		timer.Reset(max(n.due(), 0))
	}
}

// due is when the next checkpoint has to be made.
func (n *notary) due() time.Duration {
	switch {
	case n.tree.size == n.signed:
		return time.Hour
	case n.signed < 0 && n.failed == nil: // by a new key
		return 0
	case n.failed != nil:
		return time.Until(n.retry)
	}
	return n.l.o.Interval - time.Since(n.since)
}

func (n *notary) take() (queue [][]byte, waiting []chan<- signing, closing bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil { // what is signed is to be signed anew
		n.key, n.next, n.signed = n.next, nil, -1
	}
	queue, waiting = n.queue, n.waiting
	n.queue, n.queued, n.waiting = nil, 0, nil
	close(n.room)
	n.room = make(chan struct{})
	return queue, waiting, n.closing
}

// hash adds the records in frames to the tree.
func (n *notary) hash(frames []byte) {
	for len(frames) > 0 {
		size := frameLen + int(binary.BigEndian.Uint32(frames))
		// A leaf is the hash of a zero byte and the payload, and the byte
		// before the payload is not needed any more.
		frames[frameLen-1] = 0
		n.tree.add(sha256.Sum256(frames[frameLen-1 : size]))
		frames = frames[size:]
	}
}

// sign writes the tiles and the checkpoint of the tree as it is, unless that
// one is there.
func (n *notary) sign() error {
	if n.tree.size == n.signed {
		return nil
	}
	if err := n.l.dying(); err != nil {
		return err
	}
	err := n.write()
	switch {
	case err == nil:
		if n.failed != nil {
			n.failed = nil
			n.l.unsigned(nil)
		}
		n.since = time.Time{}
		return nil
	case passing(err):
		low := noSpace(err)
		n.failed, n.retry = low, time.Now().Add(spaceRetry)
		n.l.unsigned(low)
		return low
	default:
		return n.l.die(err)
	}
}

func (n *notary) write() error {
	// Tiles can wait: they are computed from records where they are absent.
	if err := n.writeTiles(); err != nil && !passing(err) {
		return err
	}
	c := Checkpoint{n.origin, n.tree.size, n.tree.root()}
	msg, err := note.Sign(&note.Note{Text: c.Text()}, n.key.signer)
	if err != nil {
		return err
	}
	if err := n.l.o.write.checkpoint(filepath.Join(n.l.dir, checkpointName), msg); err != nil {
		return err
	}
	failpoint.Hit("audit/after-checkpoint")
	n.signed, n.note = c.Size, msg
	return nil
}

// maxTiles bounds the full tiles that wait for space, 8 KiB each.
const maxTiles = 512

func (n *notary) writeTiles() error {
	for len(n.tiles) > 0 {
		t := n.tiles[0]
		err := n.l.o.write.tile(n.l.dir, t.level, t.n, t.hashes, n.sole(tileID{t.level, t.n}))
		if err != nil && (!passing(err) || len(n.tiles) < maxTiles || n.sole(tileID{t.level, t.n})) {
			return err
		}
		failpoint.Hit("audit/after-tile")
		n.tiles = n.tiles[1:]
	}
	return n.widen()
}

// widen writes the tile of level 0 that is not full, so that proofs need not
// read a segment, and removes what it replaces.
func (n *notary) widen() error {
	n.edge.Lock()
	defer n.edge.Unlock()
	size, old := n.tree.size, n.wide
	if w := int(size % tileWidth); w > 0 {
		sync := tileID{0, size / tileWidth}.first() <= n.expired
		if err := n.l.o.write.tile(n.l.dir, 0, size/tileWidth, n.tree.edge[0], sync); err != nil {
			return err
		}
		failpoint.Hit("audit/after-partial")
	}
	n.wide = size
	if old/tileWidth == size/tileWidth {
		return dropPartials(n.l.dir, size/tileWidth, int(size%tileWidth))
	}
	return dropPartials(n.l.dir, old/tileWidth, tileWidth)
}

// sole reports whether a tile holds what is nowhere else any more.
func (n *notary) sole(t tileID) bool {
	n.edge.Lock()
	defer n.edge.Unlock()
	return t.first() <= n.expired
}

// outlive makes durable whatever of the tree cannot be computed any more once
// the first records, up to through, are gone. Cost: reading these records.
func (n *notary) outlive(dir string, through sandbox.Position) error {
	begin, err := readExpired(dir)
	if err != nil {
		return err
	}
	stored := &hashes{dir: dir, size: int64(through), recompute: true}
	for level := 0; int64(through)>>(tileHeight*(level+1)) > 0; level++ {
		end := int64(through) >> (tileHeight * (level + 1))
		for at := int64(begin.Position) >> (tileHeight * (level + 1)); at < end; at++ {
			h, err := stored.tile(level, at, tileWidth)
			if err == nil {
				err = keepTile(dir, level, at, h)
			}
			if err != nil {
				return err
			}
		}
	}
	failpoint.Hit("audit/expire-tiles")
	n.edge.Lock()
	defer n.edge.Unlock()
	if k := int(through % tileWidth); k > 0 {
		at := int64(through) / tileWidth
		h, err := stored.tile(0, at, k)
		if err == nil && readableFull(dir, at) {
			// It is wider than what is left of it in records.
			h, err = (&hashes{dir: dir, size: (at + 1) * tileWidth, recompute: true}).tile(0, at, tileWidth)
		}
		if err == nil {
			err = keepTile(dir, 0, at, h)
		}
		if err != nil {
			return err
		}
	}
	n.expired = through
	return nil
}

// readableFull reports whether a tile of level 0 has a file that is full.
func readableFull(dir string, n int64) bool {
	_, err := readTileFile(tilePath(dir, 0, n, tileWidth), tileWidth)
	return err == nil
}

// keepTile makes sure that a tile is durable, and right.
func keepTile(dir string, level int, n int64, want []tlog.Hash) error {
	path := tilePath(dir, level, n, len(want))
	got, err := readTileFile(path, len(want))
	if err != nil || !slices.Equal(got, want) {
		return writeTile(dir, level, n, want, true)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
