package guest

import "context"

// CapabilityTrust is of an agent that knows OpTrust.
const CapabilityTrust = "trust"

// Trust makes the programs that start in the sandbox from now on trust an authority,
// in the place of the one of an earlier call: OpenSSL's, GnuTLS's, Go's, Java's by
// the files that they read, others by the environment that the host gives them.
// Idempotent. Errors: KindUnsupported by an agent that cannot; those of files, when
// not all is done.
//
// Cost: one round trip, and a few milliseconds.
func (s *Session) Trust(ctx context.Context, t TrustCall) error {
	if !s.can(CapabilityTrust) {
		return unsupported("trust", "does not know whom programs trust")
	}
	_, err := s.do(ctx, OpTrust, Call{Trust: &t})
	return err
}
