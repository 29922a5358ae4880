package service

import (
	"context"
	"io"
	"strconv"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/template"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ListTemplates lists what sandboxes may start from, and what could be built.
func (s *Service) ListTemplates(ctx context.Context, req *v1.ListTemplatesRequest) (*v1.ListTemplatesResponse, error) {
	if _, _, err := s.allow(ctx, "SystemService.ListTemplates"); err != nil {
		return nil, err
	}
	list, err := s.Templates.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &v1.ListTemplatesResponse{}
	built := map[string]bool{}
	for _, t := range list {
		built[t.Name] = true
		resp.Templates = append(resp.Templates, toTemplate(t))
	}
	for _, pack := range []string{template.Python, template.Node, template.Shell} {
		if !built[pack] {
			resp.Templates = append(resp.Templates, &v1.Template{Name: pack, State: "available", LanguagePacks: []string{pack},
				Description: "not built: firebreak template build " + pack})
		}
	}
	return resp, nil
}

func toTemplate(t template.Template) *v1.Template {
	out := &v1.Template{Name: t.Name, Digest: t.Digest, State: "built", SizeBytes: t.Size, LanguagePacks: t.Packs,
		CreatedAt: stamp(t.Created), Mutable: t.Root.Mutable, Description: text(t.Description), Env: texts(t.Env)}
	if c := t.Source; c != nil {
		out.Source = &v1.TemplateSource{Kind: c.Kind, Reference: text(c.Reference), Digest: c.Digest, ManifestDigest: c.Manifest}
	}
	if c := t.Image; c != nil {
		out.Image = &v1.ImageConfig{Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkDir: text(c.WorkDir), User: text(c.User), Labels: texts(c.Labels)}
	}
	if b := t.Boot; b != nil {
		out.Kernel, out.Rootfs = toBootFile(b.Kernel), toBootFile(b.Rootfs)
	}
	if t.Damaged != "" {
		out.State, out.Description = "damaged", t.Damaged
	}
	return out
}

func toBootFile(f *template.BootFile) *v1.BootFile {
	if f == nil {
		return nil
	}
	return &v1.BootFile{Digest: f.Digest, SizeBytes: f.Size, Format: f.Format, Release: f.Release}
}

// brings checks who has machines boot what he brings: it is the operator's to decide
// what a monitor reads, and what of the server's own files.
func (s *Service) brings(ctx context.Context, p auth.Principal, method string, req *v1.BuildTemplateRequest) error {
	if req.GetKernelUpload()+req.GetKernelImagePath()+req.GetRootfsUpload()+req.GetRootfsImagePath() == "" {
		return nil
	}
	_, err := auth.Require(ctx, auth.TemplateBoot)
	if err == nil && p.Tenant != sandbox.DefaultTenant {
		err = sandbox.Errorf(opTemplateBuild, sandbox.KindDenied, "what machines boot is the operator's to bring").WithHint("ask for a template")
	}
	if err != nil {
		s.Refused(ctx, Refusal{Method: method, Principal: p, Err: err})
	}
	return err
}

const opTemplateBuild = "template build"

// BuildTemplate builds a template; the last event holds it. The end of ctx, or
// an error from send, stops the build and leaves nothing of it.
func (s *Service) BuildTemplate(ctx context.Context, req *v1.BuildTemplateRequest, send func(*v1.BuildTemplateEvent) error) error {
	const method = "SystemService.BuildTemplate"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return err
	}
	if req.GetName() == "" && req.GetImage() == "" && req.GetRootfsUpload()+req.GetRootfsImagePath() == "" {
		return sandbox.Errorf(opTemplateBuild, sandbox.KindInvalid, "name is missing").WithHint("only an image and a root file system can do without")
	}
	if err := s.brings(ctx, p, method, req); err != nil {
		return err
	}
	built, err := s.Orchestrator.BeginBuild(p.Tenant)
	if err != nil {
		return err
	}
	defer built()
	if err := s.record(ctx, p, method, buildObject(req), sandbox.OutcomeAllowed, buildDetail(req)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var broken error
	t, err := s.Templates.Build(ctx, req.GetName(), template.BuildOptions{Image: req.GetImage(), Upload: req.GetUpload(), Pack: req.GetPack(), Owner: string(p.Tenant),
		Kernel:    template.Given{Upload: req.GetKernelUpload(), Path: req.GetKernelImagePath()},
		Rootfs:    template.Given{Upload: req.GetRootfsUpload(), Path: req.GetRootfsImagePath()},
		Languages: req.GetLanguagePacks(), Progress: func(g template.Progress) {
			if broken == nil {
				broken = send(&v1.BuildTemplateEvent{Event: &v1.BuildTemplateEvent_Progress{Progress: &v1.BuildProgress{
					Stage: string(g.Stage), Percent: int32(g.Percent), Text: text(g.Line)}}})
			}
			if broken != nil {
				cancel()
			}
		}})
	if broken != nil {
		err = broken
	}
	outcome, object, detail := sandbox.OutcomeDone, t.Name, map[string]string{"digest": t.Digest}
	if t.Source != nil {
		detail["source"], detail["source_digest"], detail["manifest"] = text(t.Source.Reference), t.Source.Digest, t.Source.Manifest
	}
	if b := t.Boot; b != nil && b.Kernel != nil {
		detail["kernel"] = b.Kernel.Digest
	}
	if b := t.Boot; b != nil && b.Rootfs != nil {
		detail["rootfs"] = b.Rootfs.Digest
	}
	if err != nil {
		outcome, object, detail = sandbox.OutcomeFailed, buildObject(req), nil
	}
	if e := s.record(context.WithoutCancel(ctx), p, method, object, outcome, detail); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return send(&v1.BuildTemplateEvent{Event: &v1.BuildTemplateEvent_Template{Template: toTemplate(t)}})
}

// RemoveTemplate removes a built template. Errors: KindNotFound; KindConflict
// while a sandbox uses it.
func (s *Service) RemoveTemplate(ctx context.Context, req *v1.RemoveTemplateRequest) (*v1.RemoveTemplateResponse, error) {
	const method = "SystemService.RemoveTemplate"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, req.GetName(), sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	if err := s.Templates.Remove(ctx, req.GetName()); err != nil {
		return nil, s.failed(ctx, p, method, req.GetName(), err)
	}
	return &v1.RemoveTemplateResponse{}, nil
}

// buildObject is what evidence of a build speaks of.
func buildObject(req *v1.BuildTemplateRequest) string {
	if req.GetName() != "" {
		return req.GetName()
	}
	return req.GetImage()
}

func buildDetail(req *v1.BuildTemplateRequest) map[string]string {
	detail := map[string]string{}
	for name, v := range map[string]string{"image": req.GetImage(), "upload": req.GetUpload(), "pack": req.GetPack(),
		"kernel_upload": req.GetKernelUpload(), "kernel_image_path": req.GetKernelImagePath(),
		"rootfs_upload": req.GetRootfsUpload(), "rootfs_image_path": req.GetRootfsImagePath()} {
		if v != "" {
			detail[name] = v
		}
	}
	return detail
}

// texts makes what an image says fit for every surface.
func texts(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[text(k)] = text(v)
	}
	return out
}

// UploadArchive stores r for a build by the same tenant. Errors: KindTooLarge,
// KindCapacity, KindNoSpace, those of r.
func (s *Service) UploadArchive(ctx context.Context, r io.Reader) (*v1.UploadArchiveResponse, error) {
	const method = "SystemService.UploadArchive"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, p, method, "", sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	id, size, err := s.Templates.Receive(ctx, string(p.Tenant), r)
	if err != nil {
		return nil, s.failed(ctx, p, method, "", err)
	}
	if err := s.record(ctx, p, method, id, sandbox.OutcomeDone, map[string]string{"bytes": strconv.FormatInt(size, 10)}); err != nil {
		return nil, err
	}
	return &v1.UploadArchiveResponse{Id: id, SizeBytes: size}, nil
}

// CollectTemplates removes what nothing refers to and nothing uses.
func (s *Service) CollectTemplates(ctx context.Context, req *v1.CollectTemplatesRequest) (*v1.CollectTemplatesResponse, error) {
	const method = "SystemService.CollectTemplates"
	_, p, err := s.allow(ctx, method)
	if err != nil {
		return nil, err
	}
	o := template.DefaultCollect
	if req.UnusedMs != nil {
		if o.Unused, err = millis("template gc", "unused_ms", req.GetUnusedMs()); err != nil {
			return nil, err
		}
	}
	if req.LayerAgeMs != nil {
		if o.Age, err = millis("template gc", "layer_age_ms", req.GetLayerAgeMs()); err != nil {
			return nil, err
		}
	}
	if req.LayerBytes != nil {
		o.Size = req.GetLayerBytes()
	}
	if err := s.record(ctx, p, method, "", sandbox.OutcomeAllowed, nil); err != nil {
		return nil, err
	}
	c, err := s.Templates.Collect(ctx, o)
	outcome := sandbox.OutcomeDone
	if err != nil {
		outcome = sandbox.OutcomeFailed
	}
	// Removed is removed, also where something else failed.
	if e := s.recordCollected(context.WithoutCancel(ctx), sandbox.Record{Tenant: p.Tenant, Principal: p.ID, Outcome: outcome}, c); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	return &v1.CollectTemplatesResponse{Templates: c.Templates, Layers: int32(c.Layers), Bytes: c.Bytes}, nil
}

// Collect is CollectTemplates by the server itself, which does so now and then.
// Only what it removed is evidence.
func (s *Service) Collect(ctx context.Context) error {
	c, err := s.Templates.Collect(ctx, template.DefaultCollect)
	if len(c.Templates) == 0 && c.Layers == 0 {
		return err
	}
	outcome := sandbox.OutcomeDone
	if err != nil {
		outcome = sandbox.OutcomeFailed
	}
	if e := s.recordCollected(context.WithoutCancel(ctx), sandbox.Record{Principal: "system", Outcome: outcome}, c); err == nil {
		err = e
	}
	return err
}

func (s *Service) recordCollected(ctx context.Context, r sandbox.Record, c template.Collected) error {
	r.Action = s.access["SystemService.CollectTemplates"].GetAction()
	r.Detail = map[string]string{"layers": strconv.Itoa(c.Layers), "bytes": strconv.FormatInt(c.Bytes, 10), "templates": strconv.Itoa(len(c.Templates))}
	for i, d := range c.Templates {
		if i == 50 { // the count says how many more
			break
		}
		r.Detail["template_"+strconv.Itoa(i)] = d
	}
	_, err := s.Recorder.Record(ctx, r)
	return sandbox.Wrap("record", "", err)
}
