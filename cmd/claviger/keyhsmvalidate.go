package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger/keyhsm"
	"claviger/pkcs11"
)

// keyHSMCheck is one line of `keyhsm validate`.
type keyHSMCheck struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func newKeyHSMValidate() *cobra.Command {
	var conf, format string
	cmd := &cobra.Command{
		Use: "validate --conf DIR", Short: "Check the settings, the token, the pair and the certificates", Args: cobra.NoArgs,
		Long: "validate opens the token as the server does, and has the pair wrap and unwrap. It may be used beside a server that runs. Exit status 3 where a check fails.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd.OutOrStdout(), format)
			if err != nil {
				return err
			}
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			warnOnConsole(set.SecretFiles(conf), cmd.ErrOrStderr())
			ctx, cancel := context.WithTimeout(cmd.Context(), hsmTimeout)
			defer cancel()
			checks := validateKeyHSM(ctx, &set)
			failed := 0
			for _, c := range checks {
				if !c.OK {
					failed++
				}
			}
			err = out.write(map[string]any{"ok": failed == 0, "checks": checks}, func(w io.Writer) {
				for _, c := range checks {
					word := "ok"
					if !c.OK {
						word = "FAILED"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", word, c.Name, c.Detail)
				}
			})
			if err == nil && failed > 0 {
				err = &exitError{exitRefused, fmt.Errorf("%d of %d checks failed", failed, len(checks))}
			}
			return err
		},
	}
	keyHSMConf(cmd, &conf)
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	return cmd
}

// validateKeyHSM makes all checks that can be made; those that need one that
// failed are not tried.
func validateKeyHSM(ctx context.Context, set *keyhsm.Settings) []keyHSMCheck {
	checks := validateToken(ctx, set)
	add := func(name string, err error, format string, args ...any) {
		c := keyHSMCheck{name, err == nil, fmt.Sprintf(format, args...)}
		if err != nil {
			c.Detail = err.Error()
		}
		checks = append(checks, c)
	}
	identity, err := set.Identity()
	if err != nil {
		add("certificates", err, "")
		return checks
	}
	cert := identity.Certificate.Leaf
	add("server certificate", nil, "%q, good until %s", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly))
	if identity.Trust.Len() == 0 {
		err = errors.New("no certificate is trusted; cure: claviger keyhsm trust --conf DIR TRUSTEE-CERTIFICATE")
	}
	for _, c := range identity.Trust.Certificates() {
		if now := time.Now(); now.After(c.NotAfter) || now.Before(c.NotBefore) {
			err = errors.Join(err, fmt.Errorf("that of %q is good from %s to %s only", c.Subject, c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly)))
		}
	}
	add("trusted certificates", err, "%d", identity.Trust.Len())
	return checks
}

// validateToken opens the token, and tells by the calls that were made how far it
// came.
func validateToken(ctx context.Context, set *keyhsm.Settings) (checks []keyHSMCheck) {
	ok := func(name, format string, args ...any) {
		checks = append(checks, keyHSMCheck{name, true, fmt.Sprintf(format, args...)})
	}
	fail := func(name string, err error) []keyHSMCheck {
		return append(checks, keyHSMCheck{name, false, err.Error()})
	}
	cfg, err := set.PKCS11()
	if err != nil {
		return fail("settings", err)
	}
	pin, err := cfg.PIN()
	if err != nil {
		return fail("PIN file", err)
	}
	pin.Wipe()
	ok("PIN file", "%s", set.PINFile)
	loaded := false
	meter := new(pkcs11.Meter)
	cfg.Wrap = func(b pkcs11.Boundary) pkcs11.Boundary {
		loaded = true
		return meter.Wrap(b)
	}
	tok, err := pkcs11.Open(ctx, cfg)
	if !loaded {
		return fail("module loads", err)
	}
	ok("module loads", "%s", set.Module)
	if meter.Count("OpenSession") == 0 && err != nil {
		return fail("token is found", err)
	}
	if meter.Count("GetMechanismList") == 0 && err != nil {
		return fail("login", err)
	}
	if err != nil {
		return fail("token works", err)
	}
	info := tok.Info()
	ok("token is found", "%s, serial %s, slot %d, %s %s", info.Label, info.Serial, info.Slot, info.Manufacturer, info.Model)
	ok("login", "as user, by the PIN in the file")
	defer func() {
		if err := tok.Close(); err != nil {
			checks = fail("token is closed", err)
		}
	}()
	key, err := tok.FindPair(ctx, set.ID())
	switch {
	case err != nil:
		return fail("key is there", err)
	case key == nil:
		return fail("key is there", fmt.Errorf("%w: no RSA private key on the token has CKA_ID %s; it was destroyed, or this is another token", keyhsm.ErrKeyGone, set.KeyID))
	case key.Label != set.KeyLabel:
		return fail("key is there", fmt.Errorf("the RSA private key with CKA_ID %s has the label %q, and the settings say %q", set.KeyID, key.Label, set.KeyLabel))
	case key.Extractable || !key.Sensitive:
		return fail("key is there", fmt.Errorf("the private key could be read out of the token: sensitive=%t, extractable=%t", key.Sensitive, key.Extractable))
	}
	ok("key is there", "%s, id %s, RSA of %d bits, sensitive, not extractable", key.Label, set.KeyID, key.Public.N.BitLen())
	st := keyhsm.NewKeeper(tok, set.ID(), set.KeyLabel).Status(ctx)
	if st.State != keyhsm.Ready {
		return fail("wraps and unwraps", errors.New(st.Detail))
	}
	ok("wraps and unwraps", "RSA-OAEP with %s", st.OAEP)
	return checks
}
