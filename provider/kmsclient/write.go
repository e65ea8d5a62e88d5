package kmsclient

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/secret"
)

// Create makes a key.
func (p *Provider) Create(ctx context.Context, spec provider.Spec) (claviger.KeyVersion, error) {
	var none claviger.KeyVersion
	if p.ctx.Err() != nil {
		return none, closedError(opCreate, spec.Name)
	}
	// Check the spec here, because Hadoop's KMS replaces a length of 0 by a default.
	if err := provider.CheckSpec(opCreate, spec); err != nil {
		return none, err
	}
	in := kmswire.AppendCreate(nil, kmswire.Create{Name: spec.Name, Cipher: spec.Cipher, Length: spec.BitLength,
		Description: spec.Description, Attributes: spec.Attributes, Material: spec.Material})
	defer clear(in)
	body, err := p.do(ctx, request{op: opCreate, key: spec.Name, method: http.MethodPost, path: "/v1/keys", body: in,
		status: http.StatusCreated})
	if err != nil {
		return none, err
	}
	defer clear(body)
	v, err := read(opCreate, spec.Name, body, kmswire.ReadKeyVersion)
	if err != nil {
		return none, err
	}
	return checkVersion(opCreate, spec.Name, v, spec.BitLength)
}

// Roll adds a version.
func (p *Provider) Roll(ctx context.Context, key string, material secret.Bytes) (claviger.KeyVersion, error) {
	var none claviger.KeyVersion
	if p.ctx.Err() != nil {
		return none, closedError(opRoll, key)
	}
	if key == "" {
		return none, claviger.E(opRoll, claviger.KeyNotFound, key, nil)
	}
	// Request the length before the rollover, because nothing may fail after it. The answer to the rollover shows the
	// length only if the user may read the material.
	bits, err := p.bitLength(ctx, opRoll, key)
	if err != nil {
		return none, err
	}
	if material != nil {
		if err := provider.CheckMaterial(opRoll, key, bits, material); err != nil {
			return none, err
		}
	}
	in := kmswire.AppendRoll(nil, material)
	defer clear(in)
	body, err := p.do(ctx, request{op: opRoll, key: key, method: http.MethodPost, path: keyPath(key, ""), body: in,
		status: http.StatusOK})
	if err != nil {
		return none, err
	}
	defer clear(body)
	p.invalidate(ctx, key)
	v, err := read(opRoll, key, body, kmswire.ReadKeyVersion)
	if err != nil {
		return none, err
	}
	return checkVersion(opRoll, key, v, bits)
}

// Delete deletes a key.
func (p *Provider) Delete(ctx context.Context, key string) error {
	if p.ctx.Err() != nil {
		return closedError(opDelete, key)
	}
	if key == "" {
		return claviger.E(opDelete, claviger.KeyNotFound, key, nil)
	}
	if _, err := p.do(ctx, request{op: opDelete, key: key, method: http.MethodDelete, path: keyPath(key, ""),
		status: http.StatusOK, noBody: true}); err != nil {
		return err
	}
	p.invalidate(ctx, key)
	return nil
}

// invalidateTimeout bounds how long a host that does not answer delays a rollover.
const invalidateTimeout = 5 * time.Second

// invalidate makes each host drop the key from its caches, as Hadoop's client does after a rollover and a deletion. A
// host that cannot be reached is not an error, because the key has been changed, and the host's caches expire.
func (p *Provider) invalidate(ctx context.Context, key string) {
	if len(p.hosts) == 1 {
		return // the host that changed the key has updated its caches
	}
	ctx, cancel := context.WithTimeout(ctx, invalidateTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	var wg sync.WaitGroup
	for _, h := range p.hosts {
		wg.Go(func() {
			r := request{op: "kmsclient.invalidate", key: key, method: http.MethodPost,
				path: keyPath(key, "/_invalidatecache"), status: http.StatusOK, noBody: true}
			if _, f := p.attempt(ctx, h, r); f != nil {
				p.opt.Log.Warn("KMS host may serve the key's old versions until its caches expire",
					"host", h.base, "key", key, "err", f.err)
			}
		})
	}
	wg.Wait()
}

// Migrate makes the KMS, which must be claviger, take over the key from the source of its migration. It returns the
// full names of the versions that the KMS made. It may be called again after an error, and after the key was taken
// over. Kinds KeyNotFound if the source has no such key, KeyDenied, Unsupported if the KMS has no source, Invalid if
// the key cannot be taken over.
func (p *Provider) Migrate(ctx context.Context, key string) ([]string, error) {
	body, err := p.trusteeOp(ctx, opMigrate, kmswire.OpMigrate, key, "")
	if err != nil {
		return nil, err
	}
	var m kmswire.MigratedKey
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, claviger.Errorf(opMigrate, claviger.Internal, key, "KMS %s: the answer to a migration: %w", p.uri,
			err)
	}
	return m.Versions, nil
}
