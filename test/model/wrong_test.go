package model

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"

	v1 "github.com/firebreak-dev/firebreak/api/gen/firebreak/v1"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// at is a call from one millisecond to another; to 0 is never answered.
func at(from, to int, c call) *call {
	c.from, c.to, c.tenant = time.Duration(from)*time.Millisecond, time.Duration(to)*time.Millisecond, pickTenant(c.tenant)
	if to == 0 {
		c.to, c.lost = time.Duration(from)*time.Millisecond, true
	}
	c.wall = epoch.Add(c.from).UnixNano()
	return &c
}

var epoch = time.Unix(1_700_000_000, 0)

func pickTenant(t string) string {
	if t == "" {
		return "default"
	}
	return t
}

// box1 and box2 are two sandboxes' answers, in a state.
func box1(state string) view { return boxOf("sb1", state) }
func box2(state string) view { return boxOf("sb2", state) }

func boxOf(id, state string) view {
	v := view{id: id, label: "l" + id, state: state, created: epoch.UnixNano(), expires: epoch.Add(defaultLife).UnixNano()}
	if state == "stopping" || state == "ended" {
		v.reason = byOperator
	}
	if state == "ended" {
		v.receipt = "r" + id
	}
	return v
}

func (v view) with(change func(*view)) view { change(&v); return v }

// made is an answered create of v; died an answered destroy.
func made(from, to int, v view) *call {
	return at(from, to, call{verb: create, label: v.label, name: v.name, one: v})
}
func died(from, to int, v view) *call {
	return at(from, to, call{verb: destroy, id: v.id, one: v.with(func(v *view) { v.label, v.name = "", "" })})
}
func told(from, to int, v view) *call { return at(from, to, call{verb: get, id: v.id, one: v}) }
func wrote(from, to int, s string) *call {
	return at(from, to, call{verb: write, id: "sb1", path: "f", value: s})
}
func saw(from, to int, s string) *call {
	return at(from, to, call{verb: read, id: "sb1", path: "f", value: s})
}

// TestCheckerTellsRightFromWrong: of each pair, the first history is one that a
// broken server would produce; the second differs only in what makes it right.
func TestCheckerTellsRightFromWrong(t *testing.T) {
	born, dead := made(1, 10, box1("running")), died(20, 30, box1("ended"))
	named := func(v view) view { return v.with(func(v *view) { v.name = "n" }) }
	expired := box1("ended").with(func(v *view) { v.reason = byTimeout; v.expires = epoch.Add(50 * time.Millisecond).UnixNano() })
	short := box1("running").with(func(v *view) { v.expires = expired.expires })
	shortly := at(1, 10, call{verb: create, label: "lsb1", life: 50 * time.Millisecond, one: short})
	keyed := func(from, to int, key, label string, v view) *call {
		return at(from, to, call{verb: create, key: key, label: label, one: v.with(func(v *view) { v.label = label })})
	}
	for _, c := range []struct {
		name         string
		wrong, right []*call
	}{
		{"running after an acknowledged destroy", []*call{born, dead, told(31, 32, box1("running"))}, []*call{born, dead, told(29, 32, box1("running"))}},
		{"back from stopping to running", []*call{born, dead, told(21, 22, box1("stopping")), told(23, 24, box1("running"))},
			[]*call{born, dead, told(21, 22, box1("running")), told(23, 24, box1("stopping"))}},
		{"back from running to creating", []*call{born, told(11, 12, box1("creating"))}, []*call{born, told(9, 12, box1("creating"))}},
		{"ends without a cause", []*call{born, told(11, 12, box1("ended"))}, []*call{born, dead, told(21, 40, box1("ended"))}},
		{"another receipt", []*call{born, dead, died(31, 32, box1("ended").with(func(v *view) { v.receipt = "other" }))}, []*call{born, dead, died(31, 32, box1("ended"))}},
		{"another reason", []*call{born, dead, told(31, 32, box1("ended").with(func(v *view) { v.reason = byTimeout }))}, []*call{born, dead, told(31, 32, box1("ended"))}},
		{"works after its end", []*call{born, dead, wrote(31, 32, "x")}, []*call{born, dead, wrote(29, 32, "x")}},
		{"works after it was refused as gone", []*call{born, dead, at(21, 22, call{verb: cat, id: "sb1", kind: sandbox.KindGone}), wrote(23, 24, "x")},
			[]*call{born, dead, wrote(21, 22, "x"), at(23, 24, call{verb: cat, id: "sb1", kind: sandbox.KindGone})}},
		{"gone without an end", []*call{born, at(11, 12, call{verb: cat, id: "sb1", kind: sandbox.KindGone})}, []*call{born, at(11, 12, call{verb: cat, id: "sb1", value: missing, path: "f"})}},
		{"forgotten", []*call{born, at(11, 12, call{verb: get, id: "sb1", kind: sandbox.KindNotFound})}, []*call{born, told(11, 12, box1("running"))}},
		{"missing from a list", []*call{born, at(11, 12, call{verb: list})}, []*call{born, at(11, 12, call{verb: list, many: []view{box1("running")}})}},
		{"listed after its end", []*call{born, dead, at(31, 32, call{verb: list, many: []view{box1("running")}})}, []*call{born, dead, at(31, 32, call{verb: list})}},
		{"two sandboxes of one name", []*call{made(1, 10, named(box1("running"))), made(11, 19, named(box2("running")))},
			[]*call{made(1, 10, named(box1("running"))), dead, made(21, 39, named(box2("running")))}},
		{"a name that is free is refused", []*call{made(1, 10, named(box1("running"))), dead, at(31, 32, call{verb: create, label: "l", name: "n", kind: sandbox.KindExists})},
			[]*call{made(1, 10, named(box1("running"))), dead, at(29, 32, call{verb: create, label: "l", name: "n", kind: sandbox.KindExists})}},
		{"a name leads to the wrong one", []*call{made(1, 10, named(box1("running"))), made(1, 10, box2("running")), at(11, 12, call{verb: lookup, name: "n", one: box2("running")})},
			[]*call{made(1, 10, named(box1("running"))), made(1, 10, box2("running")), at(11, 12, call{verb: lookup, name: "n", one: named(box1("running"))})}},
		{"a lost write", []*call{born, wrote(11, 12, "a"), wrote(13, 14, "b"), saw(15, 16, "a")}, []*call{born, wrote(11, 12, "a"), wrote(13, 14, "b"), saw(13, 16, "a")}},
		{"a write forgotten altogether", []*call{born, wrote(11, 12, "a"), saw(15, 16, missing)}, []*call{born, saw(10, 16, missing), wrote(11, 12, "a")}},
		{"a write without an answer comes and goes", []*call{born, wrote(11, 12, "a"), wrote(13, 0, "b"), saw(14, 15, "b"), saw(16, 17, "a")},
			[]*call{born, wrote(11, 12, "a"), wrote(13, 0, "b"), saw(14, 15, "a"), saw(16, 17, "b")}},
		{"a key makes two", []*call{keyed(1, 10, "k", "lsb1", box1("running")), keyed(11, 12, "k", "lsb1", boxOf("sb2", "running"))},
			[]*call{keyed(1, 10, "k", "lsb1", box1("running")), keyed(11, 12, "k", "lsb1", box1("running"))}},
		{"a key with another body", []*call{keyed(1, 10, "k", "lsb1", box1("running")), keyed(11, 12, "k", "other", boxOf("sb2", "running"))},
			[]*call{keyed(1, 10, "k", "lsb1", box1("running")), at(11, 12, call{verb: create, key: "k", label: "other", kind: sandbox.KindConflict})}},
		{"one more than the quota", []*call{born, made(1, 10, box2("running")), made(11, 12, boxOf("sb3", "running"))}, []*call{born, made(1, 10, box2("running")), dead, made(21, 32, boxOf("sb3", "running"))}},
		{"refused with room left", []*call{born, at(11, 12, call{verb: create, label: "x", kind: sandbox.KindCapacity})}, []*call{born, made(1, 10, box2("running")), at(11, 12, call{verb: create, label: "x", kind: sandbox.KindCapacity})}},
		{"a stranger is told", []*call{born, at(11, 12, call{tenant: "other", verb: get, id: "sb1", one: box1("running")})},
			[]*call{born, at(11, 12, call{tenant: "other", verb: get, id: "sb1", kind: sandbox.KindNotFound})}},
		{"a stranger may act", []*call{born, at(11, 12, call{tenant: "other", verb: write, id: "sb1", path: "f", value: "x"})},
			[]*call{born, at(11, 12, call{tenant: "other", verb: write, id: "sb1", path: "f", value: "x", kind: sandbox.KindNotFound})}},
		{"lives on when its time has come", []*call{shortly, told(1060, 1061, short)}, []*call{shortly, told(1040, 1041, short)}},
		{"ends before its time has come", []*call{shortly, told(40, 41, expired)}, []*call{shortly, told(51, 52, expired)}},
		{"ends though its time was moved", []*call{shortly, at(20, 30, call{verb: timeout, id: "sb1", life: 2 * time.Hour, one: short.with(func(v *view) { v.expires = epoch.Add(2*time.Hour + 25*time.Millisecond).UnixNano() })}), told(60, 61, expired)},
			[]*call{shortly, at(20, 51, call{verb: timeout, id: "sb1", life: 2 * time.Hour, kind: sandbox.KindGone}), told(60, 61, expired)}},
		{"an unexplained failure", []*call{born, at(11, 12, call{verb: write, id: "sb1", kind: sandbox.KindInternal})}, []*call{born, at(11, 0, call{verb: write, id: "sb1", kind: sandbox.KindUnavailable})}},
		{"a lost destroy that comes and goes", []*call{born, at(20, 0, call{verb: destroy, id: "sb1"}), told(21, 22, box1("ended")), told(23, 24, box1("running"))},
			[]*call{born, at(20, 0, call{verb: destroy, id: "sb1"}), told(21, 22, box1("running")), told(23, 24, box1("ended"))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for verdict, calls := range map[porcupine.CheckResult][]*call{porcupine.Illegal: c.wrong, porcupine.Ok: c.right} {
				for i, k := range calls {
					k.n = i
				}
				h := &history{start: epoch, calls: calls, limit: 2, patient: time.Second}
				if got := h.check(); got != verdict {
					t.Errorf("%s, want %s: %s\n%s", got, verdict, calls, strings.Join(wrong(h.project()), "\n"))
				}
			}
		})
	}
}

// saboteur stands between the clients and a right server and breaks one thing.
type saboteur func(next http.Handler) http.Handler

// answer calls next and returns what it said.
func answer(next http.Handler, r *http.Request) *httptest.ResponseRecorder {
	r.Header.Del("Accept-Encoding")
	w := httptest.NewRecorder()
	next.ServeHTTP(w, r)
	return w
}

func pass(w http.ResponseWriter, from *httptest.ResponseRecorder, body []byte) {
	for k, v := range from.Header() {
		w.Header()[k] = v
	}
	w.Header().Del("Content-Length")
	w.WriteHeader(from.Code)
	_, _ = w.Write(body)
}

// on breaks one procedure: how is given each answer's body.
func on(method string, how func(r *http.Request, asked, answered []byte) []byte) saboteur {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasSuffix(r.URL.Path, "/"+method) {
				next.ServeHTTP(w, r)
				return
			}
			asked, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(asked))
			a := answer(next, r)
			body := a.Body.Bytes()
			if a.Code == http.StatusOK {
				body = how(r, asked, body)
			}
			pass(w, a, body)
		})
	}
}

// TestCheckerFindsBrokenServers: each server is right but for one thing, and
// the same clients that find nothing wrong elsewhere find it. What they do, and
// when, is chance: not each of their histories shows what is broken, so that
// there are a few of each.
func TestCheckerFindsBrokenServers(t *testing.T) {
	var mu sync.Mutex
	seen := map[string][]byte{}
	stale := func(r *http.Request, asked, answered []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		key := r.URL.Path + r.Header.Get("Authorization") + string(asked)
		if old, ok := seen[key]; ok {
			return old
		}
		seen[key] = answered
		return answered
	}
	var writes atomic.Int64
	for name, c := range map[string]struct {
		sabotage saboteur
		quota    int // of the server; the model's is 4
	}{
		"stale get":  {on("GetSandbox", stale), 4},
		"stale list": {on("ListSandboxes", stale), 4},
		"a new receipt each time": {on("DestroySandbox", func(_ *http.Request, _, answered []byte) []byte {
			m := &v1.DestroySandboxResponse{}
			if proto.Unmarshal(answered, m) != nil || m.Receipt == nil {
				return answered
			}
			m.Receipt.Time.Nanos ^= int32(time.Now().Nanosecond() & 0xfff)
			b, _ := proto.Marshal(m) // it was unmarshalled just now
			return b
		}), 4},
		"a write in five goes astray": {func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut && writes.Add(1)%5 == 0 {
					r.URL.RawQuery = "path=astray"
				}
				next.ServeHTTP(w, r)
			})
		}, 4},
		"keys are ignored": {func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Header.Del("Idempotency-Key")
				next.ServeHTTP(w, r)
			})
		}, 4},
		"the quota is not kept": {func(next http.Handler) http.Handler { return next }, 40},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(7); ; seed++ {
				h := newRecorder(t, load{tenants: newNode(t, c.quota, c.sabotage).clients(), clients: 4, calls: 60, limit: 4, alive: 5,
					patient: 20 * time.Second, seed: seed}).run()
				got := h.check()
				if got == porcupine.Illegal {
					return
				}
				t.Logf("seed %d: %s: %s", seed, got, h.words())
				if seed == 12 {
					t.Fatal("no history of six shows it")
				}
			}
		})
	}
}
