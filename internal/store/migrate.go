package store

import (
	"context"
	"database/sql"
	_ "embed"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

//go:embed schema/0001.sql
var schema0001 string

// migrations are the steps from an empty database to the newest schema. A step
// that was ever released is never edited: testdata holds its digest.
var migrations = []string{schema0001}

const schemaTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version BIGINT NOT NULL PRIMARY KEY,
	applied BIGINT NOT NULL
)`

// migrate brings the database to len(steps), each step in one transaction with
// the note that it was done, so that a crash repeats a step or does not.
func migrate(ctx context.Context, conn *sql.Conn, steps []string) error {
	if _, err := conn.ExecContext(ctx, schemaTable); err != nil {
		return err
	}
	var have int
	row := conn.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM schema_migrations`)
	if err := row.Scan(&have); err != nil {
		return err
	}
	if have > len(steps) {
		return sandbox.Errorf("open store", sandbox.KindUnsupported,
			"the database has schema %d, this program knows up to %d", have, len(steps)).
			WithHint("a newer firebreak wrote it: use that version, or another data directory")
	}
	for v := have + 1; v <= len(steps); v++ {
		if err := step(ctx, conn, v, steps[v-1]); err != nil {
			return err
		}
	}
	return nil
}

func step(ctx context.Context, conn *sql.Conn, version int, ddl string) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // no effect after Commit
	if _, err := tx.ExecContext(ctx, ddl); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO schema_migrations (version, applied) VALUES (?, ?)`,
		version, time.Now().UnixNano()); err != nil {
		return err
	}
	return tx.Commit()
}
