package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"
)

// Kind classifies an Error. The set is closed and shared by every surface; one
// table in internal/server turns it into an HTTP status and a Connect code.
type Kind string

// The kinds. Their values are part of the API ("kind" in an error body).
const (
	KindInvalid         Kind = "invalid"         // the request itself is wrong
	KindUnauthenticated Kind = "unauthenticated" // no credential, or a wrong one
	KindDenied          Kind = "denied"          // known caller, not allowed
	KindNotFound        Kind = "not_found"       // no such object (or another tenant's)
	KindExists          Kind = "exists"          // the name is taken
	KindConflict        Kind = "conflict"        // state does not permit it now
	KindGone            Kind = "gone"            // the sandbox has ended; its record remains
	KindUnsupported     Kind = "unsupported"     // this backend cannot enforce or do it
	KindCapacity        Kind = "capacity"        // a quota or the host is full; retry later
	KindTooLarge        Kind = "too_large"       // over a size cap
	KindNoSpace         Kind = "no_space"        // the disk concerned is full
	KindTimeout         Kind = "timeout"         // a deadline passed
	KindCanceled        Kind = "canceled"        // the caller went away
	KindUnavailable     Kind = "unavailable"     // cannot serve now: dependency, shutdown
	KindIsDirectory     Kind = "is_directory"    // a file was needed
	KindNotDirectory    Kind = "not_directory"   // a directory was needed
	KindProtocol        Kind = "protocol"        // the guest broke the protocol
	KindInternal        Kind = "internal"        // a bug in Firebreak
)

// Error is the one error type that crosses package and process borders.
//
// It reads "op id: err (hint)"; lower case, no final dot. Hint, where present,
// is a sentence telling a person what to do about it.
type Error struct {
	Op         string        // what was being done: "create", "exec", "template build"
	ID         string        // the object concerned, if any
	Kind       Kind          // what went wrong, for programs
	Hint       string        // what to do, for people
	RetryAfter time.Duration // when a retry may succeed; KindCapacity and KindUnavailable only
	Err        error         // what went wrong, for people; may be nil
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.ID != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.ID)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Message())
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Message is what went wrong, without Op, ID and Hint.
func (e *Error) Message() string {
	if e.Err == nil {
		return strings.ReplaceAll(string(e.Kind), "_", " ")
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an *Error of kind k for operation op, with a formatted cause
// (%w works).
func Errorf(op string, k Kind, format string, args ...any) *Error {
	return &Error{Op: op, Kind: k, Err: fmt.Errorf(format, args...)}
}

// WithHint sets Hint and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithID sets ID and returns e.
func (e *Error) WithID(id string) *Error {
	e.ID = id
	return e
}

// KindOf classifies any error: an *Error by its Kind, context and file system
// errors by what they mean, nil as "", everything else as KindInternal.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled):
		return KindCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return KindTimeout
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return KindNoSpace
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		return KindCapacity // descriptors, tasks or memory of this process, or of the host
	case errors.Is(err, syscall.EISDIR):
		return KindIsDirectory
	case errors.Is(err, syscall.ENOTDIR):
		return KindNotDirectory
	case errors.Is(err, fs.ErrNotExist):
		return KindNotFound
	case errors.Is(err, fs.ErrExist):
		return KindExists
	case errors.Is(err, fs.ErrPermission):
		return KindDenied
	}
	return KindInternal
}

// Wrap gives err an Op and an ID unless it already is an *Error, and its Kind
// by KindOf. Wrap of nil is nil.
func Wrap(op, id string, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &Error{Op: op, ID: id, Kind: KindOf(err), Err: err}
}
