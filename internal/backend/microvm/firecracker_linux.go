package microvm

import (
	"context"
	"errors"
	"net"

	"github.com/firebreak-dev/firebreak/sandbox"
)

type firecracker struct{}

func (f *firecracker) prepare(m vm) error              { return nil }
func (f *firecracker) command(m vm) (string, []string) { return "", nil }
func (f *firecracker) begin(context.Context, vm) error { return nil }
func (f *firecracker) dial(ctx context.Context, dir string) (net.Conn, error) {
	return nil, errNoChannel
}
func (f *firecracker) ended(ctx context.Context, dir string) (ending, error) {
	return ending{}, errors.New("x")
}
func (f *firecracker) objects(dir string) []sandbox.Object              { return nil }
func (b *Backend) findFirecracker(ctx context.Context, p *probed) error { return errors.New("x") }
