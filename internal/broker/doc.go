// Package broker keeps secrets, and bindings: what each secret may be used for.
//
//	b := broker.New(filepath.Join(data, "secrets"), find)  // find reads what the store has
//	sealed, err := b.Seal("acme", "openai", secret)        // what the store may keep
//	s, err := b.Get(ctx, "acme", "openai")                 // the plaintext, for one use
//	defer s.Destroy()
//	s.Use(func(plain []byte) { … })
//
// A secret never enters a sandbox. Callers give its bytes once and never get them
// back; a sandbox gets the name of a binding; the router adds the bytes to a request
// that the binding and the policy allow. Plaintext is in a Secret and nowhere else:
// it prints as [redacted] in every format, is kept encrypted, and is overwritten
// when it is no longer used.
//
// # At rest
//
// A secret is encrypted with age to the key in <dir>/key, which the first one makes.
// Its tenant and its name are in what is encrypted, so that one cannot be put in the
// place of another. What is sealed is age's own armored format: `age -d -i key` opens
// it. A key file may have several keys, one a line: the first seals, all open. That is
// how secrets of a restored database are opened: the key of the server they are from
// is added.
//
// # References
//
// Instead of its bytes a secret may be kept as where they are: env:NAME, a variable of
// the server, file:/PATH, a file that the server reads, or vault:MOUNT/PATH#FIELD, a
// field in a KV store of OpenBao or HashiCorp Vault. They are read anew on every
// use.
//
// # Errors
//
// All are *sandbox.Error, and none holds a byte of a secret.
package broker
