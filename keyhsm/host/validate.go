package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"claviger/keyhsm"
	"claviger/pkcs11"
)

// Check is one result of Validate.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// NotTried is true if the check was not made, so its subject may be right or wrong.
	NotTried bool `json:"notTried,omitempty"`
}

// Deposits opens one deposit of each pair that has wrapped deposits of a trustee, and returns a text for an
// operator.
type Deposits func(ctx context.Context, keeper *keyhsm.Keeper) (text string, err error)

// Validation says how Validate works.
type Validation struct {
	Deposits Deposits // nil if no trustee is known
	// Careful: the PIN is not tried if the token says that a wrong PIN was tried before.
	Careful bool
}

// Validate checks the token, the pair and the certificates of a Key HSM. After a failed check of the token,
// it makes no more checks of the token.
func Validate(ctx context.Context, set *keyhsm.Settings, how Validation) []Check {
	v := validation{careful: how.Careful}
	v.token(ctx, set, how.Deposits)
	v.certificates(set)
	return v.checks
}

// validation collects checks.
type validation struct {
	checks  []Check
	careful bool
}

func (v *validation) ok(name, format string, args ...any) {
	v.checks = append(v.checks, Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)})
}

func (v *validation) fail(name string, err error) {
	v.checks = append(v.checks, Check{Name: name, Detail: err.Error()})
}

// certificates checks the certificate of the server, and the certificates that it trusts.
func (v *validation) certificates(set *keyhsm.Settings) {
	identity, err := set.Identity()
	if err != nil {
		v.fail("certificates", err)
		return
	}
	cert := identity.Certificate.Leaf
	v.ok("server certificate", "%q, good until %s", cert.Subject, cert.NotAfter.UTC().Format(time.DateOnly))
	if identity.Trust.Len() == 0 {
		err = errors.New("no certificate is trusted; cure: claviger keyhsm trust --conf DIR TRUSTEE-CERTIFICATE")
	}
	for _, c := range identity.Trust.Certificates() {
		if now := time.Now(); now.After(c.NotAfter) || now.Before(c.NotBefore) {
			err = errors.Join(err, fmt.Errorf("the certificate of %q is valid from %s to %s only", c.Subject,
				c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly)))
		}
	}
	if err != nil {
		v.fail("trusted certificates", err)
		return
	}
	v.ok("trusted certificates", "%d", identity.Trust.Len())
}

// token opens the token and checks it and the pair.
func (v *validation) token(ctx context.Context, set *keyhsm.Settings, deposits Deposits) {
	tok := v.open(ctx, set)
	if tok == nil {
		return
	}
	defer func() {
		if err := tok.Close(); err != nil {
			v.fail("token is closed", err)
		}
	}()
	if !v.pair(ctx, set, tok) {
		return
	}
	keeper := keyhsm.NewKeeper(tok, set.ID(), set.KeyLabel)
	st := keeper.Status(ctx)
	if st.State != keyhsm.Ready {
		v.fail("wraps and unwraps", errors.New(st.Detail))
		return
	}
	v.ok("wraps and unwraps", "RSA-OAEP with %s", st.OAEP)
	const name = "deposits"
	if deposits == nil {
		v.checks = append(v.checks, Check{Name: name, NotTried: true,
			Detail: "without --trustee DIR, this command cannot know which pairs wrapped deposits"})
		return
	}
	if text, err := deposits(ctx, keeper); err != nil {
		v.fail(name, err)
	} else {
		v.ok(name, "%s", text)
	}
}

// open opens the token. If that fails, the calls of PKCS#11 that were made show which step failed, and open
// returns nil.
func (v *validation) open(ctx context.Context, set *keyhsm.Settings) *pkcs11.Token {
	cfg, err := set.PKCS11()
	if err != nil {
		v.fail("settings", err)
		return nil
	}
	pin, err := cfg.PIN()
	if err != nil {
		v.fail("PIN file", err)
		return nil
	}
	pin.Wipe()
	v.ok("PIN file", "%s", set.PINFile)
	cfg.Careful = v.careful
	loaded, meter := false, new(pkcs11.Meter)
	cfg.Wrap = func(b pkcs11.Boundary) pkcs11.Boundary {
		loaded = true
		return meter.Wrap(b)
	}
	tok, err := pkcs11.Open(ctx, cfg)
	if !loaded {
		v.fail("module loads", err)
		return nil
	}
	v.ok("module loads", "%s", set.Module)
	if err != nil {
		name := "token works"
		if meter.Count("OpenSession") == 0 {
			name = "token is found"
		} else if meter.Count("GetMechanismList") == 0 {
			name = "login"
		}
		v.fail(name, err)
		return nil
	}
	info := tok.Info()
	v.ok("token is found", "%s, serial %s, slot %d, %s %s", info.Label, info.Serial, info.Slot, info.Manufacturer,
		info.Model)
	v.ok("login", "as user, by the PIN in the file")
	return tok
}

// pair checks the pair that wraps new deposits, and returns whether it can be used.
func (v *validation) pair(ctx context.Context, set *keyhsm.Settings, tok *pkcs11.Token) bool {
	const name = "key is on the token"
	key, err := tok.FindPair(ctx, set.ID())
	switch {
	case err != nil:
	case key == nil:
		err = fmt.Errorf("%w: no RSA private key on the token has CKA_ID %s; it was destroyed, or this is another "+
			"token", keyhsm.ErrKeyGone, set.KeyID)
	case key.Label != set.KeyLabel:
		err = fmt.Errorf("the RSA private key with CKA_ID %s has the label %q, and the settings say %q", set.KeyID,
			key.Label, set.KeyLabel)
	case key.Extractable || !key.Sensitive:
		err = fmt.Errorf("the private key could be read out of the token: sensitive=%t, extractable=%t", key.Sensitive,
			key.Extractable)
	}
	if err != nil {
		v.fail(name, err)
		return false
	}
	v.ok(name, "%s, id %s, RSA of %d bits, sensitive, not extractable", key.Label, set.KeyID, key.Public.N.BitLen())
	return true
}
