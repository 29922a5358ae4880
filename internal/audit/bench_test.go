package audit

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
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
// Goals: lone p50 at most 1.5 floors; 64 callers at least 20 times the events
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
	frame := append(make([]byte, frameLen), appendPayload(nil, &Entry{Version: version, Position: 1, Record: r})...)
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
				mine := benchRecord() // of one sandbox, as a caller's are
				for range each {
					if _, err := l.Record(ctx, mine); err != nil {
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

// BenchmarkVerify checks a log of several segments with everything there is to
// check. Goal: at least 300 000 records a second on one core, in memory that
// does not grow with the log.
func BenchmarkVerify(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "log")
	l := open(b, dir, Options{SegmentBytes: 8 << 20})
	r := benchRecord()
	r.Class = sandbox.Flow
	const n = 100_000
	for range n {
		if _, err := l.Record(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	used := cpuTime(b)
	for b.Loop() {
		if r, err := VerifyLog(dir, VerifyOptions{Key: publicKey(b, dir)}); err != nil || r.Signed != n {
			b.Fatal(r, err)
		}
	}
	b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(b.N*n)/(cpuTime(b)-used).Seconds(), "records/cpu-s")
}

// cpuTime is what this process has used, on a machine that others use too.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSigning interleaves 64 callers on a log that signs a checkpoint every
// second, as it does by default, with the same on one that signs a hundred
// times as often and on one that hardly ever does. It reports what the first
// two take, relative to the last.
func BenchmarkSigning(b *testing.B) {
	intervals := []time.Duration{time.Second, 10 * time.Millisecond, time.Hour}
	logs := make([]*Log, len(intervals))
	for i, d := range intervals {
		logs[i] = open(b, filepath.Join(b.TempDir(), "log"), Options{Interval: d})
	}
	took := make([][]float64, len(logs))
	for b.Loop() {
		for i, l := range logs {
			at := time.Now()
			var callers sync.WaitGroup
			for range 64 {
				callers.Go(func() {
					for range 40 {
						if _, err := l.Record(context.Background(), benchRecord()); err != nil {
							b.Error(err)
						}
					}
				})
			}
			callers.Wait()
			took[i] = append(took[i], float64(time.Since(at)))
		}
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	never := median(took[2])
	b.ReportMetric(median(took[0])/never, "1s/never")
	b.ReportMetric(median(took[1])/never, "10ms/never")
}
