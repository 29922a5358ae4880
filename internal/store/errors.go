package store

import (
	"database/sql"
	"errors"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// errClosed is what every call after Close gets.
var errClosed = errors.New("the store is closed")

// fail turns any error of this package or the driver into an *sandbox.Error.
func fail(op, id string, err error) error {
	var typed *sandbox.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &typed):
		return err
	case errors.Is(err, sql.ErrNoRows):
		return &sandbox.Error{Op: op, ID: id, Kind: sandbox.KindNotFound}
	case errors.Is(err, errClosed), isClosedDB(err):
		return sandbox.Errorf(op, sandbox.KindUnavailable, "%w", errClosed).WithID(id).WithHint("the daemon is shutting down")
	}
	e := &sandbox.Error{Op: op, ID: id, Kind: sandbox.KindOf(err), Err: err}
	switch code := sqliteCode(err); code & 0xff {
	case sqlite3.SQLITE_FULL:
		e.Kind, e.Hint = sandbox.KindNoSpace, "free space on the disk of the data directory"
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		e.Kind, e.Hint = sandbox.KindUnavailable, "another process holds the database: stop it, or choose another data directory"
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		e.Kind, e.Hint = sandbox.KindUnavailable, "check the owner and mode of the data directory"
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		e.Hint = "the database file is damaged: restore it from a backup, or move it away to start empty"
	}
	return e
}

// sqliteCode returns the extended result code, 0 for errors of other origin.
func sqliteCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// isClosedDB recognises database/sql's own error, which it does not export.
func isClosedDB(err error) bool {
	return err.Error() == "sql: database is closed" || errors.Is(err, sql.ErrConnDone) ||
		err.Error() == "sql: statement is closed"
}

// isBroken reports errors after which SQLite may have rolled the transaction
// back by itself, so nothing later in it can be trusted.
func isBroken(err error) bool {
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY,
		sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_CORRUPT:
		return true
	}
	return false
}

// isLostSync reports a failed fsync: what the page cache says is on disk may
// not be, so the process must not go on.
func isLostSync(err error) bool {
	c := sqliteCode(err)
	return c == sqlite3.SQLITE_IOERR_FSYNC || c == sqlite3.SQLITE_IOERR_DIR_FSYNC
}
