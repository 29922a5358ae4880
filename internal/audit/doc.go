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
package audit
