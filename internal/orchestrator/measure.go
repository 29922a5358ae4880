package orchestrator

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/sandbox"
)

// Sample is what a sandbox used at one moment, or up to it. Zero means unknown
// where the backend cannot tell.
type Sample struct {
	At     time.Time
	CPU    time.Duration // processor time since its creation
	Memory int64         // bytes, the boundary's included
	Disk   int64         // bytes of the writable layer
	PIDs   int
}

// Series is a sandbox's use over its life.
type Series struct {
	Samples []Sample      // oldest first
	Every   time.Duration // how far apart they are, about
}

// How use is measured. A sandbox's series is bounded however long it lives: one
// that is full loses every second sample, and grows half as fast from then on.
const (
	measureEvery = 5 * time.Second
	maxSamples   = 240
	keptSamples  = 60 // of a sandbox that has ended
	statusWait   = 2 * time.Second
)

// series collects the samples of a live sandbox.
type series struct {
	every time.Duration
	list  []Sample
}

// put adds s if its time has come.
func (r *series) put(s Sample) {
	if r.every == 0 {
		r.every = measureEvery
	}
	// Half an interval early is in time: who measures is not punctual.
	if n := len(r.list); n > 0 && s.At.Sub(r.list[n-1].At) < r.every/2 {
		return
	}
	if len(r.list) == maxSamples {
		r.thin()
	}
	r.list = append(r.list, s)
}

// thin keeps every second sample, the first among them.
func (r *series) thin() {
	half := r.list[:0]
	for i := 0; i < len(r.list); i += 2 {
		half = append(half, r.list[i])
	}
	r.list, r.every = half, 2*r.every
}

// pack is what is kept of it after the sandbox's end, some bytes a sample.
func (r series) pack() []byte {
	if len(r.list) == 0 {
		return nil
	}
	r.list = append([]Sample(nil), r.list...)
	for len(r.list) > keptSamples {
		r.thin()
	}
	b := binary.AppendVarint(nil, int64(r.every))
	var last Sample
	at := int64(0)
	for _, s := range r.list {
		ms := s.At.UnixMilli()
		for _, d := range []int64{ms - at, int64(s.CPU - last.CPU), s.Memory - last.Memory, s.Disk - last.Disk, int64(s.PIDs - last.PIDs)} {
			b = binary.AppendVarint(b, d)
		}
		last, at = s, ms
	}
	return b
}

// unpackSeries decodes what pack made. What does not decode was written by
// another version, and is left out.
func unpackSeries(b []byte) (s Series) {
	next := func() int64 {
		v, n := binary.Varint(b)
		if n <= 0 {
			b = nil
			return 0
		}
		b = b[n:]
		return v
	}
	s.Every = time.Duration(next())
	var last Sample
	at := int64(0)
	for len(b) > 0 {
		at += next()
		last.At = time.UnixMilli(at).UTC()
		last.CPU += time.Duration(next())
		last.Memory += next()
		last.Disk += next()
		whole := len(b) > 0
		last.PIDs += int(next())
		if whole {
			s.Samples = append(s.Samples, last)
		}
	}
	return s
}

// measure samples what every live sandbox uses, until Close.
func (o *Orchestrator) measure() {
	t := time.NewTicker(measureEvery)
	defer t.Stop()
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-t.C:
		}
		o.mu.Lock()
		lives := make([]*live, 0, len(o.lives))
		for _, l := range o.lives {
			lives = append(lives, l)
		}
		o.mu.Unlock()
		for _, l := range lives {
			if l.unmeasured() {
				l.take(o.ctx)
			}
			l.keepFlows(o.ctx)
		}
	}
}

// unmeasured reports whether the next sample is due.
func (l *live) unmeasured() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.series.list)
	return l.inst != nil && l.ending == nil && (n == 0 || time.Since(l.series.list[n-1].At) >= l.series.every-measureEvery/2)
}

// take samples the sandbox's use now.
func (l *live) take(ctx context.Context) Sample {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	u := l.sample(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := sampleOf(u, l.sampled)
	l.series.put(s)
	return s
}

// lastSeries is what is kept of the sandbox's use, which ended with u.
func (l *live) lastSeries(u sandbox.Usage) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := series{every: max(l.series.every, measureEvery), list: append(l.series.list, sampleOf(u, time.Now()))}
	return r.pack()
}

func sampleOf(u sandbox.Usage, at time.Time) Sample {
	return Sample{At: at.UTC(), CPU: u.CPU, Memory: u.Memory, Disk: u.Disk, PIDs: u.PIDs}
}

// Metrics returns what a sandbox used over its life, until now or its end. Of
// one that outlived a server it begins with the present one. Errors:
// KindNotFound.
//
// Cost: that of Get.
func (o *Orchestrator) Metrics(ctx context.Context, tenant sandbox.TenantID, ref string) (Sandbox, Series, error) {
	l := o.find(tenant, ref)
	sb, err := o.Get(ctx, tenant, ref)
	if err != nil {
		return Sandbox{}, Series{}, err
	}
	if l == nil || l.id != sb.ID || sb.State == store.Ended {
		return sb, unpackSeries(sb.Details.Series), nil
	}
	now := l.take(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Series{Samples: append([]Sample(nil), l.series.list...), Every: max(l.series.every, measureEvery)}
	if n := len(s.Samples); n == 0 || s.Samples[n-1].At.Before(now.At) {
		s.Samples = append(s.Samples, now)
	}
	return sb, s, nil
}
