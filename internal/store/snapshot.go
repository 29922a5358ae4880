package store

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Snapshot copies the database at from to a new file, as it is at one moment,
// whether or not a process is writing it, and returns the copy's schema. The
// writer is not held up. The copy has mode 0600 and is on stable storage.
//
// Errors: KindNotFound without a database; KindExists when to exists;
// KindNoSpace; KindUnsupported when a newer Firebreak wrote it. Nothing is left
// after one.
//
// Cost: reading and writing the database once. Its write-ahead log cannot
// shrink meanwhile.
func Snapshot(ctx context.Context, from, to string) (schema int, err error) {
	const op = "copy database"
	if _, err := os.Stat(from); err != nil {
		return 0, sandbox.Wrap(op, from, err)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // SQLite takes an empty file
	if err != nil {
		return 0, sandbox.Wrap(op, to, err)
	}
	f.Close()
	defer func() {
		if err != nil {
			_ = os.Remove(to) // the error at hand says more
			err = fail(op, from, err)
		}
	}()
	if schema, err = version(ctx, from); err != nil {
		return 0, err
	}
	if schema > len(migrations) {
		return 0, newer(schema, len(migrations))
	}
	// A busy writer can keep a newcomer out for longer than SQLite waits.
	for try := 1; ; try++ {
		err = copyInto(ctx, from, to)
		if sandbox.KindOf(fail(op, from, err)) != sandbox.KindUnavailable || try == copyTries || ctx.Err() != nil {
			return schema, err
		}
		if err := os.Truncate(to, 0); err != nil {
			return 0, err
		}
	}
}

// copyTries is how often a snapshot begins when the database is busy; each try
// waits for busyTimeoutMS.
const copyTries = 10

func copyInto(ctx context.Context, from, to string) error {
	db, err := sql.Open("sqlite", dsn(from, readerCacheKiB, false))
	if err != nil {
		return err
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return vacuumInto(ctx, conn, to)
}

// Check reads a whole database that nobody is using and returns its schema.
// Errors: KindInternal when it is damaged; KindUnsupported when a newer
// Firebreak wrote it.
func Check(ctx context.Context, path string) (schema int, err error) {
	const op = "check database"
	if schema, err = version(ctx, path); err != nil {
		return 0, fail(op, path, err)
	}
	if schema > len(migrations) {
		return schema, newer(schema, len(migrations))
	}
	db, err := sql.Open("sqlite", readOnly(path))
	if err != nil {
		return 0, fail(op, path, err)
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&verdict); err != nil {
		return schema, fail(op, path, err)
	}
	if verdict != "ok" {
		return schema, sandbox.Errorf(op, sandbox.KindInternal, "%s", verdict).WithID(path)
	}
	return schema, nil
}

// version reads the schema of the database at path, 0 for none, and changes
// nothing about its files.
func version(ctx context.Context, path string) (v int, err error) {
	if fi, err := os.Stat(path); err != nil || fi.Size() == 0 {
		return 0, err
	}
	db, err := sql.Open("sqlite", readOnly(path))
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var tables int
	err = db.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master WHERE name = 'schema_migrations'`).Scan(&tables)
	if err == nil && tables > 0 {
		err = db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_migrations`).Scan(&v)
	}
	if sqliteCode(err) == sqlite3.SQLITE_READONLY_ROLLBACK {
		// A rollback journal, which only its making has, before it becomes a
		// write-ahead log: whoever made it died, and nothing of ours is in it.
		return 0, nil
	}
	return v, err
}

func readOnly(path string) string {
	q := url.Values{
		"mode": {"ro"}, "_dqs": {"0"}, "_defensive": {"1"},
		"_pragma": {"busy_timeout(" + strconv.Itoa(busyTimeoutMS) + ")", "query_only(on)", "trusted_schema(off)", "mmap_size(0)"},
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// vacuumInto writes a copy of conn's database, which SQLite itself does not
// flush.
func vacuumInto(ctx context.Context, conn *sql.Conn, to string) error {
	if _, err := conn.ExecContext(ctx, `VACUUM INTO ?`, to); err != nil {
		return err
	}
	if err := os.Chmod(to, 0o600); err != nil {
		return err
	}
	if err := syncPath(to); err != nil {
		return err
	}
	return syncPath(filepath.Dir(to))
}

func syncPath(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
