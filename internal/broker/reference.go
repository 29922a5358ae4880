package broker

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"unicode"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Reference is where a secret is that is not kept here: env:NAME or file:/PATH, in
// the server's environment and file system, or vault:MOUNT/PATH#FIELD, in a store.
type Reference struct {
	variable, file string
	vault          vault
}

const maxReferencePath = 4095

var reVariable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// ParseReference reads a reference. Errors: KindInvalid. It looks at nothing.
func ParseReference(s string) (Reference, error) {
	if name, ok := strings.CutPrefix(s, "env:"); ok && reVariable.MatchString(name) {
		return Reference{variable: name}, nil
	}
	if path, ok := strings.CutPrefix(s, "file:"); ok && len(path) <= maxReferencePath && filepath.IsAbs(path) && filepath.Clean(path) == path &&
		path != "/" && strings.ToValidUTF8(path, "") == path && !strings.ContainsFunc(path, unicode.IsControl) {
		return Reference{file: path}, nil
	}
	if v, ok := parseVault(s); ok {
		return Reference{vault: v}, nil
	}
	return Reference{}, sandbox.Errorf("secret", sandbox.KindInvalid, "this is no reference to a secret").
		WithHint("write env:NAME or file:/PATH, a variable or a file of the server, or vault:MOUNT/PATH#FIELD; a path has no . or .., and a file's is absolute")
}

// String is the reference as it is written.
func (r Reference) String() string {
	switch {
	case r.variable != "":
		return "env:" + r.variable
	case r.vault != vault{}:
		return r.vault.String()
	}
	return "file:" + r.file
}

// resolve reads the secret.
func (r Reference) resolve(ctx context.Context, name string) (*Secret, error) {
	b, err := r.read(ctx)
	if err != nil {
		return nil, sandbox.Errorf("read secret", sandbox.KindUnavailable, "%s: %w", r, err).WithID(name).
			WithHint("it is read on the server, each time it is used")
	}
	b = trimLine(b)
	if err := CheckSecret(b); err != nil {
		clear(b)
		var e *sandbox.Error
		errors.As(err, &e)
		return nil, sandbox.Errorf("read secret", sandbox.KindUnavailable, "%s: %s", r, e.Message()).WithID(name).WithHint("%s", e.Hint)
	}
	return NewSecret(b), nil
}

func (r Reference) read(ctx context.Context) ([]byte, error) {
	if (r.vault != vault{}) {
		return r.vault.read(ctx)
	}
	if r.variable != "" {
		v, ok := os.LookupEnv(r.variable)
		if !ok {
			return nil, errors.New("the server has no such variable")
		}
		return []byte(v), nil
	}
	// To open a device does something, and a named pipe waits for whoever writes to it.
	fi, err := os.Stat(r.file)
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		return nil, unpath(err)
	}
	f, err := os.OpenFile(r.file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be another by now
	if err != nil {
		return nil, unpath(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSecret+3)) // a line's end, and one too many
	if err != nil {
		clear(b)
		return nil, unpath(err)
	}
	return b, nil
}

// unpath takes the path off an error that is told beside it.
func unpath(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
