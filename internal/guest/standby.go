package guest

import "context"

// Standby has the guest keep an interpreter ready for the next program that is
// python3 -c, and returns when it is: such a program then starts nothing. One at a
// time is kept; after it was used, or when it would no longer be what a fresh one is,
// another takes its place. env is as in Command, and user.
//
// Errors: KindUnsupported where the agent is of an older version; KindNotFound where
// there is no python3, KindConflict while something runs, KindTimeout, the
// session's. Cost: the start of an interpreter.
func (s *Session) Standby(ctx context.Context, env []string, user string) error {
	if !s.can(CapabilityStandby) {
		return unsupported("standby", "keeps no interpreters")
	}
	_, err := s.do(ctx, OpStandby, Call{Standby: &StandbyCall{
		Argv: []string{"python3", PythonStandby}, Match: []string{"python3", "-c"}, Env: env, User: user,
	}})
	return err
}
