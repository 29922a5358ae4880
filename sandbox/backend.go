package sandbox

import (
	"context"
	"net"
)

// Backend makes boundaries. Implementations are safe for concurrent use.
type Backend interface {
	// Info reports what the backend enforces here and now. The first call may
	// probe (milliseconds); later ones are cheap.
	//
	// Errors: only when probing itself failed. A backend that cannot work here
	// returns Info with Available false and no error.
	Info(ctx context.Context) (Info, error)

	// Create makes one instance and returns once the agent inside has
	// answered, so that an exec sent right afterwards cannot race the boot.
	//
	// It returns a live Instance or leaves nothing behind: on error, including
	// the end of ctx at any moment, every host object made for the instance
	// has been removed before it returns. An agent that never answers fails it
	// with KindTimeout at ctx's deadline.
	//
	// Errors: KindInvalid for a malformed spec; KindExists when the instance
	// id is in use; KindUnsupported when the spec demands what Info does not
	// promise; KindUnavailable when no sandbox can run here; KindTimeout,
	// KindCanceled; KindNoSpace.
	//
	// Cost: one boot.
	Create(ctx context.Context, spec Spec) (Instance, error)

	// Attach returns an instance made earlier, perhaps by another process that
	// has ended. Errors: KindNotFound.
	Attach(ctx context.Context, id InstanceID) (Instance, error)

	// List reports all instances the backend can see, dead ones included until
	// they are destroyed. It feeds the orphan reaper, so it must not depend on
	// this process's memory.
	List(ctx context.Context) ([]Status, error)

	// Close releases what the backend itself holds. Instances live on.
	Close() error
}

// Instance is one sandbox boundary. Implementations are safe for concurrent
// use.
type Instance interface {
	ID() InstanceID

	// Dial returns a byte stream to the agent. There is one live stream at a
	// time: a new Dial invalidates the previous one, whose reads and writes
	// then fail. Closing the stream does not end the instance.
	//
	// Errors: KindGone when the instance has ended.
	Dial(ctx context.Context) (net.Conn, error)

	// Status reports state and usage. Cost: a few small file reads.
	Status(ctx context.Context) (Status, error)

	// Wait blocks until the boundary has ended, by itself or by Destroy, and
	// says why. It may be called any number of times, also afterwards.
	Wait(ctx context.Context) (Exit, error)

	// Destroy ends the instance and removes every host object made for it,
	// then looks for each again. It is idempotent: later calls return the
	// first receipt. It finishes its work even if ctx ends meanwhile. An
	// object that resisted is in the receipt with Gone false, and the error is
	// KindInternal.
	Destroy(ctx context.Context) (Receipt, error)
}
