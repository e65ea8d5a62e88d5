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

// RollingConfig is what RollingSecrets is made of.
type RollingConfig struct {
	Store  metastore.Signers
	Period time.Duration // token.validity, the same on every node
	// Poll is how often the store is looked at between rollovers, so that nodes
	// which came to differ agree again; 0: every minute.
	Poll time.Duration
	Log  *slog.Logger     // nil: none
	Now  func() time.Time // nil: time.Now
}

// RollingSecrets are secrets that several nodes share, Hadoop's among them, and
// that any of them replaces when it is time: the next secret, which all know,
// becomes the current one, and whoever is first writes a new next one.
//
// What signs and what is good follows from the clock and from what was last read,
// so requests wait for no store, and a store that is away for a while stops
// nothing.
type RollingSecrets struct {
	conf RollingConfig

	mu    sync.Mutex
	state metastore.SignerSecrets // Next is nil from our rollover until the store has another one
}

// NewRollingSecrets reads the secrets, or makes them where the store has none.
func NewRollingSecrets(ctx context.Context, conf RollingConfig) (*RollingSecrets, error) {
	if conf.Period <= 0 {
		return nil, claviger.Errorf("authn.NewRollingSecrets", claviger.Invalid, "",
			"a period of %v; token.validity must be a positive number of seconds", conf.Period)
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
	// The first swap may be lost to a node that starts at the same time; then what
	// it wrote is there to be read.
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
		"the store takes signer secrets and has none afterwards")
}

// adopt takes what the store has. A rollover that nobody has done is not done
// late, but at the next time that is whole periods after it, as Hadoop does: so
// nodes that start together agree.
func (r *RollingSecrets) adopt(s metastore.SignerSecrets) {
	if late := r.conf.Now().Sub(s.Rollover); late >= 0 {
		s.Rollover = s.Rollover.Add(late.Truncate(r.conf.Period) + r.conf.Period)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state = s
}

// Secrets returns the current secret, and with it the one before and the one
// that comes next: another node's clock may be ahead of ours.
func (r *RollingSecrets) Secrets() (current secret.Bytes, valid []secret.Bytes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shift()
	for _, s := range []secret.Bytes{r.state.Current, r.state.Previous, r.state.Next} {
		if s != nil {
			valid = append(valid, s)
		}
	}
	return r.state.Current, valid
}

// shift makes the next secret the current one when it is time; r.mu is held. It
// reports whether the store has to be told.
func (r *RollingSecrets) shift() (due bool) {
	if late := r.conf.Now().Sub(r.state.Rollover); late >= 0 && r.state.Next != nil {
		r.state.Previous, r.state.Current, r.state.Next = r.state.Current, r.state.Next, nil
		r.state.Rollover = r.state.Rollover.Add(late.Truncate(r.conf.Period) + r.conf.Period)
	}
	return r.state.Next == nil
}

// Run rolls the secrets over and follows what other nodes do, until ctx ends.
func (r *RollingSecrets) Run(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = r.conf.Poll
	for {
		wait := r.conf.Poll
		if err := r.round(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			wait = pause.NextBackOff()
			r.conf.Log.Warn("the secrets that sign cookies could not be compared with those of the other nodes; "+
				"those of before stay in use", "err", err, "again", wait)
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

// round does the rollover if it is due, and takes over what the store has if that
// is new.
func (r *RollingSecrets) round(ctx context.Context) error {
	r.mu.Lock()
	due, mine := r.shift(), r.state
	r.mu.Unlock()
	if due {
		mine.Next = randomSecret()
		won, err := r.conf.Store.SwapSignerSecrets(ctx, mine)
		if err != nil {
			return err
		}
		r.conf.Log.Info("rolled the secrets that sign cookies over", "first", won)
	}
	s, ok, err := r.conf.Store.SignerSecrets(ctx)
	switch {
	case err != nil:
		return err
	case !ok: // somebody removed them
		mine.Version = 0
		if mine.Next == nil {
			mine.Next = randomSecret()
		}
		if _, err := r.conf.Store.SwapSignerSecrets(ctx, mine); err != nil {
			return err
		}
		if s, ok, err = r.conf.Store.SignerSecrets(ctx); err == nil && !ok {
			err = errors.New("the secrets were removed from the store, and are not there again")
		}
		if err != nil {
			return err
		}
	case s.Version == mine.Version && !due:
		return nil
	}
	if due && !bytes.Equal(s.Current, mine.Current) {
		r.conf.Log.Warn("another node has other secrets for cookies than we had; cookies of ours that it does not "+
			"take are renewed by clients", "property", "hadoop.kms.authentication.token.validity, which must be the "+
			"same on all nodes")
	}
	r.adopt(s)
	return nil
}
