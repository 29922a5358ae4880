package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	_ "modernc.org/sqlite" // registers the "sqlite" driver

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Sizes of what SQLite may hold in memory, in KiB, and of its connection pool.
// They bound the daemon's resident size; the working set is a few hundred
// small rows.
const (
	writerCacheKiB = 1024
	readerCacheKiB = 512
	maxReaders     = 3
	walPages       = 1000 // checkpoint once the log holds this many
	busyTimeoutMS  = 2000
)

// Store owns the database. It is safe for concurrent use.
type Store struct {
	log   *slog.Logger
	path  string   // of the database
	epoch string   // names this process's ownership; see Reserve
	space *ballast // so that ends can be written on a full disk

	writer  *writer
	writeDB *sql.DB // one connection, owned by writer
	readDB  *sql.DB

	mu    sync.Mutex
	stmts map[string]*sql.Stmt // of readDB, by text; guarded by mu

	cache    *cache
	inflight inflight

	closeOnce sync.Once
	closeErr  error
}

// Open opens or creates the database at path and migrates its schema to the
// newest version in one transaction per step, after a copy of what was there
// ("<path>.before-v<step>", which Purge removes). The caller holds Lock on the
// directory.
//
// Errors: KindUnavailable when another process holds the database;
// KindUnsupported when a newer Firebreak wrote it, which then is left
// untouched; KindNoSpace; KindDenied.
//
// Cost: milliseconds. log gets what an operator should know and no data.
func Open(ctx context.Context, path string, log *slog.Logger) (s *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, sandbox.Wrap("open store", "", err)
	}
	// SQLite gives its side files the mode of the database.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, sandbox.Wrap("open store", "", err)
	}
	// Looked at before anything that could change it: a write-ahead log is
	// folded in by whoever opens it for writing.
	have, err := version(ctx, path)
	if err == nil && have > len(migrations) {
		err = newer(have, len(migrations))
	}
	if err != nil {
		f.Close()
		return nil, fail("open store", "", err)
	}
	s = &Store{log: log, path: path, space: newBallast(f), epoch: rand.Text(), stmts: map[string]*sql.Stmt{}, cache: newCache(cacheEntries)}
	s.inflight.done = map[tenantKey]chan struct{}{}
	defer func() {
		if err != nil {
			s.Close()
			s, err = nil, fail("open store", "", err)
		}
	}()
	if s.writeDB, err = sql.Open("sqlite", dsn(path, writerCacheKiB, false)); err != nil {
		return
	}
	s.writeDB.SetMaxOpenConns(1)
	conn, err := s.writeDB.Conn(ctx)
	if err != nil {
		return
	}
	if err = migrate(ctx, conn, path, migrations); err != nil {
		conn.Close()
		return
	}
	s.space.grow()
	noted, rows, err := openRedo(path)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.writer = startWriter(conn, s.cache, s.space, noted)
	if err = s.again(ctx, rows); err != nil {
		return
	}
	if s.readDB, err = sql.Open("sqlite", dsn(path, readerCacheKiB, true)); err != nil {
		return
	}
	s.readDB.SetMaxOpenConns(maxReaders)
	s.readDB.SetMaxIdleConns(maxReaders)
	return s, s.openReaders(ctx)
}

// again writes what was noted and is not in the database, which means that the
// machine has failed.
func (s *Store) again(ctx context.Context, rows []redoRow) error {
	if len(rows) == 0 {
		return nil
	}
	var n int
	err := s.writer.do(ctx, true, func(x *txn) (err error) {
		n, err = x.again(rows)
		return err
	})
	if n > 0 && err == nil {
		s.log.Warn("records that the database had lost are written again", "records", n)
	}
	return err
}

// openReaders opens all connections now: later there may be no descriptors left.
func (s *Store) openReaders(ctx context.Context) error {
	for range maxReaders {
		c, err := s.readDB.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close() // back into the pool, all at the end
		if err := c.PingContext(ctx); err != nil {
			return err
		}
	}
	return nil
}

func dsn(path string, cacheKiB int, readOnly bool) string {
	q := url.Values{
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", busyTimeoutMS),
			"auto_vacuum(incremental)", // takes effect in a database that has no table yet; see shrink
			"journal_mode(wal)",
			"synchronous(full)",
			fmt.Sprintf("cache_size(-%d)", cacheKiB),
			fmt.Sprintf("wal_autocheckpoint(%d)", walPages),
			"journal_size_limit(8388608)",
			"temp_store(memory)",
			"mmap_size(0)",
			"trusted_schema(off)",
		},
		"_dqs":       {"0"},
		"_defensive": {"1"},
	}
	if readOnly {
		q["_pragma"] = append(q["_pragma"], "query_only(on)")
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// Close waits for writes under way, flushes and closes. It is idempotent.
// Every later call of any handle fails with KindUnavailable.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		failpoint.Hit("store/before-close")
		var errs []error
		if s.writer != nil {
			errs = append(errs, s.writer.close())
		}
		if s.readDB != nil {
			errs = append(errs, s.readDB.Close()) // closes its statements
		}
		if s.writeDB != nil {
			errs = append(errs, s.writeDB.Close())
		}
		errs = append(errs, s.space.close())
		failpoint.Hit("store/after-close")
		s.cache.disable()
		if err := errors.Join(errs...); err != nil {
			s.closeErr = fail("close store", "", err)
		}
	})
	return s.closeErr
}

// Failed is closed when a flush to disk has failed: nothing will be written
// until the process is restarted.
func (s *Store) Failed() <-chan struct{} { return s.writer.dead }

// Tenant returns the handle of one tenant. It costs nothing and checks
// nothing: a tenant that has no rows is empty, and an id that is not Valid
// cannot be written to.
func (s *Store) Tenant(id sandbox.TenantID) *Tenant { return &Tenant{s: s, id: id} }

// System returns the handle of the daemon itself, over all tenants. It must
// not reach code that serves a caller.
func (s *Store) System() *System { return &System{s: s} }

// Tenant reaches the rows of one tenant and no others. It is safe for
// concurrent use.
type Tenant struct {
	s  *Store
	id sandbox.TenantID
}

// ID is the tenant's.
func (t *Tenant) ID() sandbox.TenantID { return t.id }

// System reaches all tenants. It is safe for concurrent use.
type System struct{ s *Store }

// stmt returns the prepared statement for q on the read pool.
func (s *Store) stmt(q string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.stmts[q]; st != nil {
		return st, nil
	}
	st, err := s.readDB.Prepare(q)
	if err == nil {
		s.stmts[q] = st
	}
	return st, err
}

// row runs a one-row query on the read pool. The query itself does not watch
// ctx: it takes microseconds, and watching costs more than running it.
func (s *Store) row(ctx context.Context, dest []any, q string, args ...any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	st, err := s.stmt(q)
	if err != nil {
		return err
	}
	return st.QueryRowContext(context.WithoutCancel(ctx), args...).Scan(dest...)
}

// rows runs a query on the read pool and calls scan for each row.
func (s *Store) rows(ctx context.Context, scan func(*sql.Rows) error, q string, args ...any) error {
	st, err := s.stmt(q)
	if err != nil {
		return err
	}
	rs, err := st.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer rs.Close()
	for rs.Next() {
		if err := scan(rs); err != nil {
			return err
		}
	}
	return rs.Err()
}
