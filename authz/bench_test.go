package authz_test

import (
	"testing"

	"claviger/authz"
)

// decryptRules has each kind of rule that a decision about DECRYPT_EEK applies.
func decryptRules() *authz.Policy {
	p, _ := authz.Parse([]authz.Property{
		{Name: "hadoop.kms.acl.DECRYPT_EEK", Value: "alice,bob staff,ops"},
		{Name: "hadoop.kms.blacklist.DECRYPT_EEK", Value: "hdfs supergroup"},
		{Name: "key.acl.k.ALL", Value: "bob staff"},
		{Name: "default.key.acl.DECRYPT_EEK", Value: "spark staff"},
		{Name: "whitelist.key.acl.DECRYPT_EEK", Value: "spark"},
	})
	return p
}

func staffGroups() func(string) []string {
	groups := []string{"users", "ops", "staff"}
	return func(string) []string { return groups }
}

// BenchmarkDecide measures the rules for a decrypt: once at operation level, once at key level.
func BenchmarkDecide(b *testing.B) {
	p, groups, who := decryptRules(), staffGroups(), user("carol")
	b.ReportAllocs()
	for b.Loop() {
		if !p.May(authz.DecryptEEK, who, groups) || !p.MayKey("k", authz.KeyDecryptEEK, who, groups, nil) {
			b.Fatal("denied")
		}
	}
}

// TestDecisionAllocatesNothing: only Explain makes the texts of an explanation.
func TestDecisionAllocatesNothing(t *testing.T) {
	p, groups := decryptRules(), staffGroups()
	for _, name := range []string{"carol", "hdfs", "bob"} {
		who := user(name)
		refusals := 0
		refused := func(authz.KeyOp) { refusals++ }
		allocs := testing.AllocsPerRun(100, func() {
			p.May(authz.DecryptEEK, who, groups)
			for _, key := range []string{"k", "another"} {
				p.MayKey(key, authz.KeyDecryptEEK, who, groups, refused)
				p.MayKey(key, authz.KeyManagement, who, nil, refused)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations a decision", name, allocs)
		}
		if refusals == 0 {
			t.Errorf("%s: nothing was refused", name)
		}
	}
}
