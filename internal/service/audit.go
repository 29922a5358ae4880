package service

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/audit"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Evidence is the log that can be read; *audit.Log is one.
type Evidence interface {
	Checkpoint(ctx context.Context) ([]byte, error)
	PublicKey() string
	Head() audit.Head // of what is durable
}

// The evidence of a tenant is for its admins. What the server recorded about
// itself has the default tenant, which is the operator's: the local socket's and
// the first key's.

// Bounds of one call. A page that found little says where to go on.
const (
	entryPage     = 100
	entryScan     = 200_000 // records looked at for one page
	entryReaders  = 4       // calls that read the log at once, of all tenants
	entryWatchers = 8       // of one tenant
	entryPoll     = 200 * time.Millisecond
)

// reading waits for a turn to read the log, which begins with reading a whole
// segment.
func (s *Service) reading(ctx context.Context) (done func(), err error) {
	if s.Evidence == nil {
		return nil, errNoEvidence()
	}
	select {
	case s.readers <- struct{}{}:
		return func() { <-s.readers }, nil
	case <-ctx.Done():
		return nil, sandbox.Wrap("audit", "", ctx.Err())
	}
}

func errNoEvidence() error {
	return sandbox.Errorf("audit", sandbox.KindUnsupported, "the audit log cannot be read here")
}

// GetCheckpoint signs the log as it is and returns that.
func (s *Service) GetCheckpoint(ctx context.Context, _ *v1.GetCheckpointRequest) (*v1.Checkpoint, error) {
	if _, _, err := s.allow(ctx, "AuditService.GetCheckpoint"); err != nil {
		return nil, err
	}
	done, err := s.reading(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	note, err := s.Evidence.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	cp, err := audit.ParseCheckpoint(noteText(note))
	if err != nil {
		return nil, err
	}
	return &v1.Checkpoint{Note: string(note), Origin: cp.Origin, Size: cp.Size, Root: cp.Root[:], PublicKey: s.Evidence.PublicKey()}, nil
}

// noteText is a signed note without its signatures.
func noteText(note []byte) string {
	for i := 1; i < len(note); i++ {
		if note[i-1] == '\n' && note[i] == '\n' {
			return string(note[:i])
		}
	}
	return string(note)
}

// ListEntries returns one page of the caller's tenant's records. Cost: reading
// the segment the page begins in, and up to entryScan records.
func (s *Service) ListEntries(ctx context.Context, req *v1.ListEntriesRequest) (*v1.ListEntriesResponse, error) {
	who, _, err := s.allow(ctx, "AuditService.ListEntries")
	if err != nil {
		return nil, err
	}
	done, err := s.reading(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	last := s.Evidence.Head().Position
	if size := req.GetProofSize(); size > int64(last) {
		return nil, sandbox.Errorf("audit", sandbox.KindInvalid, "the log has %d records, not %d", last, size).WithHint("proof_size is the size of a checkpoint")
	} else if size > 0 {
		last = sandbox.Position(size)
	}
	f := entryFilter{tenant: who.Tenant, sandbox: sandbox.ID(req.GetSandboxId()), payloads: req.GetPayloads()}
	page := int(req.GetPageSize())
	if page == 0 {
		page = entryPage
	}
	resp := &v1.ListEntriesResponse{NextAfterId: req.GetAfterId()}
	defer func() { resp.More = resp.NextAfterId < int64(last) }()
	if req.GetAfterId() >= int64(last) {
		return resp, nil
	}
	r, err := audit.NewReader(s.EvidenceDir, sandbox.Position(req.GetAfterId())+1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for seen := 0; seen < entryScan && len(resp.Entries) < page && resp.NextAfterId < int64(last); seen++ {
		e, err := r.Next()
		if err == nil && seen%1024 == 0 {
			err = sandbox.Wrap("audit", "", ctx.Err())
		}
		if err != nil { // never the end: what is durable is there
			return nil, err
		}
		resp.NextAfterId = int64(e.Position)
		if !f.wants(&e.Record) {
			continue
		}
		out := toEntry(e, f.payloads)
		if err := s.prove(out, req.GetProofSize()); err != nil {
			return nil, err
		}
		resp.Entries = append(resp.Entries, out)
	}
	return resp, nil
}

// prove adds e's proof in the log of a size, if that is not 0.
func (s *Service) prove(e *v1.AuditEntry, size int64) error {
	if size == 0 {
		return nil
	}
	proof, err := audit.RecordProof(s.EvidenceDir, sandbox.Position(e.GetId()), size)
	for _, h := range proof {
		e.Proof = append(e.Proof, h[:])
	}
	return err
}

// WatchEntries sends the caller's tenant's records behind after_id and follows
// the log until ctx ends, or with no_follow up to its present end. send is called
// from the calling goroutine. Errors: KindCapacity when the tenant watches in
// many places already.
func (s *Service) WatchEntries(ctx context.Context, req *v1.WatchEntriesRequest, send func(*v1.AuditEntry) error) error {
	who, _, err := s.allow(ctx, "AuditService.WatchEntries")
	if err != nil {
		return err
	}
	done, err := s.watching(who.Tenant)
	if err != nil {
		return err
	}
	defer done()
	r, err := audit.NewReader(s.EvidenceDir, sandbox.Position(req.GetAfterId())+1)
	if err != nil {
		return err
	}
	defer r.Close()
	f := entryFilter{tenant: who.Tenant, sandbox: sandbox.ID(req.GetSandboxId()), payloads: req.GetPayloads()}
	end := s.Evidence.Head().Position
	for at := sandbox.Position(req.GetAfterId()); !req.GetNoFollow() || at < end; {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			if err := s.grown(ctx, at); err != nil {
				return err
			}
			continue
		}
		if err == nil { // shown once it is durable
			err = s.grown(ctx, e.Position-1)
		}
		if err != nil {
			return err
		}
		at = e.Position
		if f.wants(&e.Record) {
			if err := send(toEntry(e, f.payloads)); err != nil {
				return err
			}
		}
	}
	return nil
}

// grown waits until the log has durable records behind a position.
func (s *Service) grown(ctx context.Context, at sandbox.Position) error {
	for s.Evidence.Head().Position <= at {
		select {
		case <-time.After(entryPoll):
		case <-ctx.Done():
			return sandbox.Wrap("audit", "", ctx.Err())
		}
	}
	return nil
}

// watching admits one more watcher of a tenant.
func (s *Service) watching(tenant sandbox.TenantID) (done func(), err error) {
	if s.Evidence == nil {
		return nil, errNoEvidence()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers[tenant] >= entryWatchers {
		return nil, sandbox.Errorf("audit", sandbox.KindCapacity, "the tenant watches the audit log in %d places already", entryWatchers).
			WithHint("end one of them")
	}
	s.watchers[tenant]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.watchers[tenant]--; s.watchers[tenant] == 0 {
			delete(s.watchers, tenant)
		}
	}, nil
}

// entryFilter says who asks for what.
type entryFilter struct {
	tenant   sandbox.TenantID
	sandbox  sandbox.ID
	payloads bool
}

// wants reports whether r may be shown and was asked for. What has no tenant is
// the server's own.
func (f entryFilter) wants(r *sandbox.Record) bool {
	tenant := r.Tenant
	if tenant == "" {
		tenant = sandbox.DefaultTenant
	}
	return tenant == f.tenant && (f.sandbox == "" || r.Sandbox == f.sandbox)
}

func toEntry(e audit.Entry, payload bool) *v1.AuditEntry {
	r := e.Record
	out := &v1.AuditEntry{Id: int64(e.Position), Time: timestamppb.New(r.Time), MonotonicNs: int64(e.Monotonic), Class: "gate",
		Tenant: text(string(r.Tenant)), SandboxId: text(string(r.Sandbox)), InstanceId: text(string(r.Instance)), Principal: text(r.Principal),
		Action: text(r.Action), Outcome: text(string(r.Outcome)), Reason: text(string(r.Reason)), Object: text(r.Object), Digest: text(r.Digest),
		Detail: texts(r.Detail), Policy: int64(r.Policy), Previous: int64(e.Previous), Leaf: e.Leaf[:]}
	if r.Class == sandbox.Flow {
		out.Class = "flow"
	}
	if e.Boot != [16]byte{} {
		out.BootId = hex.EncodeToString(e.Boot[:])
	}
	if payload {
		out.Payload = append([]byte(nil), e.Payload...)
	}
	return out
}

// GetProof proves inclusion or growth. It holds hashes only.
func (s *Service) GetProof(ctx context.Context, req *v1.GetProofRequest) (*v1.Proof, error) {
	if _, _, err := s.allow(ctx, "AuditService.GetProof"); err != nil {
		return nil, err
	}
	done, err := s.reading(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	dir, size := s.EvidenceDir, req.GetSize()
	if size == 0 {
		note, err := audit.ReadCheckpoint(dir)
		if err != nil {
			return nil, err
		}
		cp, err := audit.ParseCheckpoint(noteText(note))
		if err != nil {
			return nil, err
		}
		size = cp.Size
	}
	if last := int64(s.Evidence.Head().Position); size > last || req.GetPosition() > size || req.GetOldSize() > size {
		return nil, sandbox.Errorf("proof", sandbox.KindInvalid, "the log has %d records, and the proof would be in %d", last, size).
			WithHint("ask for a size and a position the log has")
	}
	p := &v1.Proof{Size: size, Position: req.GetPosition(), OldSize: req.GetOldSize()}
	root := func(size int64) ([]byte, error) {
		r, err := audit.Hashes(dir, size)
		if err != nil {
			return nil, err
		}
		h, err := tlog.TreeHash(size, r)
		return h[:], sandbox.Wrap("proof", "", err)
	}
	if p.Root, err = root(size); err != nil {
		return nil, err
	}
	var hashes []tlog.Hash
	if p.OldSize > 0 {
		if p.OldRoot, err = root(p.OldSize); err == nil {
			hashes, err = audit.TreeProof(dir, p.OldSize, size)
		}
	} else {
		hashes, err = audit.RecordProof(dir, sandbox.Position(p.Position), size)
	}
	for _, h := range hashes {
		p.Hashes = append(p.Hashes, h[:])
	}
	return p, err
}

// ExportEvidence returns what the log proves about one sandbox, as a file.
//
// Errors: KindNotFound for what the log says nothing about and for another
// tenant's alike. Cost: a pass over the log.
func (s *Service) ExportEvidence(ctx context.Context, req *v1.ExportEvidenceRequest) (*v1.ExportEvidenceResponse, error) {
	who, _, err := s.allow(ctx, "AuditService.ExportEvidence")
	if err != nil {
		return nil, err
	}
	done, err := s.reading(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	id := sandbox.ID(req.GetSandboxId())
	missing := sandbox.Errorf("export evidence", sandbox.KindNotFound, "no record is about this sandbox").WithID(text(string(id))).
		WithHint("it takes a sandbox's id, not its name")
	if !id.Valid() {
		return nil, missing
	}
	if _, err := s.Evidence.Checkpoint(ctx); err != nil { // that covers all there is
		return nil, err
	}
	e, err := audit.CollectEvidence(s.EvidenceDir, id)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	r, err := audit.NewReader(s.EvidenceDir, e.Records[0].Position)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	first, err := r.Next()
	if err != nil {
		return nil, err
	}
	if !(entryFilter{tenant: who.Tenant}).wants(&first.Record) {
		return nil, missing
	}
	if sb, err := s.Orchestrator.Get(ctx, who.Tenant, string(id)); err == nil && sb.Receipt != nil {
		e.SetReceipt(*sb.Receipt) // without it the file proves less, and says so
	}
	b, err := e.Encode()
	return &v1.ExportEvidenceResponse{File: string(b)}, err
}
