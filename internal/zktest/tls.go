package zktest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// Certificates are files in PEM, made for one server.
type Certificates struct {
	CA     string // the authority's certificate: a truststore
	Client string // a client's key and certificate: a keystore
	server string
}

// newCertificates makes an authority, and a certificate each for localhost's
// server and for a client.
func newCertificates(t testing.TB, dir string) *Certificates {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey := key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "zktest authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	issue := func(cert *x509.Certificate, k *ecdsa.PrivateKey) string {
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, &k.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	pair := func(name string, serial int64) string {
		k := key()
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		cert := issue(&x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}, k)
		return write(t, dir, name+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))+cert)
	}
	return &Certificates{
		CA:     write(t, dir, "ca.pem", issue(ca, caKey)),
		Client: pair("client", 2),
		server: pair("server", 3),
	}
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
