package broker

import (
	"crypto/hkdf"
	"crypto/sha256"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// derived is how long what Derive returns is, in bytes.
const derived = 32

// Derive returns 32 bytes that are this server's, differ by label, and are the same
// as long as the first key in its file is: what a server has to know again after a
// restart and nobody else may know, without another secret on the disk. They say
// nothing about the key, and the key's file makes them again, for whoever reads it.
// The caller overwrites them when they are not needed any more. Makes the key if there
// is none. Errors: those of Seal.
func (b *Broker) Derive(label string) ([]byte, error) {
	ids, err := b.sealers()
	if err != nil {
		return nil, err
	}
	key := []byte(ids[0].String())
	defer clear(key)
	out, err := hkdf.Key(sha256.New, key, nil, "firebreak derived 1\x00"+label, derived)
	if err != nil {
		return nil, sandbox.Wrap("derive", label, err)
	}
	return out, nil
}
