package kmsclient

import (
	"errors"
	"fmt"
	"net/http"

	"claviger"
	"claviger/kmswire"
	"claviger/provider"
)

// namedTransport sends the name of our own metastore with each request. If the KMS answers that it has the same
// metastore, the error is provider.ErrSourceIsSelf.
type namedTransport struct {
	store func() string
	*http.Transport
}

func (n namedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
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
		// The host name may point here by mistake. After the operator has corrected that, only a new connection reaches
		// the source.
		n.Transport.CloseIdleConnections()
		return nil, provider.ErrSourceIsSelf
	}
	return resp, err
}

// selfFailure returns the failure of a request that reached this server itself; nil for any other error. The whole
// URI is wrong, so no other host is tried. The keys of the intended source cannot be used now, so the kind is
// Unavailable.
func selfFailure(h *host, r request, err error) *failure {
	if !errors.Is(err, provider.ErrSourceIsSelf) {
		return nil
	}
	return &failure{err: claviger.E(r.op, claviger.Unavailable, r.key,
		fmt.Errorf("KMS %s: %w", h.base, provider.ErrSourceIsSelf)),
		untouched: true, final: true}
}
