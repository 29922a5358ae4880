package server

import (
	"fmt"
	"net/http"
	"time"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/service"
)

// register is the one table: a line here is a method on every surface. Paths,
// scopes and rules come from the proto.
func register(g *registry, api API) {
	unary(g, rpc.SandboxServiceCreateSandboxProcedure, api.CreateSandbox, created, once, deadline(5*time.Minute))
	unary(g, rpc.SandboxServiceGetSandboxProcedure, api.GetSandbox)
	unary(g, rpc.SandboxServiceGetMetricsProcedure, api.GetMetrics)
	unary(g, rpc.SandboxServiceListSandboxesProcedure, api.ListSandboxes)
	unary(g, rpc.SandboxServiceDestroySandboxProcedure, api.DestroySandbox, deadline(2*time.Minute), emptyOn("/sandboxes/{id}"))
	unary(g, rpc.SandboxServiceSetTimeoutProcedure, api.SetTimeout)
	unary(g, rpc.SandboxServiceUpdateNetworkProcedure, api.UpdateNetwork)
	unary(g, rpc.SnapshotServicePauseSandboxProcedure, api.PauseSandbox, deadline(5*time.Minute))
	unary(g, rpc.SnapshotServiceResumeSandboxProcedure, api.ResumeSandbox, deadline(5*time.Minute))
	unary(g, rpc.SnapshotServiceForkSandboxProcedure, api.ForkSandbox, created, once, deadline(10*time.Minute))
	unary(g, rpc.SnapshotServiceCreateSnapshotProcedure, api.CreateSnapshot, created, deadline(5*time.Minute))
	unary(g, rpc.SnapshotServiceListSnapshotsProcedure, api.ListSnapshots)
	unary(g, rpc.SnapshotServiceRemoveSnapshotProcedure, api.RemoveSnapshot)
	serverStream(g, rpc.SandboxServiceExecProcedure, api.Exec, aggregated(newExecAggregator, &v1.ExecResponse{}))
	serverStream(g, rpc.SandboxServiceWatchEventsProcedure, api.WatchEvents, follows)
	g.registerPorts(api)

	unary(g, rpc.ProcessServiceStartProcessProcedure, api.StartProcess, created)
	unary(g, rpc.ProcessServiceListProcessesProcedure, api.ListProcesses)
	unary(g, rpc.ProcessServiceGetProcessProcedure, api.GetProcess, deadline(11*time.Minute)) // wait_ms goes up to ten
	unary(g, rpc.ProcessServiceKillProcessProcedure, api.KillProcess)
	unary(g, rpc.ProcessServiceSignalProcessProcedure, api.SignalProcess)
	unary(g, rpc.ProcessServiceWriteStdinProcedure, api.WriteStdin)
	unary(g, rpc.ProcessServiceResizeProcessProcedure, api.ResizeProcess)
	serverStream(g, rpc.ProcessServiceStreamProcessProcedure, api.StreamProcess, follows)

	unary(g, rpc.ContextServiceCreateContextProcedure, api.CreateContext, created, deadline(2*time.Minute))
	unary(g, rpc.ContextServiceListContextsProcedure, api.ListContexts)
	unary(g, rpc.ContextServiceGetContextProcedure, api.GetContext)
	unary(g, rpc.ContextServiceDeleteContextProcedure, api.DeleteContext)
	serverStream(g, rpc.ContextServiceEvalProcedure, api.Eval, aggregated(newEvalAggregator, &v1.EvalResponse{}))
	unary(g, rpc.ContextServiceInterruptContextProcedure, api.InterruptContext)
	unary(g, rpc.ContextServiceRestartContextProcedure, api.RestartContext, deadline(2*time.Minute))

	g.registerFiles(api)
	unary(g, rpc.FileServiceStatFileProcedure, api.StatFile)
	unary(g, rpc.FileServiceListFilesProcedure, api.ListFiles)
	serverStream(g, rpc.FileServiceWatchFilesProcedure, api.WatchFiles, follows)
	unary(g, rpc.FileServiceCreateWatcherProcedure, api.CreateWatcher, created)
	unary(g, rpc.FileServiceGetWatcherEventsProcedure, api.GetWatcherEvents)
	unary(g, rpc.FileServiceRemoveWatcherProcedure, api.RemoveWatcher)
	unary(g, rpc.FileServiceSignFileProcedure, api.SignFile)
	unary(g, rpc.FileServiceMakeDirectoryProcedure, api.MakeDirectory, created)
	unary(g, rpc.FileServiceMoveFileProcedure, api.MoveFile)
	unary(g, rpc.FileServiceRemoveFileProcedure, api.RemoveFile)

	unary(g, rpc.RunServiceCreateRunProcedure, api.CreateRun, created, once, deadline(5*time.Minute))
	unary(g, rpc.RunServiceStartRunProcedure, api.StartRun)
	unary(g, rpc.RunServiceGetRunProcedure, api.GetRun, deadline(11*time.Minute)) // wait_ms goes up to ten
	unary(g, rpc.RunServiceCancelRunProcedure, api.CancelRun, deadline(2*time.Minute))
	serverStream(g, rpc.RunServiceWatchRunProcedure, api.WatchRun, follows)

	unary(g, rpc.SystemServiceListBackendsProcedure, api.ListBackends)
	unary(g, rpc.SystemServiceListTemplatesProcedure, api.ListTemplates)
	serverStream(g, rpc.SystemServiceBuildTemplateProcedure, api.BuildTemplate, created, aggregated(newBuildAggregator, &v1.Template{}))
	g.registerUpload(api)
	unary(g, rpc.SystemServiceRemoveTemplateProcedure, api.RemoveTemplate)
	unary(g, rpc.SystemServiceGetQuotaProcedure, api.GetQuota)
	unary(g, rpc.SystemServiceGetPoolProcedure, api.GetPool)
	unary(g, rpc.SystemServicePrewarmPoolProcedure, api.PrewarmPool)
	unary(g, rpc.SystemServiceDrainPoolProcedure, api.DrainPool)
	unary(g, rpc.SystemServiceCollectTemplatesProcedure, api.CollectTemplates, deadline(10*time.Minute))
	unary(g, rpc.SystemServiceGetVersionProcedure, api.GetVersion)

	unary(g, rpc.PolicyServiceListPoliciesProcedure, api.ListPolicies)
	unary(g, rpc.PolicyServiceGetPolicyProcedure, api.GetPolicy)
	unary(g, rpc.PolicyServiceSetPolicyProcedure, api.SetPolicy)
	unary(g, rpc.PolicyServiceRemovePolicyProcedure, api.RemovePolicy)

	unary(g, rpc.SecretServiceSetSecretProcedure, api.SetSecret)
	unary(g, rpc.SecretServiceListSecretsProcedure, api.ListSecrets)
	unary(g, rpc.SecretServiceRemoveSecretProcedure, api.RemoveSecret)
	unary(g, rpc.SecretServiceAddBindingProcedure, api.AddBinding)
	unary(g, rpc.SecretServiceListBindingsProcedure, api.ListBindings)
	unary(g, rpc.SecretServiceGetBindingProcedure, api.GetBinding)
	unary(g, rpc.SecretServiceRemoveBindingProcedure, api.RemoveBinding)

	unary(g, rpc.KeyServiceCreateKeyProcedure, api.CreateKey, created)
	unary(g, rpc.KeyServiceListKeysProcedure, api.ListKeys)
	unary(g, rpc.KeyServiceDeleteKeyProcedure, api.DeleteKey)

	unary(g, rpc.AuditServiceGetCheckpointProcedure, api.GetCheckpoint, plainText(func(m proto.Message) string { return m.(*v1.Checkpoint).GetNote() }))
	unary(g, rpc.AuditServiceListEntriesProcedure, api.ListEntries)
	serverStream(g, rpc.AuditServiceWatchEntriesProcedure, api.WatchEntries, follows)
	unary(g, rpc.AuditServiceGetProofProcedure, api.GetProof)
	unary(g, rpc.AuditServiceExportEvidenceProcedure, api.ExportEvidence, deadline(5*time.Minute),
		plainText(func(m proto.Message) string { return m.(*v1.ExportEvidenceResponse).GetFile() }))
}

// registry collects the operations while a Server is made. Its first error
// stops that.
type registry struct {
	rules      *service.Rules
	procedures map[string]*operation
	order      []*operation
	router     router
	err        error
}

func newRegistry() (*registry, error) {
	rules, err := service.NewRules()
	if err != nil {
		return nil, err
	}
	return &registry{rules: rules, procedures: map[string]*operation{}}, nil
}

// build registers everything and checks that the table and the proto agree.
func (g *registry) build(api API) error {
	register(g, api)
	g.finish()
	return g.err
}

func (g *registry) failf(format string, args ...any) {
	if g.err == nil {
		g.err = fmt.Errorf("register: "+format, args...)
	}
}

// add makes the operation of a procedure from its descriptor.
func (g *registry) add(procedure string, opts []option) *operation {
	o := &operation{procedure: procedure, success: http.StatusOK}
	md, err := findMethod(procedure)
	if err != nil {
		g.failf("%v", err)
		// A method to go on with, so that the caller need not care; the error
		// keeps the Server from being made.
		md = v1.File_firebreak_v1_sandbox_proto.Services().Get(0).Methods().Get(0)
	}
	o.method, o.name = md, string(md.Name())
	access, _ := proto.GetExtension(md.Options(), v1.E_Access).(*v1.Access)
	o.scope = auth.Scope(access.GetScope())
	if !knownScopes[o.scope] {
		g.failf("%s declares no scope that exists: %q", md.FullName(), access.GetScope())
	}
	if g.procedures[procedure] != nil {
		g.failf("%s is registered twice", procedure)
	}
	for _, opt := range opts {
		opt(o)
	}
	g.procedures[procedure] = o
	g.order = append(g.order, o)
	return o
}

var knownScopes = func() map[auth.Scope]bool {
	known := map[auth.Scope]bool{}
	for _, s := range auth.Scopes() {
		known[s] = true
	}
	return known
}()

// findMethod resolves "/package.Service/Method".
func findMethod(procedure string) (protoreflect.MethodDescriptor, error) {
	name := protoreflect.FullName("")
	if len(procedure) > 0 {
		b := []byte(procedure[1:])
		for i := range b {
			if b[i] == '/' {
				b[i] = '.'
			}
		}
		name = protoreflect.FullName(b)
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, fmt.Errorf("no method %s in the proto", procedure)
	}
	md, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is not a method", procedure)
	}
	return md, nil
}

// finish enters the REST routes and refuses a proto the table does not cover.
func (g *registry) finish() {
	for _, o := range g.order {
		rule, _ := proto.GetExtension(o.method.Options(), annotations.E_Http).(*annotations.HttpRule)
		switch {
		case rule == nil && !o.raw:
			g.failf("%s has neither google.api.http nor a raw route", o.method.FullName())
		case rule != nil && o.raw:
			g.failf("%s has both google.api.http and a raw route", o.method.FullName())
		case rule != nil:
			g.bind(o, rule)
			for _, more := range rule.AdditionalBindings {
				g.bind(o, more)
			}
		}
		if o.emptyOn != "" && !hasTemplate(o, o.emptyOn) {
			g.failf("%s has no route %s", o.name, o.emptyOn)
		}
	}
	forEachMethod(func(md protoreflect.MethodDescriptor) {
		if g.procedures[procedureOf(md)] == nil {
			g.failf("%s is in the proto and not in the table", md.FullName())
		}
	})
}

func hasTemplate(o *operation, template string) bool {
	for _, r := range o.routes {
		if r.template == template {
			return true
		}
	}
	return false
}

func procedureOf(md protoreflect.MethodDescriptor) string {
	return "/" + string(md.Parent().FullName()) + "/" + string(md.Name())
}

// forEachMethod calls f for each method of our package, in no fixed order.
func forEachMethod(f func(protoreflect.MethodDescriptor)) {
	protoregistry.GlobalFiles.RangeFilesByPackage("firebreak.v1", func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			for j, ms := 0, fd.Services().Get(i).Methods(); j < ms.Len(); j++ {
				f(ms.Get(j))
			}
		}
		return true
	})
}

// bind enters one google.api.http rule. Only the simple subset exists here:
// paths of literals and {field}, all of the body or none.
func (g *registry) bind(o *operation, rule *annotations.HttpRule) {
	r := &route{op: o, serve: o.rest}
	switch p := rule.Pattern.(type) {
	case *annotations.HttpRule_Get:
		r.method, r.template = http.MethodGet, p.Get
	case *annotations.HttpRule_Post:
		r.method, r.template = http.MethodPost, p.Post
	case *annotations.HttpRule_Put:
		r.method, r.template = http.MethodPut, p.Put
	case *annotations.HttpRule_Delete:
		r.method, r.template = http.MethodDelete, p.Delete
	case *annotations.HttpRule_Patch:
		r.method, r.template = http.MethodPatch, p.Patch
	default:
		g.failf("%s: custom HTTP methods are not supported", o.method.FullName())
		return
	}
	hasBody := r.method == http.MethodPost || r.method == http.MethodPut || r.method == http.MethodPatch
	if hasBody != (rule.Body == "*") || !hasBody && rule.Body != "" || rule.ResponseBody != "" {
		g.failf("%s: %s needs body %q and no response_body", o.method.FullName(), r.method, map[bool]string{true: "*"}[hasBody])
	}
	g.enter(o, r)
}

// enter adds a route to the router and checks its parameters against the
// request message.
func (g *registry) enter(o *operation, r *route) {
	out := o.method.Output()
	r.noBody = r.template == o.emptyOn || r.method == http.MethodDelete && out.Fields().Len() == 0
	if err := g.router.add(r); err != nil {
		g.failf("%s: %v", o.method.FullName(), err)
		return
	}
	for _, name := range r.params {
		fd := o.method.Input().Fields().ByName(protoreflect.Name(name))
		if fd == nil || fd.IsList() || fd.IsMap() || fd.Message() != nil {
			g.failf("%s: {%s} is not a scalar field of %s", r.template, name, o.method.Input().Name())
		}
	}
	o.routes = append(o.routes, r)
}

// rawRoute enters a route whose bodies are bytes, for an operation without
// google.api.http.
func (g *registry) rawRoute(o *operation, method, template string, serve func(*exchange) error) {
	o.raw = true
	g.enter(o, &route{method: method, template: template, op: o, serve: serve})
}

// builtin enters a route that is not an operation of the API.
func (g *registry) builtin(template string, o *operation, serve func(*exchange) error) {
	if err := g.router.add(&route{method: http.MethodGet, template: template, op: o, serve: serve}); err != nil {
		g.failf("%v", err)
	}
}
