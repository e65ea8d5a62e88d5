package migrate

import (
	"context"
	"errors"
	"fmt"

	"claviger"
	"claviger/provider"
)

// SourceRights are checks of what the source allows this server to do. Plan makes the same checks.
type SourceRights struct {
	Self    *Check // a failure if the source is this server itself; otherwise nil
	Read    Check  // may this server read names and metadata of keys?
	Decrypt *Check // may it open EDEKs in its own name, as re-encryption does? nil if the source is not a KMS
	Users   *Check // may it open EDEKs on behalf of Probes.AsUser? nil if the source is not a KMS
}

// SourceRights tries each key of the source: it reads the key's metadata, makes an EDEK, which no file uses, and opens
// it. It changes nothing. If the source does not list its keys, it returns an error.
func (e *Engine) SourceRights(ctx context.Context) (r SourceRights, err error) {
	sv, err := e.survey(ctx, "migrate.SourceRights")
	var facts []HostFacts
	if e.cfg.Probes.Source != nil && len(e.cfg.Probes.OwnAddresses) > 0 {
		facts = e.cfg.Probes.Source(ctx)
	}
	if c, isSelf := e.cfg.Probes.checkSelf(ctx, facts, err); isSelf {
		r.Self = &c
	}
	if err != nil {
		return r, err
	}
	r.Read = e.readable(ctx, sv)
	if why := sv.firstUnread(); why != "" {
		r.Read.Measured += "; " + why
		if r.Read.Cure == seeBelow {
			r.Read.Cure = "see the log of the source, and look at the key there (hadoop key list -metadata)"
		}
	}
	if list := e.rights(ctx, e.tryRights(ctx, sv)); len(list) == 2 {
		r.Decrypt, r.Users = &list[0], &list[1]
	}
	return r, nil
}

// firstUnread says why the first key that could not be read was not read; "" if all were read.
func (sv *survey) firstUnread() string {
	for i, err := range sv.unread {
		if err != nil {
			return fmt.Sprintf("key %s: %s", claviger.Printable(sv.items[i].Key), claviger.Reason(err))
		}
	}
	return ""
}

// ReadCure says what to do about an error of SourceRights.
func (e *Engine) ReadCure(ctx context.Context, err error) string {
	_, isKMS := e.cfg.Source.(provider.EDEKService)
	login := (*provider.LoginError)(nil)
	switch {
	case errors.Is(err, provider.ErrSourceIsSelf):
		return "name the KMS from which keys are to be migrated by " + propSource
	case !isKMS:
		return "check that " + propSource + " names the place of its keys, and that the server's user may read there"
	case errors.As(err, &login):
		return "log in as a user that the source admits: claviger.client.kerberos.principal and " +
			"claviger.client.kerberos.keytab in kms-site.xml name this server's principal; at the source, " +
			"hadoop.kms.authentication.type says how clients log in"
	case refused(err):
		return e.rightsCure(ctx, "", err)
	}
	if better := e.cfg.Probes.whyUnreachable(ctx); better != "" {
		return better
	}
	return "see the log of the source, and check host, port and path in " + propSource
}
