package client

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Backends reports what each backend enforces on the server's host, and which
// one "auto" takes.
func (c *Client) Backends(ctx context.Context) (backends []*v1.Backend, auto string, err error) {
	res, err := message(c.system.ListBackends(ctx, connect.NewRequest(&v1.ListBackendsRequest{})))
	return res.GetBackends(), res.GetAuto(), err
}

// Quota tells what the caller's tenant may have and has.
func (c *Client) Quota(ctx context.Context) (*v1.GetQuotaResponse, error) {
	return message(c.system.GetQuota(ctx, connect.NewRequest(&v1.GetQuotaRequest{})))
}

// Prewarm has count sandboxes like sb made ready; nil: like one with the defaults. It
// does not wait for them.
func (c *Client) Prewarm(ctx context.Context, count int, sb *v1.CreateSandboxRequest) error {
	_, err := message(c.system.PrewarmPool(ctx, connect.NewRequest(&v1.PrewarmPoolRequest{Count: int32(count), Sandbox: sb})))
	return err
}

// DrainPool ends the sandboxes that are ready, and returns how many those were.
func (c *Client) DrainPool(ctx context.Context) (int, error) {
	r, err := message(c.system.DrainPool(ctx, connect.NewRequest(&v1.DrainPoolRequest{})))
	return int(r.GetEnded()), err
}

// Pool tells which sandboxes the server keeps ready.
func (c *Client) Pool(ctx context.Context) (*v1.GetPoolResponse, error) {
	return message(c.system.GetPool(ctx, connect.NewRequest(&v1.GetPoolRequest{})))
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

// TemplateOptions says what to make a template of: an Image, an Archive, or
// without both the pack called Name.
type TemplateOptions struct {
	// Name may be empty for an image; it is derived then.
	Name string
	// Image is REPOSITORY:TAG, resolved by the server now, or REPOSITORY@sha256:….
	Image string
	// Archive is the tar file of a root file system, plain or packed by gzip or
	// zstd, or an image as docker save or an OCI layout has it. It is uploaded
	// first.
	Archive io.Reader
	// Pack is what to make it of where Name is one of your own: python, node, shell.
	Pack string
	// Kernel is a vmlinux or bzImage that its machines boot, beside any of the above;
	// Rootfs a squashfs, erofs or ext4 image in place of them, which Languages says
	// what can run in. They are uploaded first. Both take the scope template:boot, and
	// the backend microvm. With Rootfs, Name may be empty.
	Kernel, Rootfs io.Reader
	// KernelImagePath and RootfsImagePath are the same as files of the server's, below
	// its image_dirs.
	KernelImagePath, RootfsImagePath string
	Languages                        []string
}

// BuildTemplate builds the pack called name; see BuildTemplateFrom.
func (c *Client) BuildTemplate(ctx context.Context, name string, progress func(*v1.BuildProgress)) (*v1.Template, error) {
	return c.BuildTemplateFrom(ctx, TemplateOptions{Name: name}, progress)
}

// BuildTemplateFrom builds a template and calls progress, if not nil, as it
// goes. It takes up to minutes; ending ctx ends the build. An image that has not
// changed since it was built is not fetched again. Errors: KindNotFound for an
// unknown name or image, KindDenied and KindTooLarge for an image that must not
// be used, KindUnsupported for one of another platform, KindUnavailable where it
// cannot be built.
func (c *Client) BuildTemplateFrom(ctx context.Context, o TemplateOptions, progress func(*v1.BuildProgress)) (*v1.Template, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req := &v1.BuildTemplateRequest{Name: o.Name, Image: o.Image, Pack: o.Pack, LanguagePacks: o.Languages,
		KernelImagePath: o.KernelImagePath, RootfsImagePath: o.RootfsImagePath}
	for _, u := range []struct {
		from io.Reader
		id   *string
	}{{o.Archive, &req.Upload}, {o.Kernel, &req.KernelUpload}, {o.Rootfs, &req.RootfsUpload}} {
		if u.from == nil {
			continue
		}
		up, err := c.uploadArchive(ctx, u.from)
		if err != nil {
			return nil, err
		}
		*u.id = up.GetId()
	}
	st, err := c.system.BuildTemplate(ctx, connect.NewRequest(req))
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
		return nil, sandbox.Errorf("template build", sandbox.KindUnavailable, "the server ended the stream before the build did").WithID(o.Name)
	}
	return built, nil
}

// uploadArchive sends an archive. It streams.
func (c *Client) uploadArchive(ctx context.Context, r io.Reader) (*v1.UploadArchiveResponse, error) {
	res, err := c.raw(ctx, http.MethodPut, "/v1/templates/uploads", nil, r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, unreachable(err)
	}
	up := new(v1.UploadArchiveResponse)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(answer, up); err != nil {
		return nil, sandbox.Errorf("upload", sandbox.KindProtocol, "the server's answer cannot be read: %w", err)
	}
	return up, nil
}

// CollectOptions bounds what CollectTemplates keeps; nil takes the server's
// defaults.
type CollectOptions struct {
	Unused, LayerAge *time.Duration
	LayerBytes       *int64
}

// CollectTemplates removes templates no name refers to and layers nothing
// needs. What is in use stays.
func (c *Client) CollectTemplates(ctx context.Context, o CollectOptions) (*v1.CollectTemplatesResponse, error) {
	req := &v1.CollectTemplatesRequest{LayerBytes: o.LayerBytes}
	if o.Unused != nil {
		ms := o.Unused.Milliseconds()
		req.UnusedMs = &ms
	}
	if o.LayerAge != nil {
		ms := o.LayerAge.Milliseconds()
		req.LayerAgeMs = &ms
	}
	return message(c.system.CollectTemplates(ctx, connect.NewRequest(req)))
}

// RemoveTemplate removes a built template. Errors: KindNotFound, KindConflict
// while a sandbox uses it.
func (c *Client) RemoveTemplate(ctx context.Context, name string) error {
	_, err := c.system.RemoveTemplate(ctx, connect.NewRequest(&v1.RemoveTemplateRequest{Name: name}))
	return err
}

// NewKey says what key to make.
type NewKey struct {
	Name string        // for people
	Role string        // owner, admin, developer (the default) or viewer
	TTL  time.Duration // 0: it never expires
	E2B  bool          // spell it as E2B's SDKs demand
}

// CreateKey makes an API key. The secret is in this answer and nowhere else.
// Errors: KindDenied for a role above the caller's.
func (c *Client) CreateKey(ctx context.Context, k NewKey) (*v1.CreateKeyResponse, error) {
	return message(c.keys.CreateKey(ctx, connect.NewRequest(&v1.CreateKeyRequest{Name: k.Name, Role: k.Role, TtlMs: k.TTL.Milliseconds(), E2B: k.E2B})))
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
