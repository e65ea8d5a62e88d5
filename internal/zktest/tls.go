package zktest

import (
	"path/filepath"
	"testing"

	"claviger/internal/certtest"
)

// Certificates are files in PEM, made for one server.
type Certificates struct {
	CA     string // the authority's certificate: a truststore
	Client string // a client's key and certificate: a keystore
	server string
}

// newCertificates makes an authority, a certificate for the server on localhost, and one
// for a client.
func newCertificates(t testing.TB, dir string) *Certificates {
	t.Helper()
	a := certtest.New(t, dir)
	return &Certificates{CA: a.CA, Client: a.Issue("client", "localhost", "127.0.0.1"),
		server: a.Issue("server", "localhost", "127.0.0.1")}
}

func (c *Certificates) configure(conf map[string]string, clients bool) {
	conf["serverCnxnFactory"] = "org.apache.zookeeper.server.NettyServerCnxnFactory"
	conf["secureClientPort"], conf["secureClientPortAddress"] = conf["clientPort"], conf["clientPortAddress"]
	delete(conf, "clientPort")
	delete(conf, "clientPortAddress")
	conf["ssl.keyStore.location"], conf["ssl.keyStore.type"] = filepath.Clean(c.server), "PEM"
	conf["ssl.trustStore.location"], conf["ssl.trustStore.type"] = filepath.Clean(c.CA), "PEM"
	conf["ssl.clientAuth"] = "none"
	if clients {
		conf["ssl.clientAuth"] = "need"
	}
}
