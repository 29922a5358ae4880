package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	rpc "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// withKey sends a token with every call.
type withKey struct {
	token string
	next  http.RoundTripper
}

func (k withKey) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+k.token)
	return k.next.RoundTrip(r)
}

// h2c is a client that speaks HTTP/2 without TLS, as gRPC does.
func h2c(t testing.TB, token string) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: withKey{token, tr}, Timeout: 20 * time.Second}
}

// surfaces are the protocols that one handler must speak alike.
func surfaces(t testing.TB) map[string]struct {
	client *http.Client
	opts   []connect.ClientOption
} {
	h1 := &http.Transport{}
	t.Cleanup(h1.CloseIdleConnections)
	plain := &http.Client{Transport: withKey{"all", h1}, Timeout: 20 * time.Second}
	return map[string]struct {
		client *http.Client
		opts   []connect.ClientOption
	}{
		"connect":      {plain, nil},
		"connect json": {plain, []connect.ClientOption{connect.WithProtoJSON()}},
		"connect h2":   {h2c(t, "all"), nil},
		"grpc":         {h2c(t, "all"), []connect.ClientOption{connect.WithGRPC()}},
		"grpc-web":     {plain, []connect.ClientOption{connect.WithGRPCWeb()}},
	}
}

func detailOf(t *testing.T, err error) *v1.ErrorDetail {
	t.Helper()
	var ce *connect.Error
	if !errors.As(err, &ce) {
		t.Fatalf("not a Connect error: %v", err)
	}
	for _, d := range ce.Details() {
		if v, err := d.Value(); err == nil {
			if e, ok := v.(*v1.ErrorDetail); ok {
				return e
			}
		}
	}
	t.Fatalf("no detail in %v", err)
	return nil
}

func TestRPC(t *testing.T) {
	f := &fake{create: failing}
	w := start(t, f)
	for name, c := range surfaces(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			sandboxes := rpc.NewSandboxServiceClient(c.client, "http://"+w.addr, c.opts...)
			files := rpc.NewFileServiceClient(c.client, "http://"+w.addr, c.opts...)

			res, err := sandboxes.GetSandbox(ctx, connect.NewRequest(&v1.GetSandboxRequest{Id: testID}))
			if err != nil || !proto.Equal(res.Msg, fullSandbox()) {
				t.Errorf("get: %v %v", res, err)
			}
			_, err = sandboxes.CreateSandbox(ctx, connect.NewRequest(&v1.CreateSandboxRequest{Name: "capacity"}))
			want := &v1.ErrorDetail{Kind: "capacity", Message: "because", Hint: "do this", Op: "create", Id: "x", RetryAfterMs: 1500}
			if d := detailOf(t, err); !proto.Equal(d, want) || connect.CodeOf(err) != connect.CodeResourceExhausted {
				t.Errorf("error: %v", d)
			}
			_, err = sandboxes.GetSandbox(ctx, connect.NewRequest(&v1.GetSandboxRequest{}))
			if d := detailOf(t, err); d.Kind != "invalid" || !strings.Contains(d.Message, "id") {
				t.Errorf("rules: %v", d)
			}
			req := &v1.GetSandboxRequest{Id: testID}
			req.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 999, protowire.VarintType), 1))
			if name != "connect json" { // which cannot express it
				_, err = sandboxes.GetSandbox(ctx, connect.NewRequest(req))
				if d := detailOf(t, err); d.Kind != "invalid" || !strings.Contains(d.Message, "does not know") {
					t.Errorf("unknown fields: %v", d)
				}
			}

			st, err := sandboxes.Exec(ctx, connect.NewRequest(&v1.ExecRequest{Id: testID, Code: proto.String("x")}))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for st.Receive() {
				m := st.Msg().ProtoReflect()
				got = append(got, string(m.WhichOneof(m.Descriptor().Oneofs().Get(0)).Name()))
			}
			if st.Err() != nil || strings.Join(got, " ") != "started stdout exit" {
				t.Errorf("exec: %v %v", got, st.Err())
			}
			st.Close()

			content := bytes.Repeat([]byte("0123456789abcdef"), 40_000)
			up := files.WriteFile(ctx)
			up.Send(&v1.WriteFileRequest{Id: testID, Path: "/f", Data: content[:10]})
			for part := range slices.Chunk(content[10:], 100_000) {
				if err := up.Send(&v1.WriteFileRequest{Data: part}); err != nil {
					t.Fatal(err)
				}
			}
			info, err := up.CloseAndReceive()
			if err != nil || info.Msg.Size != int64(len(content)) {
				t.Fatalf("write: %v %v", info, err)
			}
			down, err := files.ReadFile(ctx, connect.NewRequest(&v1.ReadFileRequest{Id: testID, Path: "/f", Offset: 5}))
			if err != nil {
				t.Fatal(err)
			}
			var back []byte
			for i := 0; down.Receive(); i++ {
				if (down.Msg().Info != nil) != (i == 0) {
					t.Errorf("info in chunk %d: %v", i, down.Msg().Info)
				}
				back = append(back, down.Msg().Data...)
			}
			if down.Err() != nil || !bytes.Equal(back, content[5:]) {
				t.Errorf("read: %d bytes, %v", len(back), down.Err())
			}
			down.Close()
			down, err = files.ReadFile(ctx, connect.NewRequest(&v1.ReadFileRequest{Id: testID, Path: "/missing"}))
			if err == nil {
				down.Receive()
				err = down.Err()
				down.Close()
			}
			if d := detailOf(t, err); d.Kind != "not_found" || d.Op != "read file" {
				t.Errorf("missing file: %v", d)
			}
		})
	}
}

// TestConnectStrict: the JSON codec of Connect refuses what REST refuses.
func TestConnectStrict(t *testing.T) {
	w := start(t, &fake{})
	a := w.do("POST", rpc.SandboxServiceGetSandboxProcedure, `{"id":"x","force":true}`, "Content-Type", "application/json")
	if a.status != 400 || !strings.Contains(a.body, "force") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.do("POST", rpc.SandboxServiceGetSandboxProcedure, `{}`, "Content-Type", "text/plain"); a.status != 415 {
		t.Errorf("content type: %d", a.status)
	}
}

// TestEveryMethodNeedsItsScope calls every method on every surface with every
// scope but its own, and without any.
func TestEveryMethodNeedsItsScope(t *testing.T) {
	w := start(t, &fake{})
	h1 := &http.Transport{}
	t.Cleanup(h1.CloseIdleConnections)
	methods := 0
	forEachMethod(func(md protoreflect.MethodDescriptor) {
		methods++
		w.srv.strangers.forget()
		o := w.srv.registry.procedures[procedureOf(md)]
		if o == nil {
			t.Fatalf("%s is not registered", md.FullName())
		}
		if len(o.routes) == 0 {
			t.Errorf("%s has no REST route", o.name)
		}
		for scope := range knownScopes {
			if scope == o.scope {
				continue
			}
			// Bodies are wrong on purpose: a method that decoded first would say so.
			c := connect.NewClient[v1.Artifact, v1.Artifact](&http.Client{Transport: withKey{string(scope), h1}}, "http://"+w.addr+procedureOf(md))
			var err error
			switch {
			case md.IsStreamingClient():
				_, err = c.CallClientStream(t.Context()).CloseAndReceive()
			case md.IsStreamingServer():
				st, e := c.CallServerStream(t.Context(), connect.NewRequest(&v1.Artifact{Path: "?"}))
				if err = e; err == nil {
					st.Receive()
					err = st.Err()
					st.Close()
				}
			default:
				_, err = c.CallUnary(t.Context(), connect.NewRequest(&v1.Artifact{Path: "?"}))
			}
			if d := detailOf(t, err); d.Kind != "denied" || connect.CodeOf(err) != connect.CodePermissionDenied {
				t.Errorf("%s with scope %s: %v", o.name, scope, err)
			}
		}
		for _, r := range o.routes {
			path := strings.NewReplacer("{id}", "x", "{name}", "x", "{path...}", "x").Replace(r.template)
			wrong := auth.SystemRead
			if o.scope == wrong {
				wrong = auth.Exec
			}
			w.do(r.method, path, "not JSON", "Authorization", "Bearer "+string(wrong)).want(t, 403, `"kind":"denied"`, string(o.scope))
			w.do(r.method, path, "not JSON", "Authorization", "").want(t, 401, `"kind":"unauthenticated"`)
		}
	})
	if methods < 20 {
		t.Errorf("only %d methods", methods)
	}
}

// TestTableMatchesProto: a Server with a hole in its table is not made.
func TestTableMatchesProto(t *testing.T) {
	g, err := newRegistry()
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{}
	unary(g, rpc.SandboxServiceGetSandboxProcedure, f.GetSandbox)
	g.finish()
	if g.err == nil || !strings.Contains(g.err.Error(), "not in the table") {
		t.Errorf("got %v", g.err)
	}
	g, _ = newRegistry()
	unary(g, rpc.SandboxServiceGetSandboxProcedure, f.GetSandbox)
	unary(g, rpc.SandboxServiceGetSandboxProcedure, f.GetSandbox)
	if g.err == nil || !strings.Contains(g.err.Error(), "twice") {
		t.Errorf("got %v", g.err)
	}
	if _, err := New(Config{API: f, Log: nil}); err == nil {
		t.Error("a server without authentication was made")
	}
}

// TestRefusedProto: what a proto must not contain keeps a Server from being made.
func TestRefusedProto(t *testing.T) {
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("firebreak/test.proto"), Package: proto.String("firebreak.test"), Syntax: proto.String("proto3"),
		Dependency: []string{"firebreak/v1/sandbox.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{
			Name: proto.String("M"), InputType: proto.String(".firebreak.v1.CreateSandboxRequest"), OutputType: proto.String(".firebreak.v1.Sandbox"),
		}}}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := protoregistry.GlobalFiles.RegisterFile(fd); err != nil {
		t.Fatal(err)
	}
	g, _ := newRegistry()
	o := g.add("/firebreak.test.S/M", nil)
	if g.err == nil || !strings.Contains(g.err.Error(), "no scope") {
		t.Errorf("a method without access: %v", g.err)
	}
	g, _ = newRegistry()
	g.add("/firebreak.test.S/Missing", nil)
	if g.err == nil {
		t.Error("a method that does not exist was registered")
	}
	for _, rule := range []*annotations.HttpRule{
		{Pattern: &annotations.HttpRule_Get{Get: "/v1/{name=*}"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1/**"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1/{limits.cpus}"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1/{limits}"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1/{nope}"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1/x:verb"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1//x"}},
		{Pattern: &annotations.HttpRule_Get{Get: "v1"}},
		{Pattern: &annotations.HttpRule_Get{Get: "/v1"}, Body: "*"},
		{Pattern: &annotations.HttpRule_Post{Post: "/v1"}},
		{Pattern: &annotations.HttpRule_Post{Post: "/v1"}, Body: "limits"},
		{Pattern: &annotations.HttpRule_Post{Post: "/v1"}, Body: "*", ResponseBody: "id"},
		{Pattern: &annotations.HttpRule_Custom{Custom: &annotations.CustomHttpPattern{Kind: "LIST", Path: "/v1"}}},
	} {
		g, _ := newRegistry()
		if g.bind(o, rule); g.err == nil {
			t.Errorf("accepted %v", rule)
		}
	}
	g, _ = newRegistry()
	for range 2 {
		g.bind(o, &annotations.HttpRule{Pattern: &annotations.HttpRule_Get{Get: "/v1/x"}})
	}
	if g.err == nil {
		t.Error("two methods on one route")
	}
}

// TestRulesCompile: every rule in the proto is one that validation understands.
func TestRulesCompile(t *testing.T) {
	g, err := newRegistry()
	if err != nil {
		t.Fatal(err)
	}
	forEachMethod(func(md protoreflect.MethodDescriptor) {
		m := newMessage(md.Input())
		if err := g.check(m); err != nil && !strings.Contains(err.Error(), "read request") {
			t.Errorf("%s: %v", md.Input().Name(), err)
		}
	})
}

// TestCallerLeaves: an operation whose caller went away is cancelled.
func TestCallerLeaves(t *testing.T) {
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	f := &fake{exec: func(ctx context.Context, r *v1.ExecRequest, send func(*v1.ExecEvent) error) error {
		begun <- struct{}{}
		select {
		case <-ctx.Done():
			ended <- ctx.Err()
		case <-time.After(10 * time.Second):
			ended <- errors.New("not cancelled")
		}
		return ctx.Err()
	}}
	w := start(t, f)
	try := func(name string, call func(context.Context)) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-begun; cancel() }()
		call(ctx)
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, accept := range map[string]string{"unary": "", "sse": "text/event-stream"} {
		try(name, func(ctx context.Context) {
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+w.addr+"/v1/sandboxes/x/exec", strings.NewReader(`{"code":"1"}`))
			req.Header.Set("Accept", accept)
			req.Header.Set("Authorization", "Bearer all")
			if res, err := http.DefaultClient.Do(req); err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
	for name, c := range surfaces(t) {
		try(name, func(ctx context.Context) {
			st, err := rpc.NewSandboxServiceClient(c.client, "http://"+w.addr, c.opts...).
				Exec(ctx, connect.NewRequest(&v1.ExecRequest{Id: "x", Code: proto.String("1")}))
			if err == nil {
				st.Receive()
				st.Close()
			}
		})
	}
}
