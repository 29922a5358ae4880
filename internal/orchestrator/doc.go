// Package orchestrator owns the life of every sandbox: what exists, since when,
// until when, why it ended, and that nothing of it is left.
//
//	o, err := orchestrator.New(orchestrator.Config{Backends: backends, Store: st, Recorder: log, …})
//	err = o.Start(ctx)                          // recovery: adopt, bury, destroy orphans
//	sb, err := o.Create(ctx, who, orchestrator.CreateRequest{})
//	exit, err := o.Exec(ctx, who, string(sb.ID), orchestrator.ExecRequest{Code: &code}, sink)
//	sb, err = o.Destroy(ctx, who, string(sb.ID)) // sb.Receipt
//	err = o.Close(ctx)                          // sandboxes live on, or not: Config.DestroyOnClose
//
// # States
//
//	creating → running → stopping → ended
//
// A sandbox only moves forward, and its reason outlives it. Every step is
// journalled in the store before it is done, and recorded as evidence where
// DESIGN.md says so, so after a crash at any point Start finds what was meant:
// a record still creating is undone, one that runs is adopted, one that was
// stopping is finished, an instance without a living record is destroyed.
//
// A create that is refused before its intent is journalled (whatever a client
// got wrong, a quota, a full host) leaves no record. One that fails later leaves
// an ended one, since something may have existed on the host.
//
// # Time
//
// Wall clock, idle time and maximum life are enforced here, by timers; the
// guest and the backend know nothing of them but an exec's own deadline, which
// the guest enforces and this package enforces again. The idle clock starts
// anew when a daemon adopts a sandbox.
//
// # Networks
//
// A sandbox without network rules has no wire. Any other gets one from Network:
// it is opened before the instance is made and closed after it is gone, its
// objects are in the sandbox's receipt, and its policy is in the sandbox's record
// before it is in force, so that Start takes up what was meant. Each decision
// about a flow comes to RecordEgress before it takes effect. A wire that cannot
// be taken up lets nothing pass, which the sandbox's report says.
//
// Bindings are names here: Network finds out what they are, with their secrets, when
// it opens or takes up a wire. A binding that a living sandbox has is not removed,
// see Unbind.
//
// # Failing evidence
//
// If the audit log refuses a record, what was to be done is not done, with one
// exception: an end. Keeping untrusted code alive because nobody can write down
// its death would be the weaker choice, so a sandbox is destroyed all the same
// and its record says that the evidence is missing.
package orchestrator
