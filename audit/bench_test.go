package audit

import (
	"context"
	"path/filepath"
	"testing"
)

// BenchmarkDecrypt compares the cost of the audit of a decrypt: Hadoop's line with aggregation, Hadoop's line without
// aggregation, and a record of the chain.
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

// BenchmarkBegin measures how long an operation that must be audited waits: for one sync of the disk, which several
// operations share.
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
