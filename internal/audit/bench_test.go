package audit

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func benchRecord() sandbox.Record {
	return sandbox.Record{Tenant: "default", Sandbox: sandbox.NewID(), Instance: sandbox.NewInstanceID(), Principal: "uid:0",
		Action: "process.exec", Outcome: sandbox.OutcomeAllowed, Object: "/usr/bin/python3",
		Detail: map[string]string{"args": "3", "cwd": "/work"}}
}

// BenchmarkAppend interleaves, in one run, the floor (one append and fdatasync
// of an encoded record) with a lone caller and with 64; it reports the ratios.
// Goals: lone p50 at most 1.3 floors; 64 callers at least 20 times the events
// per second of the floor.
func BenchmarkAppend(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "floor"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	l := open(b, b.TempDir(), Options{})
	r := benchRecord()
	r.Time = time.Now()
	frame := append(make([]byte, frameLen), appendPayload(nil, 1, &r)...)
	d := dataFile{f}
	off := int64(0)
	ctx := context.Background()
	var lone, many []float64
	var p50 []time.Duration
	for b.Loop() {
		const n = 40
		times := func(op func()) (median time.Duration) {
			all := make([]time.Duration, n)
			for i := range all {
				at := time.Now()
				op()
				all[i] = time.Since(at)
			}
			slices.Sort(all)
			return all[n/2]
		}
		floor := times(func() {
			d.WriteAt(frame, off)
			off += int64(len(frame))
			if err := d.Sync(); err != nil {
				b.Fatal(err)
			}
		})
		one := times(func() {
			if _, err := l.Record(ctx, benchRecord()); err != nil {
				b.Fatal(err)
			}
		})
		const callers, each = 64, 40
		at := time.Now()
		done := make(chan struct{})
		for range callers {
			go func() {
				for range each {
					if _, err := l.Record(ctx, benchRecord()); err != nil {
						b.Error(err)
					}
				}
				done <- struct{}{}
			}()
		}
		for range callers {
			<-done
		}
		perEvent := time.Since(at) / (callers * each)
		lone = append(lone, float64(one)/float64(floor))
		many = append(many, float64(floor)/float64(perEvent))
		p50 = append(p50, perEvent)
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	b.ReportMetric(median(lone), "lone/floor")
	b.ReportMetric(median(many), "speedup64")
	slices.Sort(p50)
	b.ReportMetric(float64(time.Second)/float64(p50[len(p50)/2]), "events/s")
}

func BenchmarkFlow(b *testing.B) {
	l := open(b, b.TempDir(), Options{})
	r := benchRecord()
	r.Class = sandbox.Flow
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.Record(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	dir := b.TempDir()
	l := open(b, dir, Options{})
	r := benchRecord()
	r.Class = sandbox.Flow
	const n = 10000
	for range n {
		if _, err := l.Record(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if h, err := Verify(dir); err != nil || h.Position != n {
			b.Fatal(h, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/record")
}
