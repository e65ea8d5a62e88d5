package audit

import (
	"context"
	"path/filepath"
	"testing"
)

// BenchmarkDecrypt compares what a decrypt pays for its audit: Hadoop's line with
// its aggregation, the same without, and a record of the chain.
func BenchmarkDecrypt(b *testing.B) {
	for name, open := range map[string]func() Logger{
		"hadoop-aggregated": func() Logger { return NewHadoop(benchFile(b), 1e10) },
		"hadoop-each":       func() Logger { return NewHadoop(benchFile(b), 0) },
		"chain":             func() Logger { return chainAt(b, filepath.Join(b.TempDir(), "audit.json"), nil) },
	} {
		b.Run(name, func(b *testing.B) {
			l := open()
			e := event("k")
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.Log(context.Background(), e)
				}
			})
			b.StopTimer()
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkBegin is what an operation waits that must be audited: one sync of the
// disk, shared with whoever else waits.
func BenchmarkBegin(b *testing.B) {
	c := chainAt(b, filepath.Join(b.TempDir(), "audit.json"), nil)
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := c.Begin(context.Background(), event("k")); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func benchFile(b *testing.B) *File {
	f, err := OpenFile(filepath.Join(b.TempDir(), "kms-audit.log"), Rotation{})
	if err != nil {
		b.Fatal(err)
	}
	return f
}
