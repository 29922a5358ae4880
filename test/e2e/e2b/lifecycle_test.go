package e2b

import (
	"database/sql"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"
)

// TestLifecycle drives pause, connect, snapshots and the end of a sandbox's time
// through every package that has them.
func TestLifecycle(t *testing.T) {
	s := serve(t)
	s.also = append(s.also, "OTHER_API_KEY="+s.strangersKey(t))
	for _, sdk := range []string{"e2b", "e2b-2-45"} {
		t.Run(sdk, func(t *testing.T) { s.steps(t, s.node(t, "lifecycle.mjs", sdk)...) })
	}
	t.Run("python", func(t *testing.T) { s.steps(t, s.python(t, "lifecycle.py")...) })
}

// strangersKey makes a key of another tenant, of which a server has only one so far.
func (s *server) strangersKey(t *testing.T) string {
	t.Helper()
	key := s.newKey("--name", "strangers")
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.dir, "data", "state.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int64
	res, err := db.Exec(`UPDATE api_keys SET tenant = 'strangers' WHERE name = 'strangers'`)
	if err == nil {
		n, err = res.RowsAffected()
	}
	if err != nil || n != 1 {
		t.Fatalf("%d keys: %v", n, err)
	}
	return key
}
