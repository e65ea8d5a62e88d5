package migrate_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"claviger/migrate"
)

// TestRulesHere: the plan checks, for each key, whether this server's rules grant the rights that users and the
// NameNode need. If the source grants such a right and this server does not, the check fails; for GET_METADATA
// it warns.
func TestRulesHere(t *testing.T) {
	const users, files, zones = "files of users here", "new files here", "new zones here"
	all := map[string][]string{"alice DECRYPT_EEK": {"a", "b"}, "hdfs GENERATE_EEK": {"a", "b"},
		"hdfs GET_METADATA": {"a", "b"}}
	without := func(what string, keys ...string) map[string][]string {
		m := map[string][]string{}
		for k, v := range all {
			m[k] = v
		}
		m[what] = keys
		return m
	}
	grantsAll := kms{proxies: []string{"alice", "hdfs"}}
	hdfs := migrate.NameNode{User: "hdfs"}
	for _, tt := range []struct {
		name     string
		source   kms
		here     map[string][]string // the keys that this server's rules grant, by "user REQUEST"
		nameNode migrate.NameNode
		check    string
		status   migrate.Status
		measured string
		ready    bool
	}{
		{"all rights, files", grantsAll, all, hdfs, files, migrate.OK, "may GENERATE_EEK on 2 of 2 keys", true},
		{"all rights, users", grantsAll, all, hdfs, users, migrate.OK, "alice, may DECRYPT_EEK on 2 of 2 keys",
			true},
		{"all rights, zones", grantsAll, all, hdfs, zones, migrate.OK, "may GET_METADATA on 2 of 2 keys", true},
		{"GENERATE_EEK on no key", grantsAll, without("hdfs GENERATE_EEK"), hdfs, files, migrate.Failure,
			"on 0 of 2 keys; not on a, b, which the source grants", false},
		{"GENERATE_EEK on one of two keys", grantsAll, without("hdfs GENERATE_EEK", "a"), hdfs, files,
			migrate.Failure, "on 1 of 2 keys; not on b, which the source grants", false},
		{"GENERATE_EEK on one key, and the source refuses the other too", kms{proxies: []string{"alice", "hdfs"},
			may: map[string][]string{"": {"a", "b"}, "alice": {"a", "b"}, "hdfs": {"a"}}},
			without("hdfs GENERATE_EEK", "a"), hdfs, files, migrate.OK,
			"on 1 of 2 keys; the source refuses the others too", true},
		{"GENERATE_EEK on one key, and the source's decision is unknown", kms{proxies: []string{"alice"}},
			without("hdfs GENERATE_EEK", "a"), hdfs, files, migrate.Failure,
			"not on b, for which the source's decision is not known", false},
		{"GET_METADATA on one of two keys", grantsAll, without("hdfs GET_METADATA", "a"), hdfs, zones,
			migrate.Warning, "not on b", true},
		{"DECRYPT_EEK on one of two keys", grantsAll, without("alice DECRYPT_EEK", "a"), hdfs, users,
			migrate.Failure, "on 1 of 2 keys; not on b, which the source grants", false},
		{"DECRYPT_EEK on one key, as at the source", kms{proxies: []string{"alice", "hdfs"},
			may: map[string][]string{"": {"a", "b"}, "alice": {"a"}, "hdfs": {"a", "b"}}},
			without("alice DECRYPT_EEK", "a"), hdfs, users, migrate.OK, "on 1 of 2 keys", true},
		{"the NameNode's principal has no user name", grantsAll, all,
			migrate.NameNode{Err: errors.New("no rule applied to nn/h@OTHER")}, files, migrate.Failure,
			"no rule applied", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newTestMigration(t)
			b.add(t, "a", 2)
			b.add(t, "b", 1)
			src := tt.source
			src.Source, src.blocks = b.source, b.source
			b.cfg.Source = &src
			tt.nameNode.From = "dfs.namenode.kerberos.principal"
			b.cfg.Probes = migrate.Probes{User: "mig", AsUser: "alice", NameNode: tt.nameNode,
				Rules: func(context.Context) (migrate.Check, migrate.Decide) {
					return migrate.Check{Name: "rules of this server"}, func(user, request, aclName string) (bool,
						string, string) {
						return slices.Contains(tt.here[user+" "+request], aclName), "a.rule", "let a.rule admit " + user
					}
				}}
			p, err := b.engine(t).Plan(t.Context())
			must(t, err)
			c := checkOf(t, p, tt.check)
			if c.Status != tt.status || !strings.Contains(c.Measured, tt.measured) ||
				(c.Status != migrate.OK) != (c.Cure != "") {
				t.Errorf("%+v, want %v, %q", c, tt.status, tt.measured)
			}
			if p.Ready() != tt.ready {
				t.Errorf("ready is %v: %+v", p.Ready(), p.Checks)
			}
		})
	}
}

// TestOwnRights: the plan warns if this server's own user may decrypt all keys here and not everybody may. Such rules
// were probably copied from the source, where that user needs the right. Rules for everybody are the operator's choice.
func TestOwnRights(t *testing.T) {
	for _, tt := range []struct {
		name string
		may  func(user, key string) bool // may DECRYPT_EEK here
		warn bool
	}{
		{"copied from the source", func(user, _ string) bool { return user == "mig" || user == "alice" }, true},
		{"not for the server's user", func(user, _ string) bool { return user == "alice" }, false},
		{"for one key only", func(user, key string) bool { return user == "mig" && key == "a" }, false},
		{"for everybody", func(string, string) bool { return true }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newTestMigration(t)
			b.add(t, "a", 1)
			b.add(t, "b", 1)
			b.cfg.Probes = migrate.Probes{User: "mig", Rules: func(context.Context) (migrate.Check, migrate.Decide) {
				return migrate.Check{Name: "rules of this server"}, func(user, request, aclName string) (bool, string,
					string) {
					return request != "DECRYPT_EEK" || tt.may(user, aclName), "a.rule", ""
				}
			}}
			p, err := b.engine(t).Plan(t.Context())
			must(t, err)
			warned := false
			for _, c := range p.Checks {
				if c.Name == "own user here" {
					warned = true
					if c.Status != migrate.Warning || !strings.Contains(c.Measured,
						"may DECRYPT_EEK on all 2 keys here") ||
						!strings.Contains(c.Cure, "take mig out of whitelist.key.acl.DECRYPT_EEK") {
						t.Errorf("%+v", c)
					}
				}
			}
			if warned != tt.warn || !p.Ready() {
				t.Errorf("warned %v, ready %v: %+v", warned, p.Ready(), p.Checks)
			}
		})
	}
}
