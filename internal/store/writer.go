package store

import (
	"context"
	"database/sql"
	"errors"
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
}

// job is one write.
type job struct {
	durable  bool
	fn       func(*txn) error
	canceled func() error // the caller's ctx.Err
	result   chan error   // buffered, gets exactly one value
	err      error
	dirty    []tenantKey // sandboxes it wrote
}

// txn is what a job sees of the transaction. It is valid during fn only.
type txn struct {
	w *writer
	j *job
}

func startWriter(conn *sql.Conn, c *cache, space *ballast) *writer {
	w := &writer{
		jobs: make(chan *job, maxBatch), dead: make(chan struct{}), done: make(chan struct{}),
		conn: conn, stmts: map[string]*sql.Stmt{}, full: true, cache: c, space: space,
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
	j := &job{durable: durable, fn: fn, canceled: ctx.Err, result: make(chan error, 1)}
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
	return w.conn.Close()
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
		if isLostSync(err) && w.fatal == nil {
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
	durable := false
	for _, j := range batch {
		durable = durable || j.durable
	}
	if durable != w.full {
		mode := map[bool]string{true: "FULL", false: "NORMAL"}[durable]
		// Never through a kept statement: this pragma acts when it is compiled.
		if _, err := w.conn.ExecContext(context.Background(), "PRAGMA synchronous="+mode); err != nil {
			return err
		}
		w.full = durable
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
	err = w.exec("COMMIT")
	failpoint.Hit("store/after-commit")
	for _, j := range batch {
		w.cache.release(j.dirty)
	}
	return err
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
		j.dirty = nil
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

// wrote notes that the job changed a sandbox.
func (x *txn) wrote(t sandbox.TenantID, id sandbox.ID) {
	x.j.dirty = append(x.j.dirty, tenantKey{t, string(id)})
}
