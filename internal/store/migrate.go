package store

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

//go:embed schema/0001.sql
var schema0001 string

//go:embed schema/0002.sql
var schema0002 string

//go:embed schema/0003.sql
var schema0003 string

//go:embed schema/0004.sql
var schema0004 string

// migrations are the steps from an empty database to the newest schema. A step
// that was ever released is never edited: testdata holds its digest, and a
// database as each version wrote it.
var migrations = []string{schema0001, schema0002, schema0003, schema0004}

// Schema is the newest schema this program knows.
func Schema() int { return len(migrations) }

const schemaTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version BIGINT NOT NULL PRIMARY KEY,
	applied BIGINT NOT NULL
)`

// migrate brings the database at path to len(steps), each step in one
// transaction with the note that it was done, so that a crash repeats a step or
// does not. Before the first step on a database that holds something, a copy is
// put beside it: the way back to the program that wrote it.
func migrate(ctx context.Context, conn *sql.Conn, path string, steps []string) error {
	if _, err := conn.ExecContext(ctx, schemaTable); err != nil {
		return err
	}
	var have int
	row := conn.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_migrations`)
	if err := row.Scan(&have); err != nil {
		return err
	}
	if have > len(steps) {
		return newer(have, len(steps))
	}
	if have > 0 && have < len(steps) {
		if err := setAside(ctx, conn, path, have+1); err != nil {
			return err
		}
	}
	for v := have + 1; v <= len(steps); v++ {
		if err := step(ctx, conn, v, steps[v-1]); err != nil {
			return err
		}
	}
	return nil
}

func newer(have, known int) error {
	return sandbox.Errorf("open store", sandbox.KindUnsupported,
		"the database has schema %d, this program knows up to %d", have, known).
		WithHint("a newer firebreak wrote it: use that version, or another data directory")
}

func step(ctx context.Context, conn *sql.Conn, version int, ddl string) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // no effect after Commit
	failpoint.Hit("migrate/step-begun")
	if _, err := tx.ExecContext(ctx, ddl); err != nil {
		return err
	}
	failpoint.Hit("migrate/step-done")
	if _, err := tx.ExecContext(ctx, `INSERT INTO schema_migrations (version, applied) VALUES (?, ?)`,
		version, time.Now().UnixNano()); err != nil {
		return err
	}
	failpoint.Hit("migrate/before-commit")
	if err := tx.Commit(); err != nil {
		return err
	}
	failpoint.Hit("migrate/after-commit")
	return nil
}

// beforeInfix stands between a database's name and the version whose step made
// the copy.
const beforeInfix = ".before-v"

// setAside copies the database to <path>.before-v<version>, durable when it
// returns. A copy that is there is of an attempt that did not get further, and
// is replaced.
func setAside(ctx context.Context, conn *sql.Conn, path string, version int) error {
	to := fmt.Sprintf("%s%s%d", path, beforeInfix, version)
	tmp := to + ".tmp"
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) {
		return err
	}
	failpoint.Hit("migrate/before-copy")
	if err := vacuumInto(ctx, conn, tmp); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	failpoint.Hit("migrate/copied")
	if err := os.Rename(tmp, to); err != nil {
		return err
	}
	err := syncPath(filepath.Dir(path))
	failpoint.Hit("migrate/after-copy")
	return err
}

// purgeCopies removes copies that setAside made before t, and what a crash left
// of one.
func purgeCopies(path string, t time.Time) error {
	names, err := filepath.Glob(globQuote(path) + beforeInfix + "*")
	if err != nil {
		return err
	}
	for _, name := range names {
		fi, e := os.Lstat(name)
		if e != nil || !fi.ModTime().Before(t) {
			continue
		}
		if e := os.Remove(name); e != nil {
			err = e
		}
	}
	return err
}

// globQuote makes every byte of a path stand for itself.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
