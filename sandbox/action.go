package sandbox

// Action is one kind of thing that leaves an audit record. The set is closed:
// what is not in Actions is not recorded, and what is recorded is in it.
type Action struct {
	Name string // of Record.Action
	// Class is that of the record before the act. What tells of its outcome
	// afterwards is Flow, and Gate where Then says so.
	Class  Class
	Then   Class
	When   string // what leaves it
	Object string // what Record.Object names
	Digest string // what Record.Digest covers
	Detail string // what Record.Detail holds
	// Later marks names that are reserved for what is not built yet.
	Later bool
}

// Actions lists all actions, by subject. The table in
// docs/guides/audit-records.md is made of it.
func Actions() []Action {
	const path = "path in the sandbox"
	return []Action{
		{Name: "sandbox.create", Then: Flow, When: "before a boot; done or failed after it", Object: "name", Digest: "its policy, as in sandbox.network", Detail: "backend, isolation, template, limits, network, mode, documents, policies, transforms, bindings, tier, accept_weaker, run, snapshot, forked_from, git_commit, min_isolation, demanded_by; afterwards enforced, took or error"},
		{Name: "sandbox.timeout", When: "before the end is moved", Object: "new time to live"},
		{Name: "sandbox.network", Then: Flow, When: "before a sandbox's policy is replaced; done or failed after it", Digest: "the policy: the SHA-256 of its documents, in hex, one a line, and its transforms as they are kept", Detail: "mode, documents, policies, transforms, min_isolation, demanded_by; afterwards closed or error"},
		{Name: "sandbox.destroy", When: "before a teardown, whatever the cause; Reason says it", Detail: "detail"},
		{Name: "sandbox.receipt", When: "after a teardown", Digest: "the receipt, canonical JSON", Detail: "objects, clean"},
		{Name: "sandbox.orphan", When: "before what a dead process left is destroyed"},
		{Name: "sandbox.lost", When: "a restored server does not have it", Detail: "detail"},

		{Name: "process.exec", When: "before a program starts", Object: "program or language pack", Digest: "the code; of a command each argument with a NUL behind it", Detail: "args, stdin (SHA-256), stdin_bytes, timeout, user, background, tag, terminal"},
		{Name: "process.signal", When: "before a signal is sent", Object: "pid in the sandbox", Detail: "signal"},
		{Name: "process.resize", When: "before a terminal's size is changed", Object: "pid in the sandbox", Detail: "terminal"},
		{Name: "process.stdin", When: "before a piece of standard input is taken", Object: "pid in the sandbox", Digest: "the piece; none for what is typed at a terminal", Detail: "bytes, end"},
		{Name: "process.exit", Class: Flow, When: "after a program has ended by itself", Detail: "exit_code, duration"},
		{Name: "process.kill", When: "after a limit or an end killed a program; Reason says which", Detail: "exit_code, duration, detail"},

		{Name: "context.create", When: "before an interpreter that stays warm starts", Object: "context id", Detail: "language, cwd, user, env (names), idle_timeout, max_life"},
		{Name: "context.eval", Then: Flow, When: "before a turn; done after it, Reason says how it ended", Object: "context id", Digest: "the code", Detail: "bytes, timeout, env (how many); afterwards turn, error, duration"},
		{Name: "context.interrupt", When: "before a turn is interrupted", Object: "context id"},
		{Name: "context.restart", When: "before an interpreter is ended to be started anew", Object: "context id"},
		{Name: "context.delete", When: "before a context is ended and forgotten", Object: "context id"},

		{Name: "file.read", Class: Flow, When: "before a file is opened, or a directory is read as an archive", Object: path, Detail: "offset, length; or archive"},
		{Name: "file.stat", Class: Flow, When: "before a file is described", Object: path},
		{Name: "file.list", Class: Flow, When: "before a directory is listed", Object: path},
		{Name: "file.sign", When: "before a URL for a file is handed out; who uses it is signed:PRINCIPAL in the records of that", Object: path, Detail: "operation, expires, user"},
		{Name: "file.watch", Class: Flow, When: "before a directory is watched, and when a watcher is removed", Object: path, Detail: "recursive, watcher; or end"},
		{Name: "file.write", Then: Gate, When: "before a file is written; of a large one, and of an archive, also after, since its digest is known only then", Object: path, Digest: "the content", Detail: "bytes; of an archive also archive, files, directories, links"},
		{Name: "file.mkdir", Then: Flow, When: "before a directory is made", Object: path},
		{Name: "file.move", Then: Flow, When: "before a file is moved", Object: path, Detail: "to"},
		{Name: "file.remove", Then: Flow, When: "before a file or tree is removed", Object: path},

		{Name: "port.open", Then: Flow, When: "before a connection to a server in a sandbox is opened; failed after it", Object: "port"},

		{Name: "egress.decide", Class: Flow, Then: Flow, When: "before what a sandbox wants to reach is let pass or refused; done at the end of a connection; many alike are counted", Object: "host and port; of a name that is asked for the name", Detail: "kind, decision, rule, reason, address, protocol, count; afterwards upload, download"},

		{Name: "egress.request", Class: Flow, Then: Flow, When: "before a request on a connection that is read is sent on, or is refused; many alike are counted", Object: "host and port", Detail: "decision, method, rule, reason, protocol, count"},

		{Name: "binding.invoked", Then: Flow, When: "before a request through a binding is sent on; durable is a sandbox's first through each", Object: "binding", Detail: "method, host, count"},
		{Name: "binding.denied", Class: Flow, Then: Flow, When: "before a request through a binding is refused; many alike are counted", Object: "binding", Detail: "method, host, reason, count"},

		{Name: "run.create", When: "before a run is accepted", Object: "run id"},
		{Name: "run.start", When: "before a run that awaited inputs begins", Object: "run id"},
		{Name: "run.cancel", When: "before a run is ended early", Object: "run id"},
		{Name: "run.artifact", Class: Flow, When: "after an artifact was collected", Object: path, Digest: "the content", Detail: "run, bytes"},
		{Name: "artifact.read", Class: Flow, When: "before a collected artifact is opened", Object: "path in the run", Detail: "run, sandbox"},

		{Name: "template.build", Then: Gate, When: "before and after a build", Object: "template or image", Detail: "image, upload; afterwards digest, source, source_digest, manifest"},
		{Name: "template.upload", Then: Gate, When: "before and after an archive is taken in", Object: "upload id", Detail: "bytes"},
		{Name: "template.remove", When: "before a template is removed", Object: "template"},
		{Name: "template.collect", Then: Gate, When: "before and after what nothing uses is removed; by the server itself only after", Detail: "templates, layers, bytes, template_N"},

		{Name: "pool.prewarm", When: "before sandboxes are made that somebody wants ready", Object: "template", Detail: "count"},
		{Name: "pool.drain", When: "before what is ready for a tenant is ended"},

		{Name: "policy.set", Then: Flow, When: "before a policy is stored under a name", Object: "name", Digest: "its text"},
		{Name: "policy.remove", Then: Flow, When: "before a policy is forgotten", Object: "name"},

		{Name: "secret.set", Then: Flow, When: "before a secret is stored under a name; of its value nothing is recorded, no digest either", Object: "name", Detail: "reference"},
		{Name: "secret.remove", Then: Flow, When: "before a secret is forgotten", Object: "name"},
		{Name: "binding.set", Then: Flow, When: "before a binding is stored under a name", Object: "name", Digest: "the binding, JSON as it is stored", Detail: "secret (its name), host, port, plain, methods, path, as, field, placeholder, git, push, tier"},
		{Name: "binding.remove", Then: Flow, When: "before a binding is forgotten", Object: "name"},

		{Name: "key.create", Then: Gate, When: "before and after a key is made", Object: "name, then key id", Detail: "role"},
		{Name: "key.delete", When: "before a key is revoked", Object: "key id"},
		{Name: "auth.failure", Class: Flow, When: "a call without a valid credential; a flood is counted", Object: "source address, or uid of the local socket", Detail: "method, key (its id), why; or count, since, sources"},
		{Name: "api.refuse", Class: Flow, When: "a call refused for want of a scope, of a method without an action of its own; a flood is counted", Object: "method", Detail: "why, id; or count, since"},

		{Name: "daemon.start", When: "before a server recovers and serves", Detail: "version, revision, config (SHA-256), pid, backends"},
		{Name: "daemon.stop", When: "after a server's last act", Detail: "why"},
		{Name: "quota.set", When: "at each start of a server, since quotas are set by its configuration", Object: "tenant; none: the defaults", Detail: "every resource and its limit"},
		{Name: "backup.restore", When: "after a data directory was made of a backup", Digest: "the head of the log in the backup", Detail: "made, live"},
		{Name: "audit.repair", When: "after an incomplete record at the end of the log was set aside", Object: "file it is kept in", Digest: "that file", Detail: "bytes"},
		{Name: "audit.expire", When: "before old records are removed", Object: "directory of a run's log; none: this log", Digest: "the head of what is removed", Detail: "through, segments"},
		{Name: "audit.key", When: "a log of an earlier version is signed for the first time, or with another key than before", Digest: "the head of what was there", Detail: "key, through, from"},
		{Name: "audit.rotate", When: "the signing key is replaced", Detail: "from, to"},
		{Name: "audit.gap", When: "an operator acknowledged that records are missing", Detail: "origin, signed and found sizes and roots"},
		{Name: "audit.witness", When: "a witness contradicts the log: it has seen more of it, or another past", Object: "the witness", Detail: "size, seen"},

		{Name: "sandbox.pause", Then: Flow, When: "before a sandbox is saved to be paused; done or failed after it. The receipt of its boundary is between", Digest: "what was saved, afterwards", Detail: "afterwards bytes, took or error"},
		{Name: "sandbox.resume", Then: Flow, When: "before a paused sandbox runs again, as another instance; done or failed after it", Digest: "what it is restored from", Detail: "bytes, why (access: somebody used it); afterwards paused, took or error"},
		{Name: "snapshot.create", Then: Flow, When: "before a snapshot is taken; done or failed after it", Object: "snapshot id", Digest: "what was saved, afterwards", Detail: "name; afterwards bytes, took or error"},
		{Name: "snapshot.remove", When: "before a snapshot is removed; Reason timeout: its time was over", Object: "snapshot id", Detail: "name"},
		{Name: "sandbox.fork", Then: Flow, When: "before a sandbox is saved to be forked; done after the last child, whose creates are on record by themselves, or failed", Digest: "what was saved, afterwards", Detail: "count; afterwards children (ids; more of them in children_N), failed (how many), bytes, took or error"},
	}
}
