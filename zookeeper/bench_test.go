package zookeeper

import (
	"sync/atomic"
	"testing"
	"time"

	"claviger/internal/zktest"
	"claviger/metastore"
	"claviger/secret"
)

// BenchmarkDelegation measures the lookup of a token, which each request with a token does: in one goroutine, in many
// goroutines with the same token, and in many goroutines with different tokens.
func BenchmarkDelegation(b *testing.B) {
	server := zktest.Start(b, zktest.Options{})
	d := tokens(b, open(b, server.Addr, nil))
	const many = 64
	for n := range int32(many) {
		if err := d.PutDelegation(b.Context(),
			metastore.Delegation{Sequence: n, Identifier: []byte{0, 0, 0, 0, 0, 0, 0, 0},
				Password: secret.Bytes("p"), Renew: time.Now()}); err != nil {
			b.Fatal(err)
		}
	}
	lookUp := func(b *testing.B, sequence int32) {
		if _, ok, err := d.Delegation(b.Context(), sequence); err != nil || !ok {
			b.Error(ok, err)
		}
	}
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			lookUp(b, 1)
		}
	})
	b.Run("one token, many goroutines", func(b *testing.B) {
		b.SetParallelism(many)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				lookUp(b, 1)
			}
		})
	})
	b.Run("many tokens, many goroutines", func(b *testing.B) {
		var next atomic.Int32
		b.SetParallelism(many)
		b.RunParallel(func(p *testing.PB) {
			sequence := next.Add(1) % many
			for p.Next() {
				lookUp(b, sequence)
			}
		})
	})
}
