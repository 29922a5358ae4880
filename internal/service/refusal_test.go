package service

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// ear hears records, or refuses them.
type ear struct {
	mu    sync.Mutex
	recs  []sandbox.Record
	fails error
	slow  time.Duration
}

func (e *ear) Record(ctx context.Context, r sandbox.Record) (sandbox.Position, error) {
	select {
	case <-time.After(e.slow):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fails != nil {
		return 0, e.fails
	}
	e.recs = append(e.recs, r)
	return sandbox.Position(len(e.recs)), nil
}

// told adds up what was recorded of one action.
func (e *ear) told(t *testing.T, action string) (refusals, records int) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.recs {
		if r.Action != action {
			continue
		}
		n := 1
		if c := r.Detail["count"]; c != "" {
			var err error
			if n, err = strconv.Atoi(c); err != nil || r.Detail["since"] == "" || r.Detail["sources"] == "" {
				t.Errorf("%+v", r)
			}
		}
		refusals, records = refusals+n, records+1
	}
	return refusals, records
}

func (e *ear) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fails = err
}

func newRefusing(e *ear) *Service {
	access, err := declaredAccess()
	if err != nil {
		panic(err)
	}
	return &Service{access: access, refusals: newRefusals(e, slog.New(slog.DiscardHandler))}
}

func fromNowhere(i int) Refusal {
	return Refusal{Method: "SandboxService.CreateSandbox", Source: "10.0." + strconv.Itoa(i/250%250) + "." + strconv.Itoa(i%250),
		Err: sandbox.Errorf("authenticate", sandbox.KindUnauthenticated, "no API key")}
}

// A day's flood of wrong keys costs bounded evidence, and none of it is lost.
func TestFloodOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{}
		s := newRefusing(e)
		const n = 200_000
		for i := range n {
			s.Refused(t.Context(), fromNowhere(i))
			time.Sleep(24 * time.Hour / n)
		}
		s.Refused(t.Context(), Refusal{Method: "KeyService.ListKeys", Principal: auth.Principal{Tenant: "acme", ID: "k1"}, Err: sandbox.Errorf("x", sandbox.KindDenied, "scope")})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		refusals, records := e.told(t, "auth.failure")
		if refusals != n {
			t.Errorf("%d refusals were told of, want %d", refusals, n)
		}
		// 100 at once, 6 a minute and the minute's count.
		if most := 100 + 24*60*(6+1) + 2; records > most {
			t.Errorf("%d records, want at most %d", records, most)
		}
		if e.recs[0].Tenant != sandbox.DefaultTenant || e.recs[0].Detail["why"] != "no API key" || e.recs[0].Object != "10.0.0.0" {
			t.Errorf("%+v", e.recs[0])
		}
		if refusals, _ := e.told(t, "api.refuse"); refusals != 1 {
			t.Errorf("the flood of strangers drowned a tenant's own refusal")
		}
	})
}

// What a log refuses is counted, and recorded when it does so no more.
func TestRefusalsOutliveARefusingLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{fails: errors.New("no space")}
		s := newRefusing(e)
		for i := range 50 {
			s.Refused(t.Context(), fromNowhere(i))
		}
		time.Sleep(5 * countEvery) // it is tried again and again
		if refusals, _ := e.told(t, "auth.failure"); refusals != 0 {
			t.Fatalf("%d", refusals)
		}
		e.fail(nil)
		time.Sleep(2 * countEvery)
		if refusals, records := e.told(t, "auth.failure"); refusals != 50 || records != 1 {
			t.Errorf("%d refusals in %d records", refusals, records)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A log that hangs holds nobody up for long.
func TestRefusalsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &ear{slow: time.Hour}
		s := newRefusing(e)
		var wg sync.WaitGroup
		began := time.Now()
		for i := range 1000 {
			wg.Go(func() { s.Refused(t.Context(), fromNowhere(i)) })
		}
		wg.Wait()
		if took := time.Since(began); took > refusalWait {
			t.Errorf("refusing took %v", took)
		}
		began = time.Now()
		if err := s.Close(); err != nil || time.Since(began) > 2*refusalWait {
			t.Errorf("close took %v, %v", time.Since(began), err)
		}
	})
}
