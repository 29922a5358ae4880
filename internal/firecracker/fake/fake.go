// Package fake is Firecracker's API without a machine behind it, for tests. It
// answers as Firecracker does: bodies are held against the published definition,
// calls are granted in the order Firecracker allows, refusals have its status and
// its body.
//
//	p := fake.New("1.17.0", root)   // whose paths are below root
//	server := httptest.NewServer(p) // or on a unix socket
//	go p.ServeVSock(listener, fake.Ports{1024: serve})
//	…
//	p.Calls() // those that were granted
//
// A snapshot is two files of the sizes of real ones, of which another Process goes on
// if both are what was written. The wording of refusals is that of the sources at the
// commit below: src/vmm/src/rpc_interface.rs, persist.rs, snapshot/mod.rs, builder.rs and
// src/firecracker/src/api_server/parsed_request.rs.
package fake

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
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
	kind     string // string, integer, boolean, array; or the name of a definition
	enum     []string
	min, max float64 // of an integer; max 0 is none
}

// since is the minor version of release 1 that first knew a property; those before
// refuse it, as they do every field they do not know.
var since = map[string]int{
	"SnapshotLoadParams.network_overrides": 12, "SnapshotLoadParams.track_dirty_pages": 13,
	"SnapshotLoadParams.vsock_override": 16, "SnapshotLoadParams.clock_realtime": 16, "SnapshotLoadParams.huge_pages": 17,
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
	"GET /vm/config":                     {"", "any"},
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

// check returns what is wrong with a body, for a minor version.
func check(name string, minor int, body map[string]any) error {
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
		if !ok || minor < since[name+"."+k] {
			return fmt.Errorf("unknown field `%s`", k)
		}
		if err := p.check(k, minor, v); err != nil {
			return err
		}
	}
	return nil
}

func (p property) check(k string, minor int, v any) error {
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
		return check(p.kind, minor, v)
	default:
		return fmt.Errorf("%s cannot be %T", k, v)
	}
	return nil
}

// Process is one Firecracker process. It is safe for concurrent use.
type Process struct {
	// Started, if set, is called when the machine starts or goes on from a snapshot,
	// with what was configured: bodies by route.
	Started func(configured Configuration)
	// Memory, if set, is asked for what the machine's memory holds when it is saved, and
	// Loaded given it in a process that goes on from that.
	Memory func() []byte
	Loaded func(memory []byte)
	// Ended, if set, is called when the process ends, as one does that was not able to
	// load a snapshot.
	Ended func()

	version string
	minor   int
	root    string

	mu      sync.Mutex
	wake    *sync.Cond           // state or deaf changed
	state   string               // guarded by mu: "Not started", "Running", "Paused"
	calls   []string             // guarded by mu: those that were granted
	have    Configuration        // guarded by mu
	devices []string             // guarded by mu: their routes, in order
	saved   bool                 // guarded by mu: since it was paused
	deaf    bool                 // guarded by mu: its guest takes no connections
	dead    bool                 // guarded by mu
	ports   uint32               // guarded by mu: of the host's, given away
	open    map[*connection]bool // guarded by mu
}

// Configuration is what was configured: bodies by route, with a drive's id in it.
type Configuration map[string]map[string]any

// New returns a process that was not configured, says it is of a version, and has
// root for its root directory.
func New(version, root string) *Process {
	f := &Process{version: version, root: root, state: "Not started", have: Configuration{}, open: map[*connection]bool{}}
	f.wake = sync.NewCond(&f.mu)
	if parts := strings.Split(strings.TrimPrefix(version, "v"), "."); len(parts) > 1 {
		f.minor, _ = strconv.Atoi(parts[1]) // 0 for what is no version
	}
	return f
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
	if f.dead {
		panic(http.ErrAbortHandler)
	}
	route, id, body, why := f.admit(r)
	if why == "" {
		why = f.act(w, route, id, body)
	}
	if why != "" {
		b, _ := json.Marshal(map[string]string{"fault_message": why})
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(b)
	} else {
		f.calls = append(f.calls, route)
	}
	if f.dead && f.Ended != nil {
		if fl, ok := w.(http.Flusher); ok {
			fl.Flush() // the answer gets out
		}
		f.Ended()
	}
}

const malformed = "An error occurred when deserializing the json body of a request: "

// admit reads a call and checks its form and when it comes. f.mu is held.
func (f *Process) admit(r *http.Request) (route, id string, body map[string]any, refusal string) {
	route = r.Method + " " + r.URL.Path
	named := "" // by what in the body
	for _, of := range []struct{ path, key string }{{"/drives/", "drive_id"}, {"/network-interfaces/", "iface_id"}} {
		if rest, ok := strings.CutPrefix(r.URL.Path, of.path); ok {
			id, named, route = rest, of.key, r.Method+" "+of.path+"{"+of.key+"}"
		}
	}
	op, ok := operations[route]
	if !ok {
		return route, id, nil, fmt.Sprintf("Invalid request method and/or path: %s %s.", r.Method, r.URL.Path)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	switch {
	case err != nil:
		return route, id, nil, err.Error()
	case op.body == "" && len(b) > 0:
		return route, id, nil, "GET request cannot have a body."
	case op.body != "" && len(b) == 0 && r.Method == http.MethodPut:
		return route, id, nil, "Empty PUT request."
	case op.body != "" && (r.Header.Get("Content-Type") != "application/json" || json.Unmarshal(b, &body) != nil):
		return route, id, nil, malformed + "expected value at line 1 column 1."
	case op.body != "":
		if err := check(op.body, f.minor, body); err != nil {
			return route, id, nil, malformed + err.Error() + "."
		}
	}
	switch {
	case named != "" && body[named] != id:
		return route, id, nil, fmt.Sprintf("The id from the path [%s] does not match the id from the body [%v]!", id, body[named])
	case op.when == "pre" && f.state != "Not started":
		return route, id, nil, "The requested operation is not supported after starting the microVM."
	case op.when == "post" && f.state == "Not started":
		return route, id, nil, "The requested operation is not supported before starting the microVM."
	}
	return route, id, body, ""
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
	case "GET /vm/config":
		_ = json.NewEncoder(w).Encode(f.config())
		return ""
	case "PUT /actions":
		if f.have["PUT /boot-source"] == nil {
			return "Start microvm error: Cannot start microvm without kernel configuration."
		}
		f.enter("Running")
		if f.Started != nil {
			f.Started(f.have)
		}
	case "PATCH /vm":
		f.pause(body["state"] == "Paused")
	case "PUT /snapshot/create":
		if f.state != "Paused" {
			return "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"
		}
		f.saved = true // the devices are saved before anything is written
		f.reset()
		if err := f.save(body["snapshot_path"].(string), body["mem_file_path"].(string)); err != nil {
			return "Create snapshot error: " + err.Error()
		}
	case "PUT /snapshot/load":
		if why := f.load(body); why != "" {
			return why
		}
	default:
		if before, _, ok := strings.Cut(route, "{"); ok && id != "" {
			route = before + id
		}
		f.have[route] = body
		if id != "" {
			f.devices = append(f.devices, route)
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return ""
}

// config is what GET /vm/config says. f.mu is held.
func (f *Process) config() map[string]any {
	devices := map[string][]any{"drives": {}, "network-interfaces": {}}
	for _, d := range f.devices {
		kind := strings.Split(d, "/")[1]
		devices[kind] = append(devices[kind], f.have[d])
	}
	return map[string]any{"machine-config": f.have["PUT /machine-config"], "boot-source": f.have["PUT /boot-source"], "vsock": f.have["PUT /vsock"],
		"drives": devices["drives"], "network-interfaces": devices["network-interfaces"]}
}

// enter changes the state. f.mu is held.
func (f *Process) enter(state string) {
	f.state = state
	f.wake.Broadcast()
}

// pause stops the machine or lets it go on. Version 1.16 forgets its guest when that
// was not saved meanwhile, see their pull request 6100. f.mu is held.
func (f *Process) pause(stop bool) {
	switch {
	case stop && f.state == "Running":
		f.saved = false
		f.enter("Paused")
	case !stop && f.state == "Paused":
		f.deaf = f.minor == 16 && !f.saved
		f.enter("Running")
	}
}

// load makes the process the machine of a snapshot. f.mu is held.
func (f *Process) load(body map[string]any) (refusal string) {
	backend, _ := body["mem_backend"].(map[string]any)
	switch path := body["mem_file_path"]; {
	case path == nil && backend == nil:
		return malformed + "missing field: either `mem_backend` or `mem_file_path` is required."
	case path != nil && backend != nil:
		return malformed + "too many fields: either `mem_backend` or `mem_file_path` exclusively is required."
	case path != nil:
		backend = map[string]any{"backend_type": "File", "backend_path": path}
	}
	if len(f.have) > 0 {
		return "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
	}
	have, memory, err := f.restore(body["snapshot_path"].(string), backend["backend_path"].(string))
	if err != nil {
		f.dead = true // a process that failed to is too dirty to go on
		return "Load snapshot error: Failed to restore from snapshot: " + err.Error()
	}
	f.have, f.saved = have, true
	f.enter("Paused")
	if f.Loaded != nil {
		f.Loaded(memory)
	}
	if f.Started != nil {
		f.Started(f.have)
	}
	if body["resume_vm"] == true {
		f.enter("Running")
	}
	return ""
}
