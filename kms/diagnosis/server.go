package diagnosis

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"claviger"
	"claviger/doctor"
)

// server returns the check of the server that runs with the configuration.
func (s *site) server() doctor.Group {
	return doctor.Group{Title: "running server", Checks: []doctor.Check{
		{ID: "D-server-ready", Title: "the server that runs", Needs: []string{"D-conf-read"},
			Measures: "/readyz is requested at the configured address and port; if nothing answers, no server runs",
			Why: "a server that runs may have faults that its files do not show; another program on the port keeps " +
				"the server from starting",
			Cure: "docs/runbook.md says what to do first, and docs/monitoring.md what each check measures",
			Run:  s.serverReady},
	}}
}

// readyLimit bounds the request of /readyz, whose checks take at most 5 s.
const readyLimit = 10 * time.Second

// readiness is the answer of /readyz.
type readiness struct {
	Ready  bool `json:"ready"`
	Checks []struct {
		Name          string `json:"name"`
		OK            bool   `json:"ok"`
		Informational bool   `json:"informational"`
		Error         string `json:"error"`
	} `json:"checks"`
}

func (s *site) serverReady(ctx context.Context) []doctor.Finding {
	host, port := s.conf.String("hadoop.kms.http.host"), s.conf.String("hadoop.kms.http.port")
	if port == "0" {
		return doctor.Skip("the system chooses the port of the server")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	address := net.JoinHostPort(host, port)
	r, err := readyz(ctx, address, s.conf.String("hadoop.kms.ssl.enabled") == "true")
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return doctor.Pass("no server runs at %s", address)
	case err != nil:
		return doctor.Fail(fmt.Sprintf("%s is not the port of a claviger that answers: %v", address, err),
			"stop the program that uses the port (ss -ltnp), or set hadoop.kms.http.port to another one")
	}
	var list []doctor.Finding
	for _, c := range r.Checks {
		if c.OK {
			continue
		}
		status := doctor.Failure
		if c.Informational {
			status = doctor.Warning
		}
		list = append(list, doctor.Finding{Status: status, Measured: claviger.Printable(c.Name) + ": " + c.Error})
	}
	if len(list) == 0 {
		return doctor.Pass("the server at %s is ready; %d checks of /readyz pass", address, len(r.Checks))
	}
	return list
}

// readyz requests the readiness of the server at an address of this host. Nothing secret is sent and the answer is only
// shown, so the server's certificate is not verified.
func readyz(ctx context.Context, address string, overTLS bool) (r readiness, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	scheme := "http"
	if overTLS {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+"/readyz", nil)
	if err != nil {
		return r, err
	}
	transport := &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // see above
	client := &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return r, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return r, err
	}
	if err := json.Unmarshal(body, &r); err != nil || r.Checks == nil {
		return r, fmt.Errorf("/readyz answers %s, and not with checks", resp.Status)
	}
	return r, nil
}
