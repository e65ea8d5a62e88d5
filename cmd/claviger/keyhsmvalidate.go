package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"claviger/keyhsm"
	"claviger/pkcs11"
	"claviger/terminal"
)

// keyHSMCheck is one line of `keyhsm validate`.
type keyHSMCheck struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// NotTried: it is neither right nor wrong as far as is known.
	NotTried bool `json:"notTried,omitempty"`
}

func newKeyHSMValidate() *cobra.Command {
	var conf, dir string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "validate --conf DIR [--trustee DIR]", Short: "Check the settings, the token, the pair and the certificates", Args: cobra.NoArgs,
		Long: "validate opens the token as the server does, and has the pair wrap and unwrap. It may be used beside a server that runs. Exit status 3 where a check fails.\n\n" +
			"A pair that works need not be the one that a trustee's deposits are wrapped by. With --trustee, the folder of a trustee on this host, which may run, " +
			"it counts its wrapped deposits by pair, and opens one of each. Its folder must be readable for this user, and may belong to another.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			warnOnConsole(set.SecretFiles(conf), cmd.ErrOrStderr())
			ctx, cancel := context.WithTimeout(cmd.Context(), hsmTimeout)
			defer cancel()
			checks := validateKeyHSM(ctx, &set, dir)
			failed, tried := 0, 0
			for _, c := range checks {
				if c.NotTried {
					continue
				}
				if tried++; !c.OK {
					failed++
				}
			}
			err = out.Write(map[string]any{"ok": failed == 0, "checks": checks}, func(w io.Writer) {
				for _, c := range checks {
					word := "ok"
					switch {
					case c.NotTried:
						word = "-"
					case !c.OK:
						word = "FAILED"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\n", word, c.Name, c.Detail)
				}
			})
			if err == nil && failed > 0 {
				err = &exitError{exitRefused, fmt.Errorf("%d of %d checks failed", failed, tried)}
			}
			return err
		},
	}
	keyHSMConf(cmd, &conf)
	cmd.Flags().StringVar(&dir, "trustee", "", "folder of a trustee whose wrapped deposits are to be opened, as "+trusteeFolder)
	out.Flag(cmd)
	return cmd
}

// validateKeyHSM makes all checks that can be made; those that need one that
// failed are not tried.
// dir is a trustee's folder, or "".
func validateKeyHSM(ctx context.Context, set *keyhsm.Settings, dir string) []keyHSMCheck {
	checks := validateToken(ctx, set, dir)
	add := func(name string, err error, format string, args ...any) {
		c := keyHSMCheck{Name: name, OK: err == nil, Detail: fmt.Sprintf(format, args...)}
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
func validateToken(ctx context.Context, set *keyhsm.Settings, dir string) (checks []keyHSMCheck) {
	ok := func(name, format string, args ...any) {
		checks = append(checks, keyHSMCheck{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)})
	}
	fail := func(name string, err error) []keyHSMCheck {
		return append(checks, keyHSMCheck{Name: name, Detail: err.Error()})
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
	keeper := keyhsm.NewKeeper(tok, set.ID(), set.KeyLabel)
	st := keeper.Status(ctx)
	if st.State != keyhsm.Ready {
		return fail("wraps and unwraps", errors.New(st.Detail))
	}
	ok("wraps and unwraps", "RSA-OAEP with %s", st.OAEP)
	const deposits = "deposits"
	if dir == "" {
		return append(checks, keyHSMCheck{Name: deposits, NotTried: true, Detail: "which pair a trustee's deposits are wrapped by is not known here: --trustee DIR"})
	}
	text, err := openDeposits(ctx, keeper, dir)
	if err != nil {
		return fail(deposits, err)
	}
	ok(deposits, "%s", text)
	return checks
}

// openDeposits opens one deposit of each pair that deposits of a trustee are wrapped by.
func openDeposits(ctx context.Context, keeper *keyhsm.Keeper, dir string) (text string, err error) {
	folder, err := loadTrustee(dir)
	if err != nil {
		return "", err
	}
	store, release, err := readTrusteeStore(ctx, folder)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, release()) }()
	w := &wrappedDeposits{store: store, keeper: keeper}
	counts, _, err := w.count(ctx)
	if err != nil {
		return "", err
	}
	if len(counts) == 0 {
		return "none of " + dir + " is wrapped", nil
	}
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		text += fmt.Sprintf("%d wrapped by %s, ", counts[id], id)
	}
	return text + "one of each was opened", errors.Join(w.unopened(ctx)...)
}
