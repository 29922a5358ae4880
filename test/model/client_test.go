package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// load is what a number of clients do to a server.
type load struct {
	tenants map[string]func() *client.Client // a fresh connection pool
	clients int                              // of each tenant
	calls   int                              // of each client
	limit   int                              // the server's quota of each tenant
	alive   int                              // at about how many living ones clients stop creating
	patient time.Duration
	cancel  float64       // share of calls whose caller does not wait for the answer
	short   time.Duration // the shortest lives asked for; 0: none
	pause   time.Duration // between the calls of a client, at most
	backend string
	seed    uint64
}

// world is what the clients of a tenant know of each other's doings.
type world struct {
	mu  sync.Mutex
	ids []string // guarded by mu; newest last
}

func (w *world) learn(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id != "" && !slices.Contains(w.ids, id) {
		w.ids = append(w.ids, id)
	}
}

// pick draws a sandbox, rather one of the newest.
func (w *world) pick(r *rand.Rand, recent int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.ids) == 0 {
		return ""
	}
	n := len(w.ids)
	if r.Float64() < 0.9 {
		n = min(n, recent)
	}
	return w.ids[len(w.ids)-1-r.IntN(n)]
}

// recorder runs a load and keeps its history.
type recorder struct {
	load
	t      *testing.T
	worlds map[string]*world
	number atomic.Int64
	hours  atomic.Int64
	start  time.Time

	mu    sync.Mutex
	calls []*call // guarded by mu
}

func newRecorder(t *testing.T, l load) *recorder {
	r := &recorder{load: l, t: t, worlds: map[string]*world{}, start: time.Now()}
	for tenant := range l.tenants {
		r.worlds[tenant] = &world{}
	}
	return r
}

// run lets all clients call, ends everything, and returns what they saw.
func (r *recorder) run() *history {
	var clients sync.WaitGroup
	n := 0
	for _, tenant := range sorted(r.tenants) {
		for range r.clients {
			n++
			c := r.connect(tenant, n)
			clients.Go(func() {
				defer c.api.Close()
				for range r.load.calls {
					c.one()
				}
			})
		}
	}
	clients.Wait()
	for i, tenant := range sorted(r.tenants) {
		c := r.connect(tenant, i)
		c.finish()
		c.api.Close()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &history{start: r.start, calls: r.calls, limit: r.limit, patient: r.patient}
}

// count is how many calls are over.
func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.calls)
}

// caller is one client.
type caller struct {
	r      *recorder
	n      int
	tenant string
	api    *client.Client
	rand   *rand.Rand
}

func (r *recorder) connect(tenant string, n int) *caller {
	return &caller{r: r, n: n, tenant: tenant, api: r.tenants[tenant](), rand: rand.New(rand.NewPCG(r.seed, uint64(n)))}
}

// one makes a random call.
func (c *caller) one() {
	k := &call{client: c.n, tenant: c.tenant}
	home := c.r.worlds[c.tenant]
	k.id = home.pick(c.rand, c.r.alive)
	if c.rand.Float64() < 0.03 { // somebody else's, if there is one
		for tenant, w := range c.r.worlds {
			if tenant != c.tenant {
				k.id = w.pick(c.rand, c.r.alive)
			}
		}
	}
	p := c.rand.IntN(100)
	switch {
	case k.id == "" || p < 14:
		c.plan(k)
	case p < 30:
		k.verb = get
	case p < 38:
		k.verb, k.id, k.name = lookup, "", fmt.Sprintf("n%d", c.rand.IntN(3))
	case p < 46:
		k.verb, k.id, k.all = list, "", c.rand.IntN(8) == 0
	case p < 58:
		k.verb = destroy
	case p < 64:
		k.verb, k.life, k.extend = timeout, time.Duration(2+c.r.hours.Add(1))*time.Hour, c.rand.IntN(3) == 0
		if c.r.short > 0 && c.rand.IntN(4) == 0 {
			k.life, k.extend = c.r.short+time.Duration(c.rand.Int64N(int64(c.r.short))), false
		}
	case p < 78:
		k.verb, k.path = write, fmt.Sprintf("f%d", c.rand.IntN(2))
	case p < 92:
		k.verb, k.path = read, fmt.Sprintf("f%d", c.rand.IntN(2))
	default:
		k.verb, k.path = cat, fmt.Sprintf("f%d", c.rand.IntN(2))
	}
	ctx := c.r.t.Context()
	if c.rand.Float64() < c.r.cancel && (k.verb != timeout || k.life > time.Hour) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.rand.Int64N(int64(8*time.Millisecond))))
		defer cancel()
	}
	c.do(ctx, k)
	if c.r.pause > 0 {
		time.Sleep(time.Duration(c.rand.Int64N(int64(c.r.pause))))
	}
}

// plan chooses what to create: some with a name, some under a key that others
// use as well, with the same body or another.
func (c *caller) plan(k *call) {
	k.verb, k.id = create, ""
	k.label = fmt.Sprintf("l%d", c.r.number.Add(1))
	if c.rand.IntN(2) == 0 {
		k.name = fmt.Sprintf("n%d", c.rand.IntN(3))
	}
	if c.rand.IntN(3) == 0 {
		k.key = fmt.Sprintf("k%d", c.r.number.Load()/24)
		k.label = fmt.Sprintf("%s-%d", k.key, c.rand.IntN(3)/2)
		k.name = "" // part of the body, which is to be the same
	}
	if c.r.short > 0 && c.rand.IntN(8) == 0 && k.key == "" {
		k.life = c.r.short + time.Duration(c.rand.Int64N(int64(c.r.short)))
	}
}

// finish looks at everything once more: what was to end by itself has, and the
// rest is destroyed.
func (c *caller) finish() {
	ctx := c.r.t.Context()
	w := c.r.worlds[c.tenant]
	c.do(ctx, &call{client: c.n, tenant: c.tenant, verb: list, all: true})
	for _, id := range slices.Clone(w.ids) {
		k := &call{client: c.n, tenant: c.tenant, verb: get, id: id}
		c.do(ctx, k)
		for deadline := time.Now().Add(2 * c.r.patient); k.one.state != "ended" && k.one.expires != 0 && time.Until(time.Unix(0, k.one.expires)) < 30*time.Minute && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
			k = &call{client: c.n, tenant: c.tenant, verb: get, id: id}
			c.do(ctx, k)
		}
		for _, v := range []verb{read, destroy, get, destroy} {
			if v != read || k.one.state == "running" {
				c.do(ctx, &call{client: c.n, tenant: c.tenant, verb: v, id: id, path: "f0"})
			}
		}
	}
	c.do(ctx, &call{client: c.n, tenant: c.tenant, verb: list})
}

// do makes the call and notes what came of it.
func (c *caller) do(ctx context.Context, k *call) {
	k.n, k.life = int(c.r.number.Add(1)), k.life.Truncate(time.Millisecond) // as the wire has it
	if k.verb == write {
		k.value = fmt.Sprintf("v%d", k.n)
	}
	k.from, k.wall = time.Since(c.r.start), time.Now().UnixNano()
	err := c.call(ctx, k)
	k.to = time.Since(c.r.start)
	if err != nil {
		k.kind, k.message = sandbox.KindOf(err), err.Error()
		var e *sandbox.Error
		_, hurried := ctx.Deadline()
		switch {
		case errors.As(err, &e) && e.Op == "connect" && e.Kind == sandbox.KindUnavailable:
			// net/http sends a request with an Idempotency-Key again when the
			// connection breaks: that this one was refused says nothing of the first.
			k.unreached, k.lost = k.key == "", k.key != ""
			time.Sleep(50 * time.Millisecond) // while the server is down
		case ctx.Err() != nil, hurried && k.kind == sandbox.KindTimeout, k.kind == sandbox.KindUnavailable, k.kind == sandbox.KindCanceled,
			k.verb == create && k.kind == sandbox.KindGone: // destroyed while it was made
			k.lost = true
		}
	}
	c.r.mu.Lock()
	c.r.calls = append(c.r.calls, k)
	c.r.mu.Unlock()
	w := c.r.worlds[c.tenant]
	w.learn(k.one.id)
	for _, v := range k.many {
		w.learn(v.id)
	}
}

func (c *caller) call(ctx context.Context, k *call) error {
	sb := c.api.Sandbox(k.id)
	switch k.verb {
	case create:
		s, err := c.api.Create(ctx, client.CreateOptions{Name: k.name, Timeout: k.life, IdempotencyKey: k.key,
			Metadata: map[string]string{"label": k.label}, Backend: c.r.backend})
		if err == nil {
			k.one = viewOf(s.Created())
		}
		return err
	case get, lookup:
		info, err := c.api.Sandbox(k.id + k.name).Info(ctx)
		k.one = viewOf(info)
		return err
	case list:
		state := ""
		if k.all {
			state = "all"
		}
		for info, err := range c.api.List(ctx, client.ListOptions{State: state}) {
			if err != nil {
				return err
			}
			k.many = append(k.many, viewOf(info))
		}
		return nil
	case destroy:
		d, err := sb.Destroy(ctx)
		if err == nil {
			k.one = view{id: d.GetId(), state: d.GetState(), reason: d.GetReason(), receipt: digest(d.GetReceipt())}
		}
		return err
	case timeout:
		info, err := sb.SetTimeout(ctx, k.life, k.extend)
		k.one = viewOf(info)
		k.one.state = "" // of before or after: not promised
		return err
	case write:
		_, err := sb.WriteFile(ctx, k.path, strings.NewReader(k.value), 0)
		return err
	case read:
		b, err := sb.ReadFileBytes(ctx, k.path, 1<<10)
		k.value = string(b)
		if sandbox.KindOf(err) == sandbox.KindNotFound && !strings.Contains(err.Error(), "no such sandbox") {
			k.value, err = missing, nil
		}
		return err
	}
	return c.cat(ctx, sb, k)
}

// cat reads a file by running a program.
func (c *caller) cat(ctx context.Context, sb *client.Sandbox, k *call) error {
	var out bytes.Buffer
	exit, err := sb.Exec(ctx, client.Command{Path: "cat", Args: []string{k.path}}, &out, nil)
	switch {
	case err != nil:
	case exit.Reason != sandbox.ReasonDone:
		k.cut = true
	case exit.Code == 0:
		k.value = out.String()
	default:
		k.value = missing
	}
	return err
}

// viewOf keeps what the model knows about.
func viewOf(s *v1.Sandbox) view {
	if s == nil {
		return view{}
	}
	v := view{id: s.GetId(), label: s.GetMetadata()["label"], name: s.GetName(), state: s.GetState(), reason: s.GetReason(), receipt: digest(s.GetReceipt()), created: s.GetCreatedAt().AsTime().UnixNano()}
	if s.GetExpiresAt() != nil {
		v.expires = s.GetExpiresAt().AsTime().UnixNano()
	}
	return v
}

// digest is the same for the same receipt only.
func digest(r *v1.Receipt) string {
	if r == nil {
		return ""
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return err.Error()
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}
