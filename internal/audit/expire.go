package audit

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak/internal/failpoint"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// expiredName is a file that says which records were removed because of their age,
// so that their absence is not taken for damage. Without it a log begins at 1.
const expiredName = "expired.json"

type expired struct {
	Position sandbox.Position `json:"position"` // of the last one that was removed
	Hash     string           `json:"hash"`     // chain hash up to it
}

// readExpired returns where the log begins: behind this head.
func readExpired(dir string) (Head, error) {
	b, err := os.ReadFile(filepath.Join(dir, expiredName))
	if errors.Is(err, fs.ErrNotExist) {
		return Head{}, nil
	}
	if err != nil {
		return Head{}, err
	}
	var n expired
	var h Head
	sum, herr := []byte(nil), json.Unmarshal(b, &n)
	if herr == nil {
		sum, herr = hex.DecodeString(n.Hash)
	}
	if herr != nil || len(sum) != len(h.Hash) {
		return Head{}, sandbox.Errorf("read audit log", sandbox.KindInternal, "%s is damaged", expiredName)
	}
	h.Position = n.Position
	copy(h.Hash[:], sum)
	return h, nil
}

// Expire removes whole segments whose newest record is older than before, from
// the oldest on, never the one being written. What was removed stays provable:
// that it was, up to where and with which hash is recorded first
// ("audit.expire"), and noted beside the segments, so that the rest verifies;
// the tiles that stay keep the tree, its root and every later proof. It
// returns how many segments it removed; interrupted anywhere, Open finishes.
//
// Errors: those of Record, upon which nothing is removed.
func (l *Log) Expire(ctx context.Context, before time.Time) (removed int, err error) {
	const op = "expire audit log"
	list, err := segments(l.dir)
	if err != nil {
		return 0, sandbox.Wrap(op, l.dir, err)
	}
	n := 0
	for ; n < len(list)-1; n++ {
		fi, err := os.Stat(segmentPath(l.dir, list[n]))
		if err != nil {
			return 0, sandbox.Wrap(op, l.dir, err)
		}
		if !fi.ModTime().Before(before) {
			break
		}
	}
	if n == 0 {
		return 0, nil
	}
	next, err := newSegmentReader(segmentPath(l.dir, list[n]), list[n])
	if err != nil {
		return 0, sandbox.Wrap(op, l.dir, err)
	}
	through := next.head
	next.close()
	if err := l.notary.outlive(l.dir, through.Position); err != nil {
		return 0, sandbox.Wrap(op, l.dir, err)
	}
	if _, err := l.Record(ctx, sandbox.Record{
		Class: sandbox.Gate, Tenant: sandbox.DefaultTenant, Principal: "system",
		Action: "audit.expire", Outcome: sandbox.OutcomeAllowed, Digest: hex.EncodeToString(through.Hash[:]),
		Detail: map[string]string{"through": strconv.FormatUint(uint64(through.Position), 10), "segments": strconv.Itoa(n)},
	}); err != nil {
		return 0, err
	}
	failpoint.Hit("audit/expire-recorded")
	if err := writeExpired(l.dir, through); err != nil {
		return 0, sandbox.Wrap(op, l.dir, err)
	}
	failpoint.Hit("audit/expire-noted")
	err = dropExpired(l.dir, through)
	return n, sandbox.Wrap(op, l.dir, err)
}

func writeExpired(dir string, through Head) error {
	b, err := json.Marshal(expired{through.Position, hex.EncodeToString(through.Hash[:])})
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, expiredName), append(b, '\n'), 0o600)
}

// dropExpired removes the segments before the one that begins behind through.
func dropExpired(dir string, through Head) error {
	list, err := segments(dir)
	if err != nil {
		return err
	}
	i, found := slices.BinarySearch(list, through.Position+1)
	if !found && through.Position > 0 {
		return fmt.Errorf("the segment that begins at %d is missing", through.Position+1)
	}
	for _, first := range list[:i] {
		if err := os.Remove(segmentPath(dir, first)); err != nil {
			return err
		}
		failpoint.Hit("audit/expire-removed")
	}
	return nil
}
