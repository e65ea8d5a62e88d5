package kmswire

// With these headers a server finds out that one of its sources is the server itself, or
// another node of its own metastore. Other KMSs do not know the headers.
const (
	// StoreHeader is a header of requests to a source: a name of the client's metastore.
	StoreHeader = "X-Claviger-Store"
	// SameStoreHeader is a header of the answer, a refusal, if the source has the same
	// metastore as the client.
	SameStoreHeader = "X-Claviger-Same-Store"
)
