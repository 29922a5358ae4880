// Package audit is the durable, signed, append-only record of everything
// Firebreak did: the sandbox.Recorder of a daemon.
//
//	l, err := audit.Open(dir, audit.Options{}, log)   // one owner per directory
//	pos, err := l.Record(ctx, sandbox.Record{         // on stable storage when it returns
//		Action: "sandbox.create", Outcome: sandbox.OutcomeAllowed, …})
//	note, err := l.Checkpoint(ctx)                    // signed: covers all that is durable now
//	err = l.Close()
//
//	for e, err := range audit.Scan(dir, 1) { … }      // any process, also while l is open
//	head, err := audit.Verify(dir)                    // re-computes the chain and the tree
//	proof, err := audit.RecordProof(dir, pos, size)   // that a record is under a checkpoint
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
// It comes to that late: Options.Reserve bytes are kept allocated behind the
// newest record. Once the disk has no more than that, what is about to be done
// (OutcomeAllowed without a Reason) is refused, while ends, and what has been
// done already, are recorded still.
//
// # Signatures
//
// A second goroutine builds the Merkle tree over what is durable and signs it:
// within Options.Interval after a record, when the log is closed, and whenever
// Checkpoint is called. Nobody waits for that. A checkpoint that cannot be
// written for want of space makes Record refuse what is about to be done, until
// it can; any other failure is fatal.
//
// Open compares the log with its checkpoint. With less data, or other, than was
// signed it refuses with a GapError and touches nothing; behind what was signed
// it removes what a dying process left half written, and records that.
//
// # Format
//
// The directory holds segments named by the position of their first record,
// twenty digits and ".log". All integers are big-endian.
//
//	segment = "FBAUDIT1" | u64 first position | [32] chain hash before it
//	          | u32 CRC-32C of the 48 bytes before | frame* | zero bytes
//	frame   = u32 length of payload | u32 CRC-32C of length, hash and payload
//	          | [32] chain hash | payload
//	payload = u8 2 | u64 position | i64 time, Unix nanoseconds
//	          | i64 time since the machine was booted, nanoseconds, 0 if unknown
//	          | [16] boot id, zero if unknown | u64 generation of the policy, or 0
//	          | u64 previous: position of the newest record before this one of
//	            the same sandbox, 0 where there is none | u8 class | rest
//	rest    = tenant | sandbox | instance | principal | action | outcome
//	          | reason | object | digest
//	          | u32 number of details | (key | value)*, keys in byte order
//	string  = u32 length | bytes, as they are
//	chain hash = SHA-256("firebreak audit chain v1\n" | hash before | payload)
//
// The hash before the first record is 32 zero bytes. The encoding of a record
// is unique: a decoder refuses what the encoder would not have written. Version
// 1, which a log may begin with, is
//
//	payload = u8 1 | u64 position | i64 time, Unix nanoseconds | u8 class | rest
//
// A record of action "sandbox.receipt" ends its sandbox's evidence: following
// previous from there to 0 meets every record of that sandbox, so that none can
// be left out of what is shown of it. (Where a record of version 1 is met, what
// lies before it has no such links.)
//
// The zero bytes behind the frames are room for the next ones; a segment that is
// finished has none.
//
// # The tree
//
// Leaf p-1 is record p: SHA-256(0x00 | payload). Nodes and root are those of
// RFC 6962. "checkpoint" is a signed note (golang.org/x/mod/sumdb/note, Ed25519)
// as in C2SP tlog-checkpoint:
//
//	origin \n size, decimal \n root, base64 \n
//
// The private key is "key" beside the log's directory, mode 0600, and the public
// one "key.pub". All logs of a data directory share it; the origin, which names
// the log for good, is the key's name, a slash and the directory's name.
//
// Where the key was rotated, "rotate/<position>" is the checkpoint whose last
// record tells of that, signed by both keys.
//
// The other files are derived: "tile/8/<level>/<n>" holds 256 hashes of level
// 8×level (C2SP tlog-tiles), with ".p/<width>" those of level 0 that has fewer,
// and "links.json" the newest records of sandboxes without a receipt as of the
// beginning of the newest segment. They are made again from records where they
// are absent or wrong.
//
// Where old segments have expired, "expired.json" holds the position and the
// chain hash of the last record that is gone; the log begins behind it, and the
// tiles of what is gone are derived from nothing any more, but kept. If it was gone before
// anything was signed, its leaves are 32 zero bytes.
//
// "<position>.cut" keeps what recovery removed there.
//
// What all this shows, and to whom, is in docs/guides/audit-format.md.
package audit
