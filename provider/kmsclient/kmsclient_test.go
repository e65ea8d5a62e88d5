package kmsclient_test

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/provider/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// uriOf returns the kms:// URI of servers with the same port.
func uriOf(servers ...*httptest.Server) string {
	scheme, rest, _ := strings.Cut(servers[0].URL, "://")
	host, port, _ := strings.Cut(rest, ":")
	hosts := []string{host}
	for _, s := range servers[1:] {
		_, rest, _ := strings.Cut(s.URL, "://")
		h, _, _ := strings.Cut(rest, ":")
		hosts = append(hosts, h)
	}
	return "kms://" + scheme + "@" + strings.Join(hosts, ";") + ":" + port + "/kms"
}

func open(t *testing.T, uri string, opt kmsclient.Options) *kmsclient.Provider {
	t.Helper()
	if opt.User == "" {
		opt.User = "mig"
	}
	if opt.SleepBase == 0 {
		opt.SleepBase = time.Millisecond
	}
	p, err := kmsclient.New(uri, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func serve(t *testing.T, f *fakeKMS) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

// TestConformance: the provider passes the suite of all providers, whether the KMS shows material or not.
func TestConformance(t *testing.T) {
	for name, shows := range map[string]bool{"ShowsMaterial": true, "HidesMaterial": false} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.material = shows
			s := serve(t, f)
			opener := func(t *testing.T) provider.Provider { return open(t, uriOf(s), kmsclient.Options{}) }
			providertest.Run(t, providertest.Suite{
				New: opener,
				Reopen: func(t *testing.T, p provider.Provider) provider.Provider {
					_ = p.Close()
					return opener(t)
				},
				Objects:       func(*testing.T, provider.Provider) int { return f.keys.Objects() },
				TakesMaterial: true,
				ShowsMaterial: shows,
			})
		})
	}
}
