package client

import (
	"context"
	"iter"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// Checkpoint has the server sign its audit log as it is now. Whoever wants proof
// checks the note with a key that came from somewhere else. Errors: KindDenied
// without the scope audit:read, here and below.
func (c *Client) Checkpoint(ctx context.Context) (*v1.Checkpoint, error) {
	return message(c.audit.GetCheckpoint(ctx, connect.NewRequest(&v1.GetCheckpointRequest{})))
}

// AuditQuery says which records.
type AuditQuery struct {
	After    int64  // position of the last one that is known; 0: from the beginning
	Sandbox  string // only those of one sandbox
	Payloads bool   // with what the proofs are about
	NoFollow bool   // stop at the present
}

// AuditEntries iterates over the tenant's audit records and follows the log. A
// broken connection is taken up again where it broke. An error ends the
// iteration.
func (c *Client) AuditEntries(ctx context.Context, q AuditQuery) iter.Seq2[*v1.AuditEntry, error] {
	return follow(ctx, q.After, func(ctx context.Context, after int64) (stream[v1.AuditEntry], error) {
		return c.audit.WatchEntries(ctx, connect.NewRequest(&v1.WatchEntriesRequest{AfterId: after, SandboxId: q.Sandbox, Payloads: q.Payloads, NoFollow: q.NoFollow}))
	})
}

// AuditPage returns one page of the tenant's audit records behind a position, at
// most size (0: 100), and, if proofSize is not 0, with proofs that they are in
// the log of that size. Go on at NextAfterId while More.
func (c *Client) AuditPage(ctx context.Context, q AuditQuery, size int, proofSize int64) (*v1.ListEntriesResponse, error) {
	return message(c.audit.ListEntries(ctx, connect.NewRequest(&v1.ListEntriesRequest{AfterId: q.After, SandboxId: q.Sandbox, Payloads: q.Payloads,
		PageSize: int32(size), ProofSize: proofSize})))
}

// ProveRecord proves that a record is in the log of a size; 0 is that of the
// newest checkpoint.
func (c *Client) ProveRecord(ctx context.Context, position, size int64) (*v1.Proof, error) {
	return message(c.audit.GetProof(ctx, connect.NewRequest(&v1.GetProofRequest{Position: position, Size: size})))
}

// ProveGrowth proves that the log of a size begins with the log of an older one.
func (c *Client) ProveGrowth(ctx context.Context, old, size int64) (*v1.Proof, error) {
	return message(c.audit.GetProof(ctx, connect.NewRequest(&v1.GetProofRequest{OldSize: old, Size: size})))
}

// Evidence returns all that the server's log proves about one sandbox: a file
// that `firebreak audit verify` checks. Errors: KindNotFound.
func (c *Client) Evidence(ctx context.Context, sandboxID string) ([]byte, error) {
	res, err := message(c.audit.ExportEvidence(ctx, connect.NewRequest(&v1.ExportEvidenceRequest{SandboxId: sandboxID})))
	return []byte(res.GetFile()), err
}
