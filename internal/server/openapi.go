package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/firebreak-dev/firebreak/api"
	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
)

// object is a JSON object; encoding/json sorts its keys, so that the document
// is a function of the proto and the table alone.
type object = map[string]any

// OpenAPI returns the OpenAPI 3.1 document of the REST surface: the routes that
// are registered, the messages as the JSON profile shows them, the comments of
// the proto. It is committed as api/openapi.json and served from there; a test
// keeps the two equal.
func (s *Server) OpenAPI() ([]byte, error) {
	d := &document{g: s.registry, schemas: object{}}
	if err := d.loadComments(api.Descriptors); err != nil {
		return nil, err
	}
	paths := object{}
	for _, o := range s.registry.order {
		for _, r := range o.routes {
			item, _ := paths[openTemplate(r.template)].(object)
			if item == nil {
				item = object{}
				paths[openTemplate(r.template)] = item
			}
			item[strings.ToLower(r.method)] = d.operation(o, r)
		}
	}
	d.builtins(paths)
	d.schemas["Error"] = errorSchema()
	doc := object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Firebreak", "version": "v1", "license": object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
			"description": "Runs code nobody reviewed so that it cannot hurt the machine, the network, its neighbours or the secrets it needs.\n\n" +
				"JSON is snake_case. Answers hold every field; only messages and optional scalars that are not set are left out. " +
				"64-bit integers are numbers, bytes are base64, times RFC 3339. Unknown fields in a request are an error. " +
				"The same operations are served over Connect and gRPC under the procedure named by x-firebreak-procedure.",
		},
		"servers":  []any{object{"url": "http://127.0.0.1:7878"}},
		"security": []any{object{"key": []any{}}},
		"paths":    paths,
		"components": object{
			"schemas":   d.schemas,
			"responses": object{"Error": errorResponse()},
			"securitySchemes": object{"key": object{
				"type": "http", "scheme": "bearer", "bearerFormat": "fb_…",
				"description": "An API key. Over the local unix socket none is needed: the caller's uid is the credential.",
			}},
		},
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	err := e.Encode(doc)
	return b.Bytes(), err
}

// document is an OpenAPI document in the making.
type document struct {
	g        *registry
	comments map[protoreflect.FullName]string
	schemas  object
}

// openTemplate is a path as OpenAPI writes it, which knows no {path...}.
func openTemplate(t string) string { return strings.ReplaceAll(t, "...}", "}") }

// loadComments reads the comments the generator kept.
func (d *document) loadComments(set []byte) error {
	var fds descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(set, &fds); err != nil {
		return err
	}
	files, err := protodesc.FileOptions{AllowUnresolvable: true}.NewFiles(&fds)
	if err != nil {
		return err
	}
	d.comments = map[protoreflect.FullName]string{}
	files.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		note := func(e protoreflect.Descriptor) {
			if c := tidy(f.SourceLocations().ByDescriptor(e).LeadingComments); c != "" {
				d.comments[e.FullName()] = c
			}
		}
		for i := range f.Services().Len() {
			note(f.Services().Get(i))
			for j, ms := 0, f.Services().Get(i).Methods(); j < ms.Len(); j++ {
				note(ms.Get(j))
			}
		}
		for i := range f.Messages().Len() {
			note(f.Messages().Get(i))
			for j, fs := 0, f.Messages().Get(i).Fields(); j < fs.Len(); j++ {
				note(fs.Get(j))
			}
		}
		return true
	})
	return nil
}

// tidy joins a comment's lines; empty ones separate paragraphs.
func tidy(comment string) string {
	var paragraphs []string
	for _, p := range strings.Split(comment, "\n\n") {
		if p = strings.Join(strings.Fields(p), " "); p != "" {
			paragraphs = append(paragraphs, p)
		}
	}
	return strings.Join(paragraphs, "\n\n")
}

// operation describes one route.
func (d *document) operation(o *operation, r *route) object {
	in := o.method.Input()
	op := object{
		"operationId":           operationID(o, r),
		"tags":                  []string{strings.TrimSuffix(string(o.method.Parent().Name()), "Service")},
		"x-firebreak-procedure": o.procedure,
		"x-firebreak-scope":     string(o.scope),
	}
	if c := d.comments[o.method.FullName()]; c != "" {
		op["description"] = c
		op["summary"], _, _ = strings.Cut(strings.ReplaceAll(c, "\n\n", " "), ". ")
	}
	var parameters []any
	for _, name := range r.params {
		p := d.parameter(in.Fields().ByName(protoreflect.Name(name)), "path")
		p["required"] = true
		parameters = append(parameters, p)
	}
	hasBody := !o.raw && (r.method == http.MethodPost || r.method == http.MethodPut) || r.method == http.MethodPatch
	for i := range in.Fields().Len() {
		fd := in.Fields().Get(i)
		if hasBody || slices.Contains(r.params, string(fd.Name())) || !inQuery(fd) || fd.Kind() == protoreflect.BytesKind {
			continue
		}
		parameters = append(parameters, d.parameter(fd, "query"))
	}
	parameters = append(parameters, headerParameters(o, r)...)
	if parameters != nil {
		op["parameters"] = parameters
	}
	switch {
	case r.template == archiveTemplate && r.method == http.MethodPut:
		op["requestBody"] = object{"required": true, "description": "The tar file, of any size.", "content": object{"application/x-tar": object{}}}
	case o.raw && r.method == http.MethodPut:
		op["requestBody"] = object{"required": true, "description": "The content, of any size.", "content": rawContent()}
	case o.raw && r.method == http.MethodPost:
		op["requestBody"] = object{"required": true, "description": "A form of files of any size; each part's file name is its path.",
			"content": object{"multipart/form-data": object{"schema": object{"type": "object",
				"properties": object{"file": object{"type": "array", "items": object{"type": "string", "format": "binary"}}}}}}}
	case hasBody:
		op["requestBody"] = object{"content": jsonContent(d.request(in, r.params))}
	}
	op["responses"] = d.responses(o, r)
	return op
}

// operationID is unique: the unversioned routes have their own.
func operationID(o *operation, r *route) string {
	if !strings.HasPrefix(r.template, "/v1/") {
		return o.name + "Unversioned"
	}
	if o.raw && r.method == http.MethodPost {
		return o.name + "s"
	}
	return o.name
}

func headerParameters(o *operation, r *route) []any {
	var list []any
	header := func(name, description string) {
		list = append(list, object{"name": name, "in": "header", "description": description, "schema": object{"type": "string"}})
	}
	if o.once {
		header("Idempotency-Key", "Repeating a request with the same key returns the object the first one made; the same key with another body is a conflict.")
	}
	if o.method.IsStreamingServer() && !o.raw && o.method.Input().Fields().ByName("after_id") != nil {
		header("Last-Event-ID", "The last event already seen; the stream goes on after it. It wins over after_id.")
	}
	if o.raw && r.method == http.MethodGet && r.template != archiveTemplate {
		header("Range", "One range of bytes, such as bytes=0-1023; answered with 206.")
	}
	return list
}

// parameter describes a path or query parameter.
func (d *document) parameter(fd protoreflect.FieldDescriptor, in string) object {
	p := object{"name": string(fd.Name()), "in": in, "schema": d.field(fd)}
	if c := d.comments[fd.FullName()]; c != "" {
		p["description"] = c
	}
	if fd.IsMap() {
		p["name"] = string(fd.Name()) + ".KEY"
		p["schema"] = object{"type": "string"}
		p["description"] = strings.TrimSpace(d.comments[fd.FullName()] + " KEY is any key; the parameter may be repeated with others.")
	}
	if in == "query" && ruleOf(fd).GetString().GetMinLen() > 0 {
		p["required"] = true
	}
	return p
}

// responses describes what a route answers.
func (d *document) responses(o *operation, r *route) object {
	status := strconv.Itoa(o.success)
	failure := object{"$ref": "#/components/responses/Error"}
	all := object{"default": failure}
	for _, s := range []int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden} {
		all[strconv.Itoa(s)] = failure
	}
	if len(r.params) > 0 {
		all["404"] = failure
	}
	out := o.method.Output()
	if o.raw && r.method == http.MethodPost { // a form of files
		out = (&v1.ListFilesResponse{}).ProtoReflect().Descriptor()
	}
	switch {
	case r.noBody:
		all["204"] = object{"description": "Done; there is nothing to say."}
	case r.template == portsTemplate:
		all["101"] = object{"description": "From here on the connection is the server's in the sandbox."}
	case r.template == archiveTemplate && r.method == http.MethodGet:
		all["200"] = object{"description": "The directory.", "content": object{"application/x-tar": object{}},
			"headers": object{leftOut: object{"description": "A trailer: how many entries are not in it.", "schema": object{"type": "integer"}}}}
	case o.raw && r.method == http.MethodGet:
		all["200"] = object{"description": "The content.", "content": rawContent()}
		all["206"] = object{"description": "The part that Range names.", "content": rawContent()}
		all["416"] = failure
	case o.method.IsStreamingServer() && !o.raw:
		all[status] = object{"description": "See the media types.", "content": d.streamContent(o)}
		if o.success != http.StatusOK {
			all["200"] = object{"description": "The stream, if it was asked for.", "content": all[status].(object)["content"]}
			all[status] = object{"description": "Done.", "content": jsonContent(d.response(o.whole.ProtoReflect().Descriptor()))}
		}
	default:
		all[status] = object{"description": "Done.", "content": jsonContent(d.response(out))}
	}
	return all
}

// streamContent describes the forms of a stream.
func (d *document) streamContent(o *operation) object {
	out := o.method.Output()
	n := namingOf(out)
	events := "Each event's data is this object on one line; its name is the object's type and its id the object's id."
	if n.oneof != nil {
		var names []string
		for i := range n.oneof.Fields().Len() {
			names = append(names, string(n.oneof.Fields().Get(i).Name()))
		}
		events = "Each event is named as one of this object's fields and its data is that field: " + strings.Join(names, ", ") + "."
	}
	events += " An event named error ends a stream that failed. Comments in between are signs of life."
	item := d.response(out)
	content := object{
		"text/event-stream":    object{"schema": object{"type": "string", "description": events}, "x-firebreak-item": item},
		"application/x-ndjson": object{"schema": object{"type": "string", "description": "One such object per line."}, "x-firebreak-item": item},
	}
	if o.whole != nil {
		content["application/json"] = object{"schema": d.response(o.whole.ProtoReflect().Descriptor())}
	}
	return content
}

func jsonContent(schema object) object { return object{"application/json": object{"schema": schema}} }

func rawContent() object { return object{"application/octet-stream": object{}} }

// builtins describes the routes that are not operations.
func (d *document) builtins(paths object) {
	add := func(path, description, contentType string, open bool) {
		get := object{
			"operationId": strings.TrimSuffix(path[1:], ".json"), "tags": []string{"Server"}, "summary": description,
			"responses": object{
				"200":     object{"description": description, "content": object{contentType: object{}}},
				"default": object{"$ref": "#/components/responses/Error"},
			},
		}
		if open {
			get["security"] = []any{}
		} else {
			get["x-firebreak-scope"] = "system:read"
		}
		paths[path] = object{"get": get}
	}
	add("/healthz", "The process is alive", "application/json", true)
	add("/readyz", "The server can do its work; 503 while it cannot or shuts down", "application/json", true)
	add("/openapi.json", "This document", "application/json", true)
	add("/metrics", "Metrics in the Prometheus text format", "text/plain", false)
}

func errorResponse() object {
	var b strings.Builder
	b.WriteString("What went wrong, by kind and status:")
	kinds := sortedKinds()
	for _, k := range kinds {
		fmt.Fprintf(&b, " %s %d,", k, codes[k].http)
	}
	text := strings.TrimSuffix(b.String(), ",") + ". A request that itself arrives wrongly may also get 405 (method), 408 (slow body), 416 (range) or 421 (host name)."
	return object{
		"description": text,
		"headers": object{"Retry-After": object{
			"description": "Seconds after which a retry may succeed; with capacity and unavailable.", "schema": object{"type": "integer"},
		}},
		"content": jsonContent(object{"$ref": "#/components/schemas/Error"}),
	}
}

func errorSchema() object {
	var kinds []string
	for _, k := range sortedKinds() {
		kinds = append(kinds, string(k))
	}
	text := func(description string) object { return object{"type": "string", "description": description} }
	return object{
		"type": "object", "required": []string{"error"},
		"properties": object{"error": object{
			"type": "object", "required": []string{"kind", "message", "hint", "op", "id"},
			"properties": object{
				"kind":    object{"type": "string", "enum": kinds, "description": "What went wrong, for programs."},
				"message": text("What went wrong, for people."),
				"hint":    text("What to do about it; may be empty."),
				"op":      text("What was being done."),
				"id":      text("The object concerned; may be empty."),
			},
		}},
	}
}
