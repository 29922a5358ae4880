package store

import (
	"errors"
	"os"
)

// What is kept allocated so that on a full disk ends can still be written: a
// write-ahead log of the size at which it is emptied into the database and
// begun anew, with a margin, and room for the database to take that up.
const (
	reserveWAL = (walPages + walPages/4) * 4200 // a page and its header
	reserveDB  = 1 << 20
)

// ballast holds disk space for the database. It is used by one goroutine at a
// time.
type ballast struct {
	db   *os.File // open as long as SQLite is: closing any descriptor of the file frees SQLite's locks on it
	wal  bool     // the log's is taken
	upTo int64    // the database's
	none bool     // this file system cannot
}

func newBallast(db *os.File) *ballast { return &ballast{db: db} }

// grow takes what is missing. That the disk has no more is no error: whoever
// needs the space will say so.
func (r *ballast) grow() {
	if r.none {
		return
	}
	if !r.wal {
		f, err := os.OpenFile(r.db.Name()+"-wal", os.O_RDWR, 0)
		if err != nil {
			return // not there yet
		}
		err = allocate(f, 0, reserveWAL)
		f.Close()
		r.wal, r.none = err == nil, errors.Is(err, errors.ErrUnsupported)
	}
	st, err := r.db.Stat()
	if err != nil || r.upTo-st.Size() > reserveDB/2 {
		return
	}
	if allocate(r.db, st.Size(), reserveDB) == nil {
		r.upTo = st.Size() + reserveDB
	}
}

// close gives back what was not used. SQLite must be closed.
func (r *ballast) close() error {
	st, err := r.db.Stat()
	if err == nil && r.upTo > st.Size() {
		err = r.db.Truncate(st.Size())
	}
	return errors.Join(err, r.db.Close())
}
