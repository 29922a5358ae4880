package store

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/firebreak-dev/firebreak/sandbox"
)

func benchStore(b *testing.B, rows int) (*Store, []sandbox.ID) {
	s := openTemp(b)
	ids := make([]sandbox.ID, rows)
	for i := range ids {
		sb := full()
		sb.Name = ""
		ids[i] = mustCreate(b, s.Tenant("acme"), sb).ID
	}
	return s, ids
}

func BenchmarkGet(b *testing.B) {
	for _, c := range []struct {
		name  string
		cache int
	}{{"cached", cacheEntries}, {"database", 0}} {
		b.Run(c.name, func(b *testing.B) {
			s, ids := benchStore(b, 100)
			s.cache.max = c.cache
			tn := s.Tenant("acme")
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := tn.Sandbox(context.Background(), ids[i%len(ids)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkList50(b *testing.B) {
	s, _ := benchStore(b, 200)
	for b.Loop() {
		if l, _, err := s.Tenant("acme").ListSandboxes(context.Background(), Filter{}, Page{}); err != nil || len(l) != 50 {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreate compares a durable create with its floor, one append and
// flush of the same size.
func BenchmarkCreate(b *testing.B) {
	b.Run("floor", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		buf := make([]byte, 3*4096)
		for b.Loop() {
			f.Write(buf)
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	create := func(b *testing.B, s *Store) {
		if _, err := s.Tenant("acme").CreateSandbox(context.Background(), Sandbox{ID: sandbox.NewID()}, Quota{}); err != nil {
			b.Error(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		s := openTemp(b)
		for b.Loop() {
			create(b, s)
		}
	})
	b.Run("64 writers", func(b *testing.B) {
		s := openTemp(b)
		b.SetParallelism(32) // times GOMAXPROCS
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				create(b, s)
			}
		})
	})
	b.Run("edit, not durable", func(b *testing.B) {
		s := openTemp(b)
		tn := s.Tenant("acme")
		id := mustCreate(b, tn, Sandbox{}).ID
		var n atomic.Int64
		for b.Loop() {
			if _, err := tn.EditSandbox(context.Background(), id, func(sb *Sandbox) error {
				sb.IdleTimeout = 1 + sb.IdleTimeout
				return nil
			}); err != nil {
				b.Fatal(err)
			}
			n.Add(1)
		}
	})
}
