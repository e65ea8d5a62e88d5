package zookeeper

import (
	"context"

	"claviger/gssapi"
	"claviger/zookeeper"
)

// initiator is a client's side of Kerberos, by a keytab.
func initiator(keytab, principal, target string) (zookeeper.Initiator, error) {
	return gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: keytab, Principal: principal,
		Target: target, Mutual: true})
}

// initiate makes one for whatever host.
func initiate(in func() (zookeeper.Initiator, error)) func(context.Context, string) (zookeeper.Initiator, error) {
	return func(context.Context, string) (zookeeper.Initiator, error) { return in() }
}
