package authn

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"claviger"
	"claviger/metastore"
	"claviger/secret"
)

// RollingConfig is the configuration of RollingSecrets.
type RollingConfig struct {
	Store  metastore.Signers
	Period time.Duration // token.validity, the same on each node
	// Poll is the interval between reads of the store when no rollover is due. A read makes nodes with different
	// secrets agree again. 0: each minute.
	Poll time.Duration
	Log  *slog.Logger     // nil: none
	Now  func() time.Time // nil: time.Now
}

// RollingSecrets are secrets that several nodes share. Some of the nodes may be nodes of Hadoop's KMS. All nodes have
// the current secret and the next one. At the end of a period, the next secret becomes the current one on each node.
// The first node that notices the end writes a new next secret to the store.
//
// The clock, and the secrets that were last read, decide which secret signs and which are valid. So no request waits
// for the store, and a store that fails for a while stops no request.
type RollingSecrets struct {
	conf RollingConfig

	mu    sync.Mutex
	state metastore.SignerSecrets // Next is nil from a rollover until a new next secret is in the store
	valid []secret.Bytes          // those of state, for Secrets; nil: not listed yet. It is replaced as a whole
}

// NewRollingSecrets reads the secrets from the store. If there are none, it makes them.
func NewRollingSecrets(ctx context.Context, conf RollingConfig) (*RollingSecrets, error) {
	if conf.Period <= 0 {
		return nil, claviger.Errorf("authn.NewRollingSecrets", claviger.Invalid, "",
			"the period is %v; token.validity must be a positive number of seconds", conf.Period)
	}
	if conf.Now == nil {
		conf.Now = time.Now
	}
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if conf.Poll <= 0 {
		conf.Poll = time.Minute
	}
	r := &RollingSecrets{conf: conf}
	// Another node may start at the same time and write first. Then the swap fails, and the next read returns the
	// other node's secrets.
	for range 3 {
		s, ok, err := conf.Store.SignerSecrets(ctx)
		if err != nil {
			return nil, err
		}
		if ok {
			r.adopt(s)
			return r, nil
		}
		first := metastore.SignerSecrets{Next: randomSecret(), Current: randomSecret(),
			Rollover: time.UnixMilli(conf.Now().Add(conf.Period).UnixMilli())}
		if _, err := conf.Store.SwapSignerSecrets(ctx, first); err != nil {
			return nil, err
		}
	}
	return nil, claviger.Errorf("authn.NewRollingSecrets", claviger.Unavailable, "",
		"the store accepts signer secrets, but does not return them")
}

// adopt replaces the state by the secrets of the store. If their rollover time has passed, the rollover is moved by
// whole periods into the future, as in Hadoop. So nodes that start together agree on the time.
func (r *RollingSecrets) adopt(s metastore.SignerSecrets) {
	if late := r.conf.Now().Sub(s.Rollover); late >= 0 {
		s.Rollover = s.Rollover.Add(late.Truncate(r.conf.Period) + r.conf.Period)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state, r.valid = s, nil
}

// Secrets returns the current secret. The previous and the next secret are valid too, because another node's clock
// may be behind or ahead.
func (r *RollingSecrets) Secrets() (current secret.Bytes, valid []secret.Bytes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shift()
	if r.valid == nil {
		for _, s := range []secret.Bytes{r.state.Current, r.state.Previous, r.state.Next} {
			if s != nil {
				r.valid = append(r.valid, s)
			}
		}
	}
	return r.state.Current, r.valid
}

// shift makes the next secret the current one if its time has come. It reports whether the store needs a new next
// secret. The caller holds r.mu.
func (r *RollingSecrets) shift() (due bool) {
	if late := r.conf.Now().Sub(r.state.Rollover); late >= 0 && r.state.Next != nil {
		r.state.Previous, r.state.Current, r.state.Next, r.valid = r.state.Current, r.state.Next, nil, nil
		r.state.Rollover = r.state.Rollover.Add(late.Truncate(r.conf.Period) + r.conf.Period)
	}
	return r.state.Next == nil
}

// Run rolls the secrets over, and adopts the changes of other nodes, until ctx ends.
func (r *RollingSecrets) Run(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.conf.Poll
	for {
		wait := r.conf.Poll
		if err := r.syncWithStore(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			wait = pause.NextBackOff()
			r.conf.Log.Warn("the secrets that sign cookies could not be read from the store or written to it; the "+
				"present secrets stay in use", "err", err, "again", wait)
		} else {
			pause.Reset()
			r.mu.Lock()
			wait = min(wait, r.state.Rollover.Sub(r.conf.Now()))
			r.mu.Unlock()
		}
		select {
		case <-time.After(max(wait, time.Millisecond)):
		case <-ctx.Done():
			return
		}
	}
}

// syncWithStore does the rollover if it is due, then adopts the secrets of the store if they have changed.
func (r *RollingSecrets) syncWithStore(ctx context.Context) error {
	r.mu.Lock()
	due, own := r.shift(), r.state
	r.mu.Unlock()
	if due {
		own.Next = randomSecret()
		first, err := r.conf.Store.SwapSignerSecrets(ctx, own)
		if err != nil {
			return err
		}
		r.conf.Log.Info("rolled the secrets that sign cookies over", "by this node", first)
	}
	s, ok, err := r.conf.Store.SignerSecrets(ctx)
	switch {
	case err != nil:
		return err
	case !ok: // the secrets were removed from the store
		own.Version = 0
		if _, err := r.conf.Store.SwapSignerSecrets(ctx, own); err != nil {
			return err
		}
		if s, ok, err = r.conf.Store.SignerSecrets(ctx); err == nil && !ok {
			err = errors.New("the secrets were removed from the store, and writing them again had no effect")
		}
		if err != nil {
			return err
		}
	case s.Version == own.Version && !due:
		return nil
	}
	if due && !bytes.Equal(s.Current, own.Current) {
		r.conf.Log.Warn("another node had other secrets for cookies than this node; a client whose cookie is refused "+
			"logs in again", "property", "hadoop.kms.authentication.token.validity, which must be the "+
			"same on all nodes")
	}
	r.adopt(s)
	return nil
}
