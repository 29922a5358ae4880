package orchestrator

import (
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

// Quota bounds what may exist and happen at once on this host. Zero fields get
// the values below.
type Quota struct {
	// Host is live sandboxes of all tenants: 500.
	Host int
	// Overcommit is how many times the host's memory the limits of all live
	// sandboxes may add up to: 2. Whatever it says, a new sandbox's limit must
	// fit into what is available when it is made.
	Overcommit float64
	// Creating is how many boots run at once: twice the CPUs. Starting is how
	// many programs are being started at once: 16 times the CPUs.
	Creating, Starting int
	// Waiting is how many may wait for each of these: 256; and Wait how long:
	// 10 s. Tenants take turns, and none may fill the queue: see gate.
	Waiting int
	Wait    time.Duration
	// DiskReserve is what must be free where the state lies: 1 GiB, but not
	// more than a twentieth of a small disk.
	DiskReserve int64
	// Tenant bounds each tenant. Tenants, by name, are those that differ: their
	// zero fields are Tenant's.
	Tenant  TenantQuota
	Tenants map[sandbox.TenantID]TenantQuota
}

// TenantQuota bounds one tenant. Zero fields get the default that Resources
// names; Unlimited bounds nothing.
type TenantQuota struct {
	Sandboxes, Memory, Disk, Kept int64
	Snapshots                     int64
	Boots, Execs, Builds          int64
	Requests, KeyRequests, Burst  int64
}

// Unlimited, as a field of a TenantQuota, is no bound at all.
const Unlimited = -1

// Unit is what a Resource is counted in. Its values are part of the API.
type Unit string

// The units.
const (
	Count     Unit = "count"
	Bytes     Unit = "bytes"
	PerSecond Unit = "per_second"
)

// Resource is one thing a TenantQuota bounds.
type Resource struct {
	Name    string // in the API and, after "tenant_", in firebreak.yaml
	Unit    Unit
	Default int64
	Doc     string
	Field   func(*TenantQuota) *int64
	free    string // what a person can do when it is used up
}

// Resources is everything a TenantQuota bounds, in the order it is shown.
var Resources = []Resource{
	{"sandboxes", Count, 200, "live sandboxes", func(q *TenantQuota) *int64 { return &q.Sandboxes }, "destroy a sandbox (firebreak ls, firebreak rm)"},
	{"memory", Bytes, Unlimited, "memory limits of all live sandboxes together", func(q *TenantQuota) *int64 { return &q.Memory },
		"destroy a sandbox, or ask for less memory (--memory)"},
	{"disk", Bytes, Unlimited, "disk limits of all live sandboxes together", func(q *TenantQuota) *int64 { return &q.Disk },
		"destroy a sandbox, or ask for less disk (--disk)"},
	{"kept", Bytes, 10 << 30, "what ended sandboxes and runs left on the server's disk: events, output, artifacts", func(q *TenantQuota) *int64 { return &q.Kept },
		"events are forgotten after a day and runs after a week"},
	{"snapshots", Bytes, 20 << 30, "snapshots and paused sandboxes on the server's disk", func(q *TenantQuota) *int64 { return &q.Snapshots },
		"remove a snapshot (firebreak snapshot ls, firebreak snapshot rm) or a paused sandbox"},
	{"boots", Count, Unlimited, "sandboxes being made at once; further ones wait for their turn", func(q *TenantQuota) *int64 { return &q.Boots }, "retry"},
	{"execs", Count, 1000, "programs running at once, not counting those of runs", func(q *TenantQuota) *int64 { return &q.Execs },
		"end a program, or wait until one has ended"},
	{"builds", Count, 2, "template builds at once", func(q *TenantQuota) *int64 { return &q.Builds }, "wait until a build has ended"},
	{"requests", PerSecond, 2000, "requests with an API key per second, of all keys together", func(q *TenantQuota) *int64 { return &q.Requests }, "send fewer requests"},
	{"key_requests", PerSecond, 1500, "requests per second of one API key", func(q *TenantQuota) *int64 { return &q.KeyRequests }, "send fewer requests"},
	{"burst", Count, 4000, "requests at once, before the two rates above bind", func(q *TenantQuota) *int64 { return &q.Burst }, "send fewer requests"},
}

// Of returns what bounds tenant, defaults filled in. The zero value of a field
// never occurs in it.
func (q *Quota) Of(tenant sandbox.TenantID) TenantQuota {
	own := q.Tenants[tenant]
	common := q.Tenant
	for _, r := range Resources {
		f := r.Field(&own)
		def(f, *r.Field(&common))
		def(f, r.Default)
	}
	return own
}

// resource finds a Resource by its name, which exists.
func resource(name string) Resource {
	for _, r := range Resources {
		if r.Name == name {
			return r
		}
	}
	panic("orchestrator: no resource " + name)
}

// show renders an amount of the resource.
func (r Resource) show(n int64) string {
	if r.Unit == Bytes {
		return sandbox.FormatSize(n)
	}
	return formatCount(n)
}

// exceeded is the error of a request that needs more of a resource than the
// tenant may still have.
func (r Resource) exceeded(op string, used, need, limit int64) *sandbox.Error {
	more := ""
	if need > 0 {
		more = ", " + r.show(need) + " more needed"
	}
	e := sandbox.Errorf(op, sandbox.KindCapacity, "the tenant's quota of %s is used up: %s of %s in use%s", r.Name, r.show(used), r.show(limit), more).
		WithHint("%s; `firebreak quota` shows what is left, tenant_%s in firebreak.yaml sets it", r.free, r.Name)
	e.RetryAfter = 5 * time.Second
	if r.Name == "kept" || r.Name == "snapshots" {
		e.RetryAfter = 10 * time.Minute
	}
	return e
}

// Use is how much of a resource a tenant uses.
type Use struct {
	Resource
	Used  int64
	Limit int64 // Unlimited: none
}

// Quotas reports what the tenant may have and has, without the rates, whose use
// the door knows.
func (o *Orchestrator) Quotas(tenant sandbox.TenantID) []Use {
	q := o.Quota.Of(tenant)
	used := o.ledger.of(tenant)
	used["boots"] = int64(o.gate.places(tenant))
	uses := make([]Use, 0, len(Resources))
	for _, r := range Resources {
		uses = append(uses, Use{Resource: r, Used: used[r.Name], Limit: *r.Field(&q)})
	}
	return uses
}
