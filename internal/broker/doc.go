// Package broker keeps secrets, and bindings: what each secret may be used for.
//
// A secret never enters a sandbox. Callers give its bytes once and never get them
// back; a sandbox gets the name of a binding; the router adds the bytes to a request
// that the binding and the policy allow. Plaintext is in a Secret and nowhere else:
// it prints as [redacted] in every format, is kept encrypted, and is overwritten
// when it is no longer used.
package broker
