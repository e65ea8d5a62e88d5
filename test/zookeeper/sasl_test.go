package zookeeper

import (
	"context"

	"claviger/gssapi"
	"claviger/zookeeper"
)

// initiator returns the client side of Kerberos, with a keytab.
func initiator(keytab, principal, target string) (zookeeper.Initiator, error) {
	return gssapi.NewInitiator(gssapi.InitiatorConfig{Keytab: keytab, Principal: principal,
		Target: target, Mutual: true})
}

// initiate returns open as a function of the server's host. The host is not used, because open has the server's
// principal already.
func initiate(open func() (zookeeper.Initiator, error)) func(context.Context, string) (zookeeper.Initiator, error) {
	return func(context.Context, string) (zookeeper.Initiator, error) { return open() }
}
