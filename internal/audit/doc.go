// Package audit is the durable, hash-chained, append-only record of everything
// Firebreak did: the sandbox.Recorder of a daemon.
//
//	l, err := audit.Open(dir, audit.Options{}, log)   // one owner per directory
//	pos, err := l.Record(ctx, sandbox.Record{         // on stable storage when it returns
//		Action: "sandbox.create", Outcome: sandbox.OutcomeAllowed, …})
//	err = l.Close()
//
//	for e, err := range audit.Scan(dir, 1) { … }      // any process, also while l is open
//	head, err := audit.Verify(dir)                    // re-computes the whole chain
//
// # Durability
//
// One goroutine writes. Whatever has been recorded when it looks becomes one
// write and one fdatasync, after which every caller concerned is woken: a Gate
// record costs its caller about one flush however many callers there are. A
// Flow record returns at once as long as the records not yet durable stay
// within Options.MaxLag and MaxLagTime; beyond, it waits like a Gate record.
//
// A failed flush is fatal: what the page cache calls clean may not be on disk,
// so from then on every Record fails with KindUnavailable until the process is
// restarted and recovers. A full disk is not fatal: Record fails with
// KindNoSpace until there is room. Records that had a position by then keep
// it and are written first once there is, so no position is ever skipped.
//
// # Format, version 1
//
// The directory holds segments named by the position of their first record,
// twenty digits and ".log". All integers are big-endian.
//
//	segment = "FBAUDIT1" | u64 first position | [32] chain hash before it
//	          | u32 CRC-32C of the 48 bytes before | frame*
//	frame   = u32 length of payload | u32 CRC-32C of length, hash and payload
//	          | [32] chain hash | payload
//	payload = u8 1 | u64 position | i64 time, Unix nanoseconds | u8 class
//	          | tenant | sandbox | instance | principal | action | outcome
//	          | reason | object | digest
//	          | u32 number of details | (key | value)*, keys in byte order
//	string  = u32 length | bytes, as they are
//	chain hash = SHA-256("firebreak audit chain v1\n" | hash before | payload)
//
// The hash before the first record is 32 zero bytes. The encoding of a record
// is unique: a decoder refuses what the encoder would not have written.
//
// The chain shows that no record was changed, removed from the middle or
// reordered. It cannot show that the newest records were cut off, or that the
// whole log was replaced by another: that takes signatures and witnesses,
// which build on the chain hash and change nothing here.
package audit
