package guest

import "context"

// StandDown ends the interpreter that waits, if any, so that it is in no image of the
// sandbox: whatever is made of one would begin with the same random numbers. The next
// host that attaches, to this guest or to one that was made of it, has it kept again.
// With an agent that keeps none it does nothing. Errors: the session's.
func (s *Session) StandDown(ctx context.Context) error {
	if !s.can(CapabilityStandDown) {
		return nil
	}
	_, err := s.do(ctx, OpStandDown, Call{})
	return err
}

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
