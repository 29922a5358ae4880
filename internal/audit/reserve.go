package audit

import (
	"errors"
	"syscall"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// How much more than the reserve is allocated at once, so that not every flush
// has to ask for more: a quarter of what the segment holds, within these.
const (
	slack    = 16 << 10
	maxSlack = 1 << 20
)

// secure keeps Options.Reserve bytes allocated behind what is written. When
// the disk has no more, Record refuses what is about to be done, and what has
// been done or ends something still finds room. It is called by the writer.
func (l *Log) secure() {
	if l.o.Reserve <= 0 || l.seg.failed != nil || l.seg.room-l.seg.size >= l.o.Reserve {
		return
	}
	var low *sandbox.Error
	switch err := l.seg.extend(l.o.Reserve, min(max(l.seg.size/4, slack), maxSlack)); {
	case err == nil:
	case full(err):
		low = noSpace(err)
	default: // not every file system can: then a full disk is met when writing
		l.o.Reserve = 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case low != nil && l.low == nil:
		l.log.Error("audit log: no space beyond the reserve; only ends are recorded", "error", low)
	case low == nil && l.low != nil:
		l.log.Info("audit log: there is space again")
	}
	l.low = nil
	if low != nil {
		l.low = low
	}
}

// late reports whether r tells of what is over, or ending: refusing it would
// prevent nothing and lose evidence. Expiry is the log's own way to space.
func late(r *sandbox.Record) bool {
	return r.Action == "audit.expire" || r.Reason != "" || r.Outcome == sandbox.OutcomeDone || r.Outcome == sandbox.OutcomeFailed
}

func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// scarce reports whether err is for want of what others hold and give back.
func scarce(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// passing reports whether what failed with err may succeed later, and has done no
// harm.
func passing(err error) bool { return full(err) || scarce(err) }

// noSpace is the answer to an error that passes, mostly a full disk. It does not name files of the host: a
// tenant reads it.
func noSpace(err error) *sandbox.Error {
	if scarce(err) {
		return sandbox.Errorf("record", sandbox.KindCapacity, "the audit log cannot be signed: the server is short of descriptors or memory").
			WithHint("try again; the operator may raise the server's limits")
	}
	cause := error(syscall.ENOSPC)
	if errors.Is(err, syscall.EDQUOT) {
		cause = syscall.EDQUOT
	}
	return sandbox.Errorf("record", sandbox.KindNoSpace, "the audit log cannot grow: %w", cause).
		WithHint("free space on the disk of the data directory")
}
