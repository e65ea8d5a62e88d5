package faults

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"claviger/test/hadoop"
)

// send sends a request to a server as alice, and returns the answer.
func send(t *testing.T, k *hadoop.KMS, method, path string, body []byte, header ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	req, err := http.NewRequestWithContext(ctx, method, k.URL+"/v1/"+path+sep+"user.name=alice", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	text := string(answer)
	var pretty bytes.Buffer
	if json.Indent(&pretty, answer, "", "  ") == nil {
		text = pretty.String()
	}
	return res.Status + "\n" + text + "\n"
}

// create makes a key.
func (s *site) create(k *hadoop.KMS, name string) {
	s.t.Helper()
	answer := send(s.t, k, http.MethodPost, "keys", []byte(`{"name":"`+name+`"}`))
	if !strings.HasPrefix(answer, "201") {
		s.t.Fatal(answer)
	}
}

// tlsServer runs a server that supports only TLS, and returns its port.
func (s *site) tlsServer() string {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0",
		&tls.Config{MinVersion: tls.VersionTLS12,
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		s.t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: timeout, ErrorLog: nil}
	go func() { _ = server.Serve(l) }() // Close ends it
	s.t.Cleanup(func() { _ = server.Close() })
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return p
}

// requests are the faults of requests to a running server. change sets a low limit, so that the test can send
// less.
var requests = map[string]struct {
	change map[string]string
	send   func(*testing.T, *hadoop.KMS) string
}{
	"request-body-too-long": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keys", bytes.Repeat([]byte(" "), 2<<20))
	}},
	"request-batch-too-long": {change: map[string]string{"claviger.kms.max.body.bytes": "65536"},
		send: func(t *testing.T, k *hadoop.KMS) string {
			return send(t, k, http.MethodPost, "key/k1/_reencryptbatch", bytes.Repeat([]byte(" "), 70_000))
		}},
	"request-too-many-keys": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodGet, "key/k1/_eek?eek_op=generate&num_keys=1000000000", nil)
	}},
	"request-deep-json": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keys",
			[]byte(`{"name":"k2","x":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+"}"))
	}},
	"request-broken-utf8": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keys", []byte("{\"name\":\"k\xff\"}"))
	}},
	"request-broken-json": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keys", []byte(`{"name":`))
	}},
	"request-material-no-base64": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keyversion/k1@0/_eek?eek_op=decrypt",
			[]byte(`{"name":"k1","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"no base64!"}`))
	}},
	"request-iv-no-base64": {send: func(t *testing.T, k *hadoop.KMS) string {
		version := currentVersion(t, k)
		return send(t, k, http.MethodPost, "keyversion/"+version+"/_eek?eek_op=decrypt",
			[]byte(`{"name":"k1","iv":"no base64!","material":"AAAA"}`))
	}},
	"request-material-into-hsm": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keys",
			[]byte(`{"name":"k2","length":128,"material":"AAAAAAAAAAAAAAAAAAAAAA"}`))
	}},
	"request-head-too-long": {send: func(t *testing.T, k *hadoop.KMS) string {
		var h []string
		for i := range 200 {
			h = append(h, fmt.Sprintf("X-Filler-%d", i), strings.Repeat("x", 8<<10))
		}
		return send(t, k, http.MethodGet, "keys/names", nil, h...)
	}},
	"request-name-too-long": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodGet, "key/"+strings.Repeat("k", 10_000)+"/_metadata", nil)
	}},
	"request-version-unknown": {send: func(t *testing.T, k *hadoop.KMS) string {
		return send(t, k, http.MethodPost, "keyversion/k1@7/_eek?eek_op=decrypt",
			[]byte(`{"name":"k1","iv":"AAAAAAAAAAAAAAAAAAAAAA","material":"AAAA"}`))
	}},
}

// currentVersion returns the name of k1's newest version.
func currentVersion(t *testing.T, k *hadoop.KMS) string {
	t.Helper()
	answer := send(t, k, http.MethodGet, "key/k1/_currentversion", nil)
	_, rest, ok := strings.Cut(answer, `"versionName": "`)
	name, _, _ := strings.Cut(rest, `"`)
	if !ok {
		t.Fatal(answer)
	}
	return name
}

// TestRequests: a faulty request gets the documented answer, and changes no key.
func TestRequests(t *testing.T) {
	shared := newSite(t)
	server := shared.serve()
	shared.create(server, "k1")
	for name, fault := range requests {
		t.Run(name, func(t *testing.T) {
			s, k := shared, server
			if fault.change != nil {
				s = newSite(t)
				for n, v := range fault.change {
					s.set(n, v)
				}
				k = s.serve()
				s.create(k, "k1")
			}
			answer := fault.send(t, k)
			if answer[0] != '4' && answer[0] != '5' {
				t.Errorf("the request was served: %s", answer)
			}
			golden(t, name, s.plain(answer))
			if names := send(t, k, http.MethodGet, "keys/names", nil); !strings.Contains(names, `"k1"`) ||
				strings.Contains(names, `"k2"`) {
				t.Errorf("afterwards the keys are %s", names)
			}
		})
	}
}
