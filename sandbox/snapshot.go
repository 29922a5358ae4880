package sandbox

import (
	"context"
	"time"
)

// Snapshotter is an Instance that can be saved. Instances of a Backend with
// Capabilities.Snapshot are; those of one without are not, or refuse with
// KindUnsupported.
type Snapshotter interface {
	// Snapshot saves the instance's memory, files and programs, all of one
	// instant, into dir, which must not exist, and returns once that is on
	// stable storage. The instance stands still meanwhile and then goes on,
	// whether saving it worked or not; whoever wants it to stop there destroys
	// it. Connections it has to the outside are not saved.
	//
	// On an error nothing is left in dir. Errors: KindGone when the instance has
	// ended; KindUnsupported when this one cannot be saved; KindExists; KindNoSpace;
	// ctx's.
	//
	// Cost: writes what memory and files the guest uses, and reads it once.
	Snapshot(ctx context.Context, dir string) (Snapshot, error)
}

// Restorer is a Backend whose instances are Snapshotters.
type Restorer interface {
	// Restore makes an instance that goes on where from was taken, as if no time
	// had passed but on the wall clock. It returns once the agent inside has
	// answered, or leaves nothing behind, as Create does. From one snapshot any
	// number of instances can be made, one after another or at once; from is only
	// read.
	//
	// Before anything of it is used, the snapshot is checked: whole and unchanged
	// since it was taken, of spec's tenant and root, by the same programs and for
	// the same kind of processor. spec.Limits and ReadonlyRoot have to be those of
	// the instance that was saved. It has a Wire exactly if that had one, its own:
	// connections over the other's have ended for its programs.
	//
	// Errors: those of Create; KindConflict when the snapshot is not what it says,
	// was changed, or does not fit here; KindNotFound when it is of another tenant,
	// or not there.
	//
	// Cost: reads the snapshot twice.
	Restore(ctx context.Context, spec Spec, from Snapshot) (Instance, error)
}

// Snapshot is a saved instance: a directory, and what it has to be.
type Snapshot struct {
	// Dir holds the image. Its files are the backend's. They hold whatever the
	// guest had in its memory, so they are nobody's to read.
	Dir string
	// Digest covers all that Restore relies on: "sha256:" and 64 hex digits. It is
	// kept apart from Dir, so that who can write there cannot make a snapshot.
	Digest  string
	Size    int64 // bytes on disk
	Created time.Time
	// Limits and ReadonlyRoot are what a restored instance has, too.
	Limits       Limits
	ReadonlyRoot bool
}

// Preparer is a Restorer that can make instances before it is known what they go on
// from.
type Preparer interface {
	Restorer
	// Prepare makes all of an instance but its guest, or leaves nothing behind.
	// spec is that of the instance that it becomes, with its limits filled in as
	// Create does. The backend lists it, as alive.
	//
	// Errors: those of Create; KindUnsupported for one with a Wire.
	//
	// Cost: most of what a boot costs, and until it is restored into or destroyed
	// the memory of an idle boundary.
	Prepare(ctx context.Context, spec Spec) (Blank, error)
	// Release ends a snapshot that was held. What is being made of it is not
	// disturbed. Of one that is not held: nothing.
	Release(s Snapshot)
}

// Blank is an instance without a guest, for one Restore or Destroy.
type Blank interface {
	ID() InstanceID
	// Restore is Restorer's, into this instance, which is destroyed on an error.
	Restore(ctx context.Context, from Snapshot) (Instance, error)
	// Destroy is Instance's.
	Destroy(ctx context.Context) (Receipt, error)
}

// Holder is a Snapshotter that can be saved for a moment.
type Holder interface {
	// Hold is Snapshot without a directory: nobody but the backend that made the
	// instance can restore it, and no other process; it ends with Release, Close or
	// the process. Nothing is flushed, and nothing is read back to be checked: its
	// files have no names, and nobody can have changed them.
	Hold(ctx context.Context) (Snapshot, error)
}
