// Package fake is Firecracker's API without a machine behind it, for tests. It
// answers as Firecracker does: bodies are held against the published definition,
// calls are granted in the order Firecracker allows, refusals have its status and
// its body.
//
//	p := fake.New("1.17.0")
//	server := httptest.NewServer(p) // or on a unix socket
//	…
//	p.Calls() // those that were granted
package fake

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// schemaDigest pins what the table below was written from: the definition of the
// API in Firecracker's repository, src/firecracker/swagger/firecracker.yaml at
// 81b38b9dad6056d7a48073e95ac5a9aed51cb2ab (1.17.0-dev). TestTable holds the table
// against a copy of that file, where there is one.
const schemaDigest = "47cd2801deb84b4fc38b9dcc85fce494b1f93074caf377dfc59cb7d410fb00f9"

// property is one of a definition's.
type property struct {
	kind     string // string, integer, boolean; or the name of a definition
	enum     []string
	min, max float64 // of an integer; max 0 is none
}

type definition struct {
	required   []string
	properties map[string]property
}

// definitions are those the client uses, whole.
var definitions = map[string]definition{
	"MachineConfiguration": {[]string{"mem_size_mib", "vcpu_count"}, map[string]property{
		"cpu_template": {kind: "CpuTemplate"}, "smt": {kind: "boolean"}, "mem_size_mib": {kind: "integer"},
		"track_dirty_pages": {kind: "boolean"}, "vcpu_count": {kind: "integer", min: 1, max: 32},
		"huge_pages": {kind: "string", enum: []string{"None", "Transparent", "2M"}},
	}},
	"BootSource": {[]string{"kernel_image_path"}, map[string]property{
		"boot_args": {kind: "string"}, "initrd_path": {kind: "string"}, "kernel_image_path": {kind: "string"},
	}},
	"Drive": {[]string{"drive_id", "is_root_device"}, map[string]property{
		"drive_id": {kind: "string"}, "partuuid": {kind: "string"}, "is_root_device": {kind: "boolean"},
		"cache_type":   {kind: "string", enum: []string{"Unsafe", "Writeback"}},
		"is_read_only": {kind: "boolean"}, "path_on_host": {kind: "string"}, "rate_limiter": {kind: "RateLimiter"},
		"io_engine": {kind: "string", enum: []string{"Sync", "Async"}}, "socket": {kind: "string"},
	}},
	"NetworkInterface": {[]string{"host_dev_name", "iface_id"}, map[string]property{
		"guest_mac": {kind: "string"}, "host_dev_name": {kind: "string"}, "iface_id": {kind: "string"}, "mtu": {kind: "integer", min: 68, max: 65535},
		"rx_rate_limiter": {kind: "RateLimiter"}, "tx_rate_limiter": {kind: "RateLimiter"},
	}},
	"RateLimiter": {nil, map[string]property{"bandwidth": {kind: "TokenBucket"}, "ops": {kind: "TokenBucket"}}},
	"TokenBucket": {[]string{"refill_time", "size"}, map[string]property{
		"one_time_burst": {kind: "integer"}, "refill_time": {kind: "integer"}, "size": {kind: "integer"},
	}},
	"Vsock": {[]string{"guest_cid", "uds_path"}, map[string]property{
		"guest_cid": {kind: "integer", min: 3}, "uds_path": {kind: "string"}, "vsock_id": {kind: "string"},
	}},
	"InstanceActionInfo": {[]string{"action_type"}, map[string]property{
		"action_type": {kind: "string", enum: []string{"FlushMetrics", "InstanceStart", "SendCtrlAltDel"}},
	}},
	"Vm": {[]string{"state"}, map[string]property{"state": {kind: "string", enum: []string{"Paused", "Resumed"}}}},
	"SnapshotCreateParams": {[]string{"mem_file_path", "snapshot_path"}, map[string]property{
		"mem_file_path": {kind: "string"}, "snapshot_path": {kind: "string"},
		"snapshot_type": {kind: "string", enum: []string{"Full", "Diff"}},
	}},
	"SnapshotLoadParams": {[]string{"snapshot_path"}, map[string]property{
		"enable_diff_snapshots": {kind: "boolean"}, "track_dirty_pages": {kind: "boolean"}, "mem_file_path": {kind: "string"},
		"mem_backend": {kind: "MemoryBackend"}, "snapshot_path": {kind: "string"}, "resume_vm": {kind: "boolean"},
		"network_overrides": {kind: "array"}, "vsock_override": {kind: "VsockOverride"}, "clock_realtime": {kind: "boolean"},
		"huge_pages": {kind: "string", enum: []string{"Snapshot", "None", "Transparent", "2M"}},
	}},
	"MemoryBackend": {[]string{"backend_type", "backend_path"}, map[string]property{
		"backend_type": {kind: "string", enum: []string{"File", "Uffd"}}, "backend_path": {kind: "string"},
	}},
}

// operation is a call of the API: what it takes, and when it may be made.
type operation struct {
	body string // definition; "" for none
	when string // pre, post, any: the machine's start
}

var operations = map[string]operation{
	"GET /":                              {"", "any"},
	"GET /version":                       {"", "any"},
	"PUT /machine-config":                {"MachineConfiguration", "pre"},
	"PUT /boot-source":                   {"BootSource", "pre"},
	"PUT /drives/{drive_id}":             {"Drive", "pre"},
	"PUT /vsock":                         {"Vsock", "pre"},
	"PUT /network-interfaces/{iface_id}": {"NetworkInterface", "pre"},
	"PUT /actions":                       {"InstanceActionInfo", "pre"}, // InstanceStart
	"PATCH /vm":                          {"Vm", "post"},
	"PUT /snapshot/create":               {"SnapshotCreateParams", "post"},
	"PUT /snapshot/load":                 {"SnapshotLoadParams", "pre"},
}

// check returns what is wrong with a body.
func check(name string, body map[string]any) error {
	d, ok := definitions[name]
	if !ok {
		return fmt.Errorf("there is no definition %s", name)
	}
	for _, r := range d.required {
		if _, ok := body[r]; !ok {
			return fmt.Errorf("missing field `%s`", r)
		}
	}
	for k, v := range body {
		p, ok := d.properties[k]
		if !ok {
			return fmt.Errorf("unknown field `%s`", k)
		}
		if err := p.check(k, v); err != nil {
			return err
		}
	}
	return nil
}

func (p property) check(k string, v any) error {
	switch v := v.(type) {
	case string:
		if p.kind != "string" || p.enum != nil && !slices.Contains(p.enum, v) {
			return fmt.Errorf("%s cannot be %q", k, v)
		}
	case bool:
		if p.kind != "boolean" {
			return fmt.Errorf("%s cannot be a boolean", k)
		}
	case float64:
		if p.kind != "integer" || v != float64(int64(v)) || v < p.min || p.max > 0 && v > p.max {
			return fmt.Errorf("%s cannot be %v", k, v)
		}
	case map[string]any:
		return check(p.kind, v)
	default:
		return fmt.Errorf("%s cannot be %T", k, v)
	}
	return nil
}

// Process is one Firecracker process. It is safe for concurrent use.
type Process struct {
	// Started, if set, is called when the machine starts, with what was configured:
	// bodies by route.
	Started func(configured map[string]map[string]any)

	version string

	mu    sync.Mutex
	state string                    // guarded by mu: "Not started", "Running", "Paused"
	calls []string                  // guarded by mu: those that were granted
	have  map[string]map[string]any // guarded by mu: what is configured
	files map[string]string         // guarded by mu: snapshots, state → memory
}

// New returns a process that was not configured and says it is of a version.
func New(version string) *Process {
	return &Process{version: version, state: "Not started", have: map[string]map[string]any{}, files: map[string]string{}}
}

// Successor is a fresh process that finds the files of p's snapshots.
func (f *Process) Successor() *Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := New(f.version)
	g.files = f.files
	return g
}

// Calls lists the calls that were granted, as the definition names them.
func (f *Process) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// ServeHTTP implements http.Handler.
func (f *Process) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	refuse := func(format string, args ...any) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": fmt.Sprintf(format, args...)})
	}
	route := r.Method + " " + r.URL.Path
	id, named := "", ""
	for _, of := range []struct{ path, key string }{{"/drives/", "drive_id"}, {"/network-interfaces/", "iface_id"}} {
		if rest, ok := strings.CutPrefix(r.URL.Path, of.path); ok {
			id, named, route = rest, of.key, r.Method+" "+of.path+"{"+of.key+"}"
		}
	}
	op, ok := operations[route]
	if !ok {
		refuse("Invalid request method and/or path: %s %s", r.Method, r.URL.Path)
		return
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		refuse("%v", err)
		return
	}
	var body map[string]any
	if op.body != "" {
		if r.Header.Get("Content-Type") != "application/json" || json.Unmarshal(b, &body) != nil {
			refuse("An error occurred when deserializing the json body of a request")
			return
		}
		if err := check(op.body, body); err != nil {
			refuse("An error occurred when deserializing the json body of a request: %v.", err)
			return
		}
	} else if len(b) > 0 {
		refuse("A GET request cannot have a body.")
		return
	}
	if named != "" && body[named] != id {
		refuse("The id from the path [%s] does not match the id from the body [%v]!", id, body[named])
		return
	}
	switch {
	case op.when == "pre" && f.state != "Not started":
		refuse("The requested operation is not supported after starting the microVM.")
		return
	case op.when == "post" && f.state == "Not started":
		refuse("The requested operation is not supported before starting the microVM.")
		return
	}
	if why := f.act(w, route, id, body); why != "" {
		refuse("%s", why)
		return
	}
	f.calls = append(f.calls, route)
}

// act does what an admitted call asks for. f.mu is held.
func (f *Process) act(w http.ResponseWriter, route, id string, body map[string]any) (refusal string) {
	switch route {
	case "GET /":
		_ = json.NewEncoder(w).Encode(map[string]string{"id": "in1", "state": f.state, "vmm_version": f.version, "app_name": "Firecracker"})
		return ""
	case "GET /version":
		_ = json.NewEncoder(w).Encode(map[string]string{"firecracker_version": f.version})
		return ""
	case "PUT /actions":
		if f.have["PUT /boot-source"] == nil {
			return "Start microvm error: Cannot start microvm without kernel configuration."
		}
		f.state = "Running"
		if f.Started != nil {
			f.Started(f.have)
		}
	case "PATCH /vm":
		f.state = map[string]string{"Paused": "Paused", "Resumed": "Running"}[body["state"].(string)]
	case "PUT /snapshot/create":
		if f.state != "Paused" {
			return "Create snapshot error: Cannot save the microVM state: Operation not allowed: Invalid microVM state: Running"
		}
		f.files[body["snapshot_path"].(string)] = body["mem_file_path"].(string)
	case "PUT /snapshot/load":
		if len(f.have) > 0 {
			return "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
		}
		m, ok := f.files[body["snapshot_path"].(string)]
		backend, _ := body["mem_backend"].(map[string]any)
		switch path, old := body["mem_file_path"]; {
		case old == (backend != nil), path != nil:
			return "too many fields: either `mem_backend` or `mem_file_path` exclusively is required"
		case !ok || m != backend["backend_path"]:
			return "Load snapshot error: Failed to load guest memory: No such file or directory (os error 2)"
		}
		f.state = "Paused"
		if body["resume_vm"] == true {
			f.state = "Running"
		}
	default:
		if before, _, ok := strings.Cut(route, "{"); ok && id != "" {
			route = before + id
		}
		f.have[route] = body
	}
	w.WriteHeader(http.StatusNoContent)
	return ""
}
