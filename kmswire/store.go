package kmswire

// Headers by which a server finds out that a KMS which it asks for the keys of others is
// itself, or another node of its own metastore. Other KMSs know neither.
const (
	// StoreHeader is set on requests to a source: a name of the asking server's metastore.
	StoreHeader = "X-Claviger-Store"
	// SameStoreHeader is set on the answer, which is a refusal, where the metastore is that
	// of the server that was asked.
	SameStoreHeader = "X-Claviger-Same-Store"
)
