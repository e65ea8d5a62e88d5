package kmsclient

import (
	"errors"
	"fmt"
	"net/http"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
)

// named sends each request with the name of our own metastore. An answer of a KMS that has
// the same one is provider.ErrItself.
type named struct {
	store func() string
	*http.Transport
}

func (n named) RoundTrip(req *http.Request) (*http.Response, error) {
	if n.store == nil {
		return n.Transport.RoundTrip(req)
	}
	store := n.store()
	if store == "" {
		return n.Transport.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.Header.Set(kmswire.StoreHeader, store)
	resp, err := n.Transport.RoundTrip(req)
	if err == nil && resp.Header.Get(kmswire.SameStoreHeader) != "" {
		drain(resp)
		// A name that has come to point here, and is put right, leads to the source again with
		// a new connection only.
		n.Transport.CloseIdleConnections()
		return nil, provider.ErrItself
	}
	return resp, err
}

// itself is the failure of a request to a host that is we ourselves; nil for any other error.
// No other host of the URI is asked: the whole URI is wrong. What the source may hold cannot
// be served now, so the kind is Unavailable.
func itself(h *host, r request, err error) *failure {
	if !errors.Is(err, provider.ErrItself) {
		return nil
	}
	return &failure{err: claviger.E(r.op, claviger.Unavailable, r.key,
		fmt.Errorf("KMS %s: %w", h.base, provider.ErrItself)),
		untouched: true, final: true}
}
