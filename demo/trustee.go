package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Names of the Key Trustee side.
const (
	org        = "demo"
	ktsSite    = "kts-site.xml"
	truststore = "claviger.ssl.truststore"
)

func (r *run) trusteeDir() string { return filepath.Join(r.Dir, "trustee", ".keytrustee") }

func (r *run) trusteeCert() string {
	return filepath.Join(r.trusteeDir(), ".ssl", "ssl-cert-keytrustee.pem")
}

// stepTrustee starts a Key HSM on its own token, and the Key Trustee Server that uses it.
func (r *run) stepTrustee(ctx context.Context) error {
	dir, hsm := r.trusteeDir(), filepath.Join(r.Dir, "keyhsm")
	if _, err := r.cli(ctx, 0, "trustee", "init", "--confdir", dir, "--hostname", "localhost", "--hostname",
		"127.0.0.1"); err != nil {
		return err
	}
	token, err := r.NewToken(filepath.Join(r.Dir, "token-keyhsm"), "claviger-keyhsm")
	if err != nil {
		return fmt.Errorf("making a SoftHSM token: %w", err)
	}
	for _, args := range [][]string{
		{"setup", "softhsm", "--conf", hsm, "--module", token.Module, "--token", token.Label,
			"--pin-file", token.PINFile, "--host", "127.0.0.1", "--listen", "127.0.0.1:9090"},
		{"trust", "--conf", hsm, r.trusteeCert()},
		{"validate", "--conf", hsm},
	} {
		if _, err := r.cliWith(ctx, token.Env, "", 0, append([]string{"keyhsm"}, args...)...); err != nil {
			return err
		}
	}
	// The default port may be in use on this machine.
	if r.keyhsm, err = r.start(ctx, "Key HSM", hsm, token.Env, "keyhsm", "start", "--conf", hsm, "--listen",
		"127.0.0.1:0"); err != nil {
		return err
	}
	r.printf("the Key HSM serves at %s", r.keyhsm.base)
	out, err := r.hiddenOutput(ctx, "orgtool", "add", "--confdir", dir, "-n", org, "-c", "ops@example.com")
	if err != nil {
		return err
	}
	if r.secret, err = authSecret(out); err != nil {
		return err
	}
	r.trust, err = r.start(ctx, "Key Trustee Server", filepath.Dir(dir), nil, "trustee", "serve", "--confdir", dir,
		"--listen", "127.0.0.1:0",
		"--keyhsm", r.keyhsm.base, "--keyhsm-cert", filepath.Join(hsm, "server.crt"))
	if err == nil {
		r.printf("the Key Trustee Server serves at %s", r.trust.base)
	}
	return err
}

// authSecret returns the organization's secret from the output of orgtool.
func authSecret(out []byte) (string, error) {
	var orgs map[string]struct {
		AuthSecret string `json:"auth_secret"`
	}
	if err := json.Unmarshal(out, &orgs); err != nil {
		return "", fmt.Errorf("the output of orgtool: %w", err)
	}
	if orgs[org].AuthSecret == "" {
		return "", fmt.Errorf("orgtool printed no secret of organization %s", org)
	}
	return orgs[org].AuthSecret, nil
}

// hiddenOutput runs a subcommand and does not print its output, because it holds a secret.
func (r *run) hiddenOutput(ctx context.Context, args ...string) ([]byte, error) {
	r.printf("$ claviger %s", strings.Join(args, " "))
	out, err := r.command(ctx, nil, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("claviger %s: %w", args[0], err)
	}
	r.printf("  (the organization's secret)")
	return out, nil
}

// copyFile copies a file. Only its owner can read the copy.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	defer clear(b)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
