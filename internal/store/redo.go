package store

import (
	"cmp"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// redo makes writes of sandboxes durable for a fraction of what SQLite's flush
// takes: that is an fsync of a file that changes its length or its times, which has
// the file system commit its journal. Here whole rows are written over a part of a
// file that is there already, and only their bytes are flushed. SQLite is told not to
// flush; should the machine fail, what it has lost is written again from here when it
// is opened next.
//
// The next flush of SQLite's makes all that is noted superfluous, and the file begins
// anew. So it needs to hold little, and reading it is quick. A row that is removed
// must not come back: before any is, SQLite is flushed and what is noted is cleared.
//
// It lies beside the database, as its log does, and belongs to it like that.
//
// An entry is
//
//	length (4 bytes), CRC-32C of what follows (4), epoch (8), number in it (4), row (JSON)
//
// Entries count from 0 in each epoch; what does not go on with the entry before it is
// of an earlier epoch, or half written.
type redo struct {
	f     *os.File // nil: none; SQLite flushes
	epoch uint64
	next  uint32 // number of the next entry
	off   int64  // where that goes
}

// redoRow is a sandbox as it was written.
type redoRow struct {
	Tenant  sandbox.TenantID `json:"tenant"`
	Version int64            `json:"version"`
	Body    json.RawMessage  `json:"body"`
}

const (
	redoSuffix = "-redo"
	redoSize   = 1 << 20
	redoHead   = 4 + 4 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errNotNoted marks a flush of the redo file that failed, as SQLite's own do.
var errNotNoted = errors.New("the redo file could not be flushed")

// openRedo opens the redo file of a database, or makes it, and returns the rows that
// are noted in it. Where there is no room for the file, SQLite flushes.
func openRedo(database string) (r *redo, rows []redoRow, err error) {
	f, err := os.OpenFile(database+redoSuffix, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	have, err := io.ReadAll(f)
	if err == nil {
		rows, err = parseRedo(have)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	if len(have) < redoSize { // written, not reserved: a first write to reserved blocks changes more than them
		_, err = f.WriteAt(make([]byte, redoSize-len(have)), int64(len(have)))
		if err = cmp.Or(err, f.Sync(), syncDir(filepath.Dir(database))); err != nil {
			f.Close()
			return &redo{}, rows, nil
		}
	}
	r = &redo{f: f}
	r.begin()
	return r, rows, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// parseRedo returns the rows of the newest epoch.
func parseRedo(b []byte) (rows []redoRow, err error) {
	var epoch uint64
	for n := uint32(0); len(b) >= redoHead; n++ {
		size := int(binary.BigEndian.Uint32(b))
		if size == 0 || size > len(b)-redoHead {
			return rows, nil
		}
		entry := b[8 : redoHead+size]
		if crc32.Checksum(entry, castagnoli) != binary.BigEndian.Uint32(b[4:]) {
			return rows, nil
		}
		e, number := binary.BigEndian.Uint64(entry), binary.BigEndian.Uint32(entry[8:])
		if n == 0 {
			epoch = e
		}
		if e != epoch || number != n {
			return rows, nil
		}
		var row redoRow
		if err := json.Unmarshal(entry[12:], &row); err != nil {
			return nil, sandbox.Errorf("open store", sandbox.KindInternal, "a row of the redo file is damaged: %w", err)
		}
		rows = append(rows, row)
		b = b[redoHead+size:]
	}
	return rows, nil
}

// begin begins an epoch: nothing that is noted is needed any more.
func (r *redo) begin() {
	var b [8]byte
	rand.Read(b[:])
	r.epoch, r.next, r.off = binary.BigEndian.Uint64(b[:]), 0, 0
}

// ready reports whether what a transaction writes can be noted. If not, SQLite's
// flush makes room.
func (r *redo) ready() bool { return r.f != nil && r.off < redoSize/2 }

// note writes rows, which flush makes durable: between the two there is something else
// to flush, and of two flushes side by side one waits for the other. More than there
// is room for makes the file longer.
func (r *redo) note(rows []redoRow) error {
	var b []byte
	next := r.next
	for _, row := range rows {
		body, err := json.Marshal(row)
		if err != nil {
			return fmt.Errorf("%w: %w", errNotNoted, err)
		}
		at := len(b)
		b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
		b = append(b, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint64(b, r.epoch)
		b = binary.BigEndian.AppendUint32(b, next)
		b = append(b, body...)
		binary.BigEndian.PutUint32(b[at+4:], crc32.Checksum(b[at+8:], castagnoli))
		next++
	}
	if _, err := r.f.WriteAt(b, r.off); err != nil {
		return fmt.Errorf("%w: %w", errNotNoted, err)
	}
	beginFlush(r.f, r.off, int64(len(b)))
	r.next, r.off = next, r.off+int64(len(b))
	return nil
}

// flush makes durable what was noted.
func (r *redo) flush() error {
	failpoint.Hit("store/before-redo-flush")
	if err := flushData(r.f); err != nil {
		return fmt.Errorf("%w: %w", errNotNoted, err)
	}
	return nil
}

// revoke forgets durably what was noted last, as entries from number next on at off.
func (r *redo) revoke(next uint32, off int64) error {
	_, err := r.f.WriteAt(make([]byte, redoHead), off)
	if err == nil {
		err = flushData(r.f)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotNoted, err)
	}
	r.next, r.off = next, off
	return nil
}

// clear forgets durably what is noted.
func (r *redo) clear() error {
	if r.f == nil {
		return nil
	}
	_, err := r.f.WriteAt(make([]byte, redoHead), 0)
	if err == nil {
		err = flushData(r.f)
	}
	r.begin()
	return err
}

func (r *redo) close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// again writes rows that were noted and are not in the database.
func (x *txn) again(rows []redoRow) (n int, err error) {
	for _, row := range rows {
		noted := sandboxRow{tenant: string(row.Tenant), version: row.Version, body: row.Body}
		sb, err := noted.sandbox()
		if err != nil {
			return n, err
		}
		var r sandboxRow
		err = x.row(r.dest(), selectSandbox+` WHERE tenant = ? AND id = ?`, string(sb.Tenant), string(sb.ID))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			err = x.insertSandbox(&sb)
		case err == nil && r.version >= row.Version:
			continue
		case err == nil:
			var old Sandbox
			if old, err = r.sandbox(); err == nil {
				err = x.updateSandbox(&sb, &old)
			}
		}
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
