package kmsclient

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/sync/errgroup"

	"claviger"
	"claviger/kmswire"
	"claviger/secret"
)

// maxBatch is the number of EDEKs in one request to re-encrypt. Hadoop's NameNode sends 1,000; its server logs a
// warning at 10,000 and more.
const maxBatch = 2000

// Generate requests n EDEKs from the KMS, in one request.
func (p *Provider) Generate(ctx context.Context, key string, n int) ([]claviger.EDEK, error) {
	return p.GenerateAs(ctx, key, "", n)
}

// GenerateAs is Generate on behalf of the user as (Hadoop's doAs); "" means in our own name.
func (p *Provider) GenerateAs(ctx context.Context, key, as string, n int) ([]claviger.EDEK, error) {
	const op = "kmsclient.Generate"
	if p.ctx.Err() != nil {
		return nil, closedError(op, key)
	}
	if n <= 0 {
		return []claviger.EDEK{}, nil
	}
	if key == "" {
		return nil, claviger.E(op, claviger.KeyNotFound, key, nil)
	}
	body, err := p.do(ctx, request{
		op: op, key: key, method: http.MethodGet, path: keyPath(key, "/_eek"), as: as, safe: true,
		status: http.StatusOK, limit: entries(n, key),
		query: url.Values{"eek_op": {kmswire.OpGenerate}, "num_keys": {strconv.Itoa(n)}},
	})
	if err != nil {
		return nil, err
	}
	return p.edeks(op, key, body, n)
}

// edeks decodes n EDEKs of a key.
func (p *Provider) edeks(op, key string, body []byte, n int) ([]claviger.EDEK, error) {
	out, err := read(op, key, body, kmswire.ReadEDEKs)
	if err != nil {
		return nil, err
	}
	if len(out) != n {
		return nil, claviger.Errorf(op, claviger.Internal, key, "KMS %s sent %d EDEKs, want %d", p.uri, len(out), n)
	}
	for i, e := range out {
		if k, ok := claviger.KeyOfVersion(e.Version); !ok || k != key || len(e.IV) != claviger.IVSize {
			return nil, claviger.Errorf(op, claviger.Internal, key,
				"KMS %s sent an invalid EDEK %d: version %q, IV of %d bytes", p.uri, i, e.Version, len(e.IV))
		}
	}
	return out, nil
}

// Unwrap sends one request to open each EDEK, Options.Parallel requests at a time. The first error ends the others.
func (p *Provider) Unwrap(ctx context.Context, key, as string, edeks []claviger.EDEK) ([]secret.Bytes, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(opUnwrap, key)
	}
	if err := checkIVs(opUnwrap, edeks); err != nil {
		return nil, err
	}
	deks := make([]secret.Bytes, len(edeks))
	if len(edeks) == 1 { // the hot path: a user opens a file
		dek, err := p.unwrap(ctx, key, as, edeks[0])
		if err != nil {
			return nil, err
		}
		deks[0] = dek
		return deks, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.opt.Parallel)
	for i, e := range edeks {
		if ctx.Err() != nil {
			break // g.Wait returns the error
		}
		g.Go(func() (err error) {
			deks[i], err = p.unwrap(ctx, key, as, e)
			return err
		})
	}
	err := g.Wait()
	if err == nil && len(edeks) > 0 && deks[len(deks)-1] == nil {
		// The loop ended early without an error of g, so the caller's context is done.
		err = claviger.E(opUnwrap, claviger.Unavailable, key, context.Cause(ctx))
	}
	if err != nil {
		secret.WipeAll(deks...)
		return nil, err
	}
	return deks, nil
}

// unwrap opens one EDEK.
func (p *Provider) unwrap(ctx context.Context, key, as string, e claviger.EDEK) (secret.Bytes, error) {
	in := kmswire.AppendOpen(nil, key, &e)
	body, err := p.do(ctx, request{
		op: opUnwrap, key: e.Version, method: http.MethodPost, path: "/v1/keyversion/" + escape(e.Version) + "/_eek",
		query: url.Values{"eek_op": {kmswire.OpDecrypt}}, body: in, as: as, safe: true, status: http.StatusOK,
	})
	if err = p.confirm(ctx, err, opUnwrap, e.Version, key, claviger.VersionNotFound); err != nil {
		return nil, err
	}
	defer clear(body)
	dek, err := read(opUnwrap, e.Version, body, kmswire.ReadDEK)
	if err != nil {
		return nil, err
	}
	if len(dek) != len(e.Material) {
		return nil, claviger.Errorf(opUnwrap, claviger.Internal, e.Version,
			"KMS %s sent a DEK of %d bytes for an EDEK of %d", p.uri, len(dek), len(e.Material))
	}
	return dek, nil
}

// Reencrypt requests the EDEKs under the key's current version.
func (p *Provider) Reencrypt(ctx context.Context, key string, edeks []claviger.EDEK) ([]claviger.EDEK, error) {
	if p.ctx.Err() != nil {
		return nil, closedError(opReencrypt, key)
	}
	if err := checkIVs(opReencrypt, edeks); err != nil {
		return nil, err
	}
	out := make([]claviger.EDEK, 0, len(edeks))
	for len(edeks) > 0 {
		n := min(maxBatch, len(edeks))
		in := kmswire.AppendBatch(nil, key, edeks[:n])
		body, err := p.do(ctx, request{op: opReencrypt, key: key, method: http.MethodPost,
			path: keyPath(key, "/_reencryptbatch"), body: in, safe: true, status: http.StatusOK,
			limit: entries(n, key)})
		if err != nil {
			return nil, err
		}
		batch, err := p.edeks(opReencrypt, key, body, n)
		if err != nil {
			return nil, err
		}
		out, edeks = append(out, batch...), edeks[n:]
	}
	return out, nil
}

// checkIVs refuses wrong IVs before a request is sent. Every KMS would refuse them too.
func checkIVs(op string, edeks []claviger.EDEK) error {
	for _, e := range edeks {
		if len(e.IV) != claviger.IVSize {
			return claviger.Errorf(op, claviger.BadIV, e.Version, "Wrong IV length: must be %d bytes long, but got %d",
				claviger.IVSize, len(e.IV))
		}
	}
	return nil
}
