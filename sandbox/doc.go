// Package sandbox is Firebreak's vocabulary and the contract every isolation
// backend fulfils.
//
// A backend is a lifecycle and a socket: it makes a boundary, hands out a byte
// stream to the agent inside, and proves teardown. Running code, files and
// contexts are written once over that stream (internal/guest), so backends
// stay small and behave alike:
//
//	b, err := gvisor.New(cfg)                    // any Backend
//	inst, err := b.Create(ctx, sandbox.Spec{     // live, or nothing left behind
//		Instance: sandbox.NewInstanceID(),
//		Root:     root,                      // from internal/template
//		Limits:   sandbox.Limits{Memory: 256 << 20, PIDs: 128},
//	})
//	conn, err := inst.Dial(ctx)                  // to the agent: internal/guest speaks on it
//	receipt, err := inst.Destroy(ctx)            // each object removed and re-checked
//
// Whether a Backend keeps the contract is decided by the exported suite in
// sandbox/backendtest, not by its documentation.
//
// The package uses the standard library only and holds no logic beyond the
// validation of its own types.
package sandbox
