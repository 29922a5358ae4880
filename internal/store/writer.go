package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// maxBatch bounds how many writes share one transaction.
const maxBatch = 128

// writer is the one goroutine that writes. Callers queue; whatever is queued
// when it looks shares one transaction and one flush, each write behind its
// own savepoint so that one's failure is not another's.
type writer struct {
	jobs chan *job
	dead chan struct{} // closed when fatal is set
	done chan struct{} // closed when the goroutine has ended

	mu     sync.RWMutex // held shared while sending
	closed bool         // guarded by mu

	// Below: owned by the goroutine.
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	full  bool  // synchronous is FULL, as opposed to NORMAL
	fatal error // a flush failed: nothing can be promised any more
	cache *cache
	space *ballast
	redo  *redo
	loose bool      // since SQLite flushed, something was written that redo cannot note
	later []redoRow // rows that were written since and need not be durable before the next that is
}

// job is one write.
type job struct {
	durable  bool
	noted    bool // what it writes are sandboxes, which redo can make durable
	removes  bool // it removes sandboxes
	fn       func(*txn) error
	beside   func()       // nil, or called once fn has succeeded, before what it wrote is durable
	canceled func() error // the caller's ctx.Err
	result   chan error   // buffered, gets exactly one value
	err      error
	dirty    []tenantKey // sandboxes it wrote
	rows     []redoRow   // ditto
}

// txn is what a job sees of the transaction. It is valid during fn only.
type txn struct {
	w *writer
	j *job
}

func startWriter(conn *sql.Conn, c *cache, space *ballast, r *redo) *writer {
	w := &writer{
		jobs: make(chan *job, maxBatch), dead: make(chan struct{}), done: make(chan struct{}),
		conn: conn, stmts: map[string]*sql.Stmt{}, full: true, cache: c, space: space, redo: r,
	}
	go w.run()
	return w
}

// do queues fn and waits for its outcome, which is definite: ctx can withdraw
// the write only until it has begun.
//
// fn runs on the writer's goroutine: it must be quick and must not call the
// store. Its error undoes what it wrote and nothing else.
func (w *writer) do(ctx context.Context, durable bool, fn func(*txn) error) error {
	return w.queue(ctx, &job{durable: durable, fn: fn})
}

// note is do for what writes sandboxes and nothing else.
func (w *writer) note(ctx context.Context, durable bool, fn func(*txn) error) error {
	return w.queue(ctx, &job{durable: durable, noted: true, fn: fn})
}

// noteBeside is note that has beside called when fn has succeeded. It must not call
// the store.
func (w *writer) noteBeside(ctx context.Context, beside func(), fn func(*txn) error) error {
	return w.queue(ctx, &job{durable: true, noted: true, fn: fn, beside: beside})
}

// remove is do for what removes sandboxes.
func (w *writer) remove(ctx context.Context, fn func(*txn) error) error {
	return w.queue(ctx, &job{removes: true, fn: fn})
}

func (w *writer) queue(ctx context.Context, j *job) error {
	j.canceled, j.result = ctx.Err, make(chan error, 1)
	w.mu.RLock()
	if w.closed {
		w.mu.RUnlock()
		return errClosed
	}
	select {
	case w.jobs <- j:
		w.mu.RUnlock()
	case <-ctx.Done():
		w.mu.RUnlock()
		return ctx.Err()
	}
	return <-j.result
}

// close lets queued writes finish and ends the goroutine.
func (w *writer) close() error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.jobs)
	}
	w.mu.Unlock()
	<-w.done
	var err error
	if w.fatal == nil {
		err = w.settle() // SQLite flushes when it is closed, too
	}
	return errors.Join(err, w.redo.close(), w.conn.Close())
}

func (w *writer) run() {
	defer close(w.done)
	batch := make([]*job, 0, maxBatch)
	for j := range w.jobs {
		batch = append(batch[:0], j)
	collect:
		for len(batch) < maxBatch {
			select {
			case j, ok := <-w.jobs:
				if !ok {
					break collect
				}
				batch = append(batch, j)
			default:
				break collect
			}
		}
		w.commit(batch)
		for i, j := range batch {
			j.result <- j.err
			batch[i] = nil
		}
		w.space.grow()
	}
}

// commit runs one batch and sets the outcome of each job.
func (w *writer) commit(batch []*job) {
	if err := w.transact(batch); err != nil {
		if (isLostSync(err) || errors.Is(err, errNotNoted)) && w.fatal == nil {
			close(w.dead)
			w.fatal = sandbox.Errorf("store", sandbox.KindUnavailable, "a flush to disk failed earlier: %w", err).
				WithHint("check the disk, then restart")
		}
		for _, j := range batch {
			if j.err == nil {
				j.err = err
			}
		}
	}
}

// transact returns an error when the transaction as a whole failed.
func (w *writer) transact(batch []*job) (err error) {
	if w.fatal != nil {
		return w.fatal
	}
	durable, noted := false, w.redo.ready() && !w.loose
	for _, j := range batch {
		durable, noted = durable || j.durable, noted && (j.noted || !j.durable)
		if j.removes {
			if err := w.settle(); err != nil {
				return err
			}
		}
	}
	noted = noted && durable
	if err := w.synchronous(durable && !noted); err != nil {
		return err
	}
	if err := w.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// SQLite may have rolled back already; then this fails, and
			// there is nothing left to undo.
			w.exec("ROLLBACK")
		}
	}()
	for _, j := range batch {
		if err := w.one(j, len(batch) > 1); err != nil {
			return err
		}
	}
	if len(batch) == 1 && batch[0].err != nil {
		w.exec("ROLLBACK")
		return nil
	}
	// A reader must not see the old row in the cache once any reader can
	// see the new one in the database, nor put the old one back.
	for _, j := range batch {
		w.cache.hold(j.dirty)
	}
	failpoint.Hit("store/before-commit")
	if noted {
		err = w.noteAndCommit(batch)
	} else {
		beside(batch)
		if err = w.exec("COMMIT"); err == nil {
			failpoint.Hit("store/after-commit")
			w.keep(batch, durable)
		}
	}
	for _, j := range batch {
		w.cache.release(j.dirty)
	}
	return err
}

// maxLater bounds the rows that wait for a durable one.
const maxLater = 64

// keep remembers what a transaction wrote that is committed and not noted: if SQLite
// has not flushed it, the next one that is flushed has to note it, too.
func (w *writer) keep(batch []*job, durable bool) {
	if durable {
		w.flushed()
		return
	}
	w.gather(batch)
	w.loose = w.loose || len(w.later) > maxLater
}

// gather adds the rows of a batch to those that are to be noted, and notices what
// cannot be.
func (w *writer) gather(batch []*job) {
	for _, j := range batch {
		if j.err == nil {
			w.later = append(w.later, j.rows...)
			w.loose = w.loose || !j.noted
		}
	}
}

// noteAndCommit commits a transaction that SQLite does not flush, and notes it, with
// all before, which makes it durable as SQLite's flush would. Neither waits for the
// other: what was noted and then not committed is revoked, and what a kill leaves
// noted only is committed when the database is opened next.
func (w *writer) noteAndCommit(batch []*job) error {
	before, next, off := len(w.later), w.redo.next, w.redo.off
	w.gather(batch)
	err := w.redo.note(w.later)
	committed := make(chan error, 1)
	go func() { committed <- w.exec("COMMIT") }()
	beside(batch)
	if err == nil {
		err = w.redo.flush()
	}
	if failed := <-committed; failed != nil {
		w.later = w.later[:before]
		if err == nil {
			err = w.redo.revoke(next, off)
		}
		return cmp.Or(err, failed)
	}
	failpoint.Hit("store/after-commit")
	w.later = w.later[:0]
	return err
}

// beside does what jobs have to have done by the time they are durable. What one of
// them waits for, as a flush of another file, is waited for here and by nobody else.
func beside(batch []*job) {
	var all sync.WaitGroup
	var last func()
	for _, j := range batch {
		if j.err != nil || j.beside == nil {
			continue
		}
		if last != nil {
			all.Go(last)
		}
		last = j.beside
	}
	if last != nil {
		last() // here: mostly it is the only one
	}
	all.Wait()
}

// flushed notes that SQLite has flushed all that was written.
func (w *writer) flushed() {
	w.redo.begin()
	w.later, w.loose = w.later[:0], false
}

// synchronous sets whether SQLite flushes each transaction from now on.
func (w *writer) synchronous(full bool) error {
	if full == w.full {
		return nil
	}
	mode := map[bool]string{true: "FULL", false: "NORMAL"}[full]
	// Never through a kept statement: this pragma acts when it is compiled.
	if _, err := w.conn.ExecContext(context.Background(), "PRAGMA synchronous="+mode); err != nil {
		return err
	}
	w.full = full
	return nil
}

// settle has SQLite flush all it holds, and what is noted forgotten.
func (w *writer) settle() error {
	err := w.synchronous(true)
	if err == nil { // a transaction that writes nothing flushes nothing
		err = w.exec("UPDATE schema_migrations SET applied = applied WHERE version = 1")
	}
	if err != nil {
		return err
	}
	w.flushed()
	if err := w.redo.clear(); err != nil {
		return fmt.Errorf("%w: %w", errNotNoted, err)
	}
	return nil
}

// one runs one job. It returns an error only when the transaction is broken.
func (w *writer) one(j *job, savepoint bool) error {
	if j.err = j.canceled(); j.err != nil {
		return nil
	}
	if savepoint {
		if err := w.exec("SAVEPOINT j"); err != nil {
			return err
		}
	}
	j.err = j.fn(&txn{w, j})
	if isBroken(j.err) {
		return j.err
	}
	if !savepoint {
		return nil
	}
	if j.err != nil {
		j.dirty, j.rows = nil, nil
		if err := w.exec("ROLLBACK TO j"); err != nil {
			return err
		}
	}
	return w.exec("RELEASE j")
}

func (w *writer) stmt(q string) (*sql.Stmt, error) {
	if st := w.stmts[q]; st != nil {
		return st, nil
	}
	st, err := w.conn.PrepareContext(context.Background(), q)
	if err == nil {
		w.stmts[q] = st
	}
	return st, err
}

func (w *writer) exec(q string) error {
	st, err := w.stmt(q)
	if err == nil {
		_, err = st.Exec()
	}
	return err
}

// exec runs a statement and returns how many rows it changed.
func (x *txn) exec(q string, args ...any) (int64, error) {
	st, err := x.w.stmt(q)
	if err != nil {
		return 0, err
	}
	r, err := st.Exec(args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// row runs a one-row query; sql.ErrNoRows when there is none.
func (x *txn) row(dest []any, q string, args ...any) error {
	st, err := x.w.stmt(q)
	if err != nil {
		return err
	}
	return st.QueryRow(args...).Scan(dest...)
}

// exists reports whether the query has a row.
func (x *txn) exists(q string, args ...any) (bool, error) {
	var one int
	err := x.row([]any{&one}, q, args...)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// wrote notes that the job wrote a sandbox, as body says.
func (x *txn) wrote(sb *Sandbox, body string) {
	x.j.dirty = append(x.j.dirty, tenantKey{sb.Tenant, string(sb.ID)})
	x.j.rows = append(x.j.rows, redoRow{sb.Tenant, sb.Version, json.RawMessage(body)})
}

// removed notes that the job removed a sandbox. Preconditions: it was queued by
// remove.
func (x *txn) removed(k tenantKey) { x.j.dirty = append(x.j.dirty, k) }
