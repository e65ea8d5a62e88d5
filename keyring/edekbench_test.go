package keyring

import (
	"context"
	"fmt"
	"testing"

	"claviger/provider"
	"claviger/provider/memory"
)

func benchRing(b *testing.B, primary provider.Provider) *Ring {
	cfg := config(b, primary)
	cfg.Policy = rules(b, "key.acl.k.GENERATE_EEK", "nn", "key.acl.k.DECRYPT_EEK", "u,nn",
		"hadoop.kms.blacklist.DECRYPT_EEK", "hdfs")
	cfg.QueueSize = 500
	r, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.Close() })
	return r
}

func BenchmarkDecrypt(b *testing.B) {
	p := memory.New(memory.Config{SequentialIDs: true})
	b.Cleanup(func() { _ = p.Close() })
	create(b, p, "k")
	r := benchRing(b, p)
	es, _ := newEDEKs(b, p, "k@0", 1)
	c := caller("u")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			dek, err := r.Decrypt(context.Background(), c, "k", true, es[0])
			if err != nil {
				b.Error(err)
				return
			}
			dek.Wipe()
		}
	})
}

func BenchmarkReencryptBatch1000(b *testing.B) {
	p := memory.New(memory.Config{SequentialIDs: true})
	b.Cleanup(func() { _ = p.Close() })
	create(b, p, "k")
	if _, err := p.Roll(context.Background(), "k", nil); err != nil {
		b.Fatal(err)
	}
	r := benchRing(b, p)
	es, _ := newEDEKs(b, p, "k@0", 1000)
	c := caller("nn")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReencryptBatch(context.Background(), c, "k", es); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGenerate(b *testing.B) {
	for _, n := range []int{1, 150, 500} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := memory.New(memory.Config{SequentialIDs: true})
			b.Cleanup(func() { _ = p.Close() })
			create(b, p, "k")
			r := benchRing(b, p)
			c := caller("nn")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Generate(context.Background(), c, "k", n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
