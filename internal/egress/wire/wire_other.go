//go:build !linux

package wire

import "github.com/firebreak-dev/firebreak/sandbox"

func unsupported(op string) error {
	return sandbox.Errorf(op, sandbox.KindUnsupported, "wires need Linux").
		WithHint("run the server on Linux; this machine can be its client")
}

// Open makes a wire. Elsewhere than on Linux it does not.
func Open(dir, id string) (*Link, error) { return nil, unsupported("open wire") }

// Reopen opens the far end of a wire that is there.
func Reopen(dir, id string) (*Link, error) { return nil, unsupported("reopen wire") }

// Remove removes a wire: there is none.
func Remove(dir, id string) ([]sandbox.Object, error) { return nil, nil }

// List names the wires: there is none.
func List(dir string) ([]string, error) { return nil, nil }

// Probe says why wires cannot be made here.
func Probe() error { return unsupported("probe wires") }
