// Package service is every operation Firebreak offers, once. Each surface
// (REST, Connect, gRPC, the E2B wire, the CLI in process) decodes its bytes,
// puts the caller into the context and calls a method here:
//
//	svc, err := service.New(service.Config{Orchestrator: o, Store: st, Auth: a, …})
//	ctx = auth.WithPrincipal(ctx, p)
//	ctx = service.WithIdempotencyKey(ctx, r.Header.Get("Idempotency-Key"))
//	sb, err := svc.CreateSandbox(ctx, req)
//	err = svc.Exec(ctx, &v1.ExecRequest{Id: sb.Id, Code: &code}, func(ev *v1.ExecEvent) error {
//		return stream.Send(ev)
//	})
//
// An operation authorises (the principal holds the scope its proto declares),
// validates (the rules in the proto, then what a rule cannot say), records,
// orchestrates and converts. It never sees a header, a status code or a socket.
//
// # Ids
//
// Where a sandbox is named, its id and the name of a live sandbox both work.
// What belongs to another tenant does not exist: the same error, word for
// word, as for an id that was never issued.
//
// # Errors
//
// All are *sandbox.Error, with a Hint wherever a person can act. A sandbox that
// has ended answers KindGone with its reason and when.
package service
