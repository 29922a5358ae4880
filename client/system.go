package client

import (
	"context"
	"fmt"
	"io/fs"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Backends reports what each backend enforces on the server's host, and which
// one "auto" takes.
func (c *Client) Backends(ctx context.Context) (backends []*v1.Backend, auto string, err error) {
	res, err := message(c.system.ListBackends(ctx, connect.NewRequest(&v1.ListBackendsRequest{})))
	return res.GetBackends(), res.GetAuto(), err
}

// Version says what the server runs.
func (c *Client) Version(ctx context.Context) (*v1.GetVersionResponse, error) {
	return message(c.system.GetVersion(ctx, connect.NewRequest(&v1.GetVersionRequest{})))
}

// Templates lists what sandboxes can start from, built or not.
func (c *Client) Templates(ctx context.Context) ([]*v1.Template, error) {
	res, err := message(c.system.ListTemplates(ctx, connect.NewRequest(&v1.ListTemplatesRequest{})))
	return res.GetTemplates(), err
}

// BuildTemplate builds a template and calls progress, if not nil, as it goes.
// It takes minutes; ending ctx ends the build. Errors: KindNotFound for an
// unknown name, KindUnsupported where it cannot be built.
func (c *Client) BuildTemplate(ctx context.Context, name string, progress func(*v1.BuildProgress)) (*v1.Template, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := c.system.BuildTemplate(ctx, connect.NewRequest(&v1.BuildTemplateRequest{Name: name}))
	if err != nil {
		return nil, fromConnect(ctx, err)
	}
	defer func() {
		cancel()
		_ = st.Close()
	}()
	var built *v1.Template
	for st.Receive() {
		switch e := st.Msg().GetEvent().(type) {
		case *v1.BuildTemplateEvent_Progress:
			if progress != nil {
				progress(e.Progress)
			}
		case *v1.BuildTemplateEvent_Template:
			built = e.Template
		}
	}
	if err := fromConnect(ctx, st.Err()); err != nil {
		return nil, err
	}
	if built == nil {
		return nil, sandbox.Errorf("template build", sandbox.KindUnavailable, "the server ended the stream before the build did").WithID(name)
	}
	return built, nil
}

// RemoveTemplate removes a built template. Errors: KindNotFound, KindConflict
// while a sandbox uses it.
func (c *Client) RemoveTemplate(ctx context.Context, name string) error {
	_, err := c.system.RemoveTemplate(ctx, connect.NewRequest(&v1.RemoveTemplateRequest{Name: name}))
	return err
}

// CreateKey makes an API key. The secret is in this answer and nowhere else.
// Role is owner, admin, developer or viewer; ttl zero never expires. Errors:
// KindDenied for a role above the caller's.
func (c *Client) CreateKey(ctx context.Context, name, role string, ttl time.Duration) (*v1.CreateKeyResponse, error) {
	return message(c.keys.CreateKey(ctx, connect.NewRequest(&v1.CreateKeyRequest{Name: name, Role: role, TtlMs: ttl.Milliseconds()})))
}

// Keys lists the tenant's API keys, without their secrets.
func (c *Client) Keys(ctx context.Context) ([]*v1.Key, error) {
	res, err := message(c.keys.ListKeys(ctx, connect.NewRequest(&v1.ListKeysRequest{})))
	return res.GetKeys(), err
}

// DeleteKey revokes a key at once. Errors: KindNotFound.
func (c *Client) DeleteKey(ctx context.Context, id string) error {
	_, err := c.keys.DeleteKey(ctx, connect.NewRequest(&v1.DeleteKeyRequest{Id: id}))
	return err
}

// octal prints permission bits as the wire wants them; zero is the default.
func octal(mode uint32) string {
	if mode == 0 {
		return ""
	}
	return fmt.Sprintf("%03o", mode&0o777)
}

func modeOf(mode uint32) fs.FileMode { return fs.FileMode(mode).Perm() }
