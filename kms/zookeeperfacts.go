package kms

import (
	"context"
	"errors"

	"claviger/zookeeper"
)

// ZooKeeperUse describes data that nodes share in ZooKeeper, from the view of one server.
type ZooKeeperUse struct {
	What     string // "signer secrets" or "delegation tokens"
	Ensemble string // servers and chroot
	Property string // that sets how this server logs in: none or sasl
	Login    bool   // by SASL
	Exists   bool   // the nodes exist
	Err      error  // the nodes cannot be read, or everybody may read them although this server uses SASL
}

// ZooKeeper reads the nodes that this server would use in ZooKeeper. It makes no node. If the signer secrets cannot be
// read, the tokens, which are behind the same connection, are not tried.
func (s *Service) ZooKeeper(ctx context.Context) (uses []ZooKeeperUse, err error) {
	c := &cluster{}
	defer func() { err = errors.Join(err, c.Close()) }()
	r := &reader{conf: s.Conf}
	tokens, e := r.sharedTokens(c)
	if r.err != nil {
		return nil, r.err
	}
	client, err := c.openSigners(s.Conf, s.Log)
	if err != nil {
		return nil, err
	}
	use := func(what string, e ensemble) ZooKeeperUse {
		auth := s.Conf.String(e.prefix + e.auth)
		at, _ := zookeeper.ParseEnsemble(s.Conf.String(e.prefix + e.servers)) // connecting has parsed it
		return ZooKeeperUse{What: what, Ensemble: at.String() + at.Chroot, Property: e.prefix + e.auth,
			Login: auth == "sasl" || auth == "kerberos"}
	}
	if client != nil {
		u := use("signer secrets", signerConnection)
		_, u.Exists, u.Err = c.signers.SignerSecrets(ctx)
		uses, e = append(uses, u), signerConnection // tokens use the same connection
	}
	if !tokens || len(uses) > 0 && uses[0].Err != nil {
		return uses, nil
	}
	if err := c.openTokens(s.Conf, s.Log, client, e); err != nil {
		return uses, err
	}
	u := use("delegation tokens", e)
	keys, err := c.tokens.MasterKeys(ctx)
	u.Exists, u.Err = len(keys) > 0, err
	return append(uses, u), nil
}
