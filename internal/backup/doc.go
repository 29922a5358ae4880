// Package backup puts what a data directory cannot be made again from into one
// file, and makes a data directory from it.
//
//	m, err := backup.WriteFile(ctx, "/backups/monday.fbk", backup.Source{Data: dir, …})
//	m, err := backup.Restore(ctx, file, "/var/lib/firebreak", backup.Target{…})
//
// # What is in it
//
//	header.json      format, versions, how much is to come
//	state.db         the records, the hashes of all API keys and the secrets, which
//	                 are encrypted, at one moment
//	audit/…          evidence, complete and verified up to a later moment, and
//	                 the key that signs it
//	events/… runs/…  what sandboxes printed and runs left behind
//	firebreak.yaml   the configuration, if it lies in the data directory
//	manifest.json    every member before it, with size and SHA-256
//
// in this order, as a tar compressed with zstd. State is copied before evidence
// and every action is recorded before it is done, so a backup never holds state
// whose evidence it lacks.
//
// The key makes a backup a secret: with it, evidence can be signed. Without it
// what is restored could not go on as the log it was.
//
// # What is not
//
// Programs (libexec/), templates' trees, instances, locks and sockets: they are
// made again, or belong to a machine. The file api-key: it is a secret in the
// clear, and every key works without it. The file secrets/key, which opens the
// tenants' secrets: a backup without it gives none away, and a restored server says
// which it cannot open until that file is put back or they are set again. Nothing in a backup is ever executed,
// and Restore accepts no name but those above: whoever can change a backup
// decides what a restored server believes, not what it runs as root.
//
// # Restoring
//
// A restored directory is a new installation with an old memory. Sandboxes that
// were alive end as lost when it is restored; the machine they came from may
// still be running them, so no teardown is claimed: they get no receipt.
package backup
