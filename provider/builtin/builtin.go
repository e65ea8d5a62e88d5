// Package builtin is the one list of providers.
package builtin

import (
	"context"
	"crypto/tls"
	"time"

	"claviger/metastore"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/provider/jceks"
	"claviger/provider/keytrustee"
	"claviger/provider/kmsclient"
)

// Options has what some providers need besides their URI.
type Options struct {
	// Store opens the node's metastore, for providers that keep metadata outside of their keys. It may be called more
	// than once and returns the same store. If there is no store yet, it calls create before it makes one. If create
	// returns an error, Store makes none and returns the error.
	Store func(ctx context.Context, create func(ctx context.Context, uri string) error) (metastore.Store, error)
	// Access is what an HSM provider may do.
	Access hsm.Access
	// Careful is hsm.Options.Careful.
	Careful bool
	// ClientTLS makes the configuration for https to another KMS or a Key Trustee Server; nil trusts the system's
	// roots.
	ClientTLS func(provider.Env) (*tls.Config, error)
	// ClientKerberos begins a login by Kerberos at another KMS. If it is nil, calls to a KMS that requires Kerberos
	// fail.
	ClientKerberos kmsclient.Negotiate
	// StoreName returns the name of the node's metastore, which is sent to another KMS: kmsclient.Options.Store.
	StoreName func() string
}

// Registry returns all providers by URI scheme.
func Registry(o Options) *provider.Registry {
	return provider.NewRegistry(append(jceks.Schemes(),
		kmsclient.Scheme(o.ClientTLS, o.ClientKerberos, o.StoreName),
		keytrustee.Scheme(o.ClientTLS),
		provider.Scheme{Name: "cloudera.hsmkp", Open: o.hsm},
		provider.Scheme{Name: "pkcs11", Open: o.hsm},
	)...)
}

// hsmMaxWait is how long a server waits for an HSM before it begins without the HSM.
const hsmMaxWait = 5 * time.Second

// hsm opens an HSM and the node's metastore.
func (o Options) hsm(ctx context.Context, uri string, env provider.Env) (provider.Provider, error) {
	opts := hsm.Options{Store: o.Store, Access: o.Access, Careful: o.Careful}
	if o.Access == hsm.Serve {
		opts.MaxWait = hsmMaxWait
	}
	p, err := hsm.Open(ctx, uri, env, opts)
	if err != nil {
		return nil, err // not p: an interface that holds a nil pointer is not nil
	}
	return p, nil
}
