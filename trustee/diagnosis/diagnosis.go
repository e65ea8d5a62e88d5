// Package diagnosis has the checks of `claviger doctor --role trustee` for a Key Trustee Server: its folder and its
// store. They change nothing. `claviger trustee status` compares the two servers of a pair.
package diagnosis

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"claviger"
	"claviger/doctor"
	"claviger/secret"
	"claviger/shellword"
	"claviger/trustee"
	"claviger/trustee/host"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/web"
)

// Role is the Key Trustee Server as a role of claviger doctor.
func Role() doctor.Role { return doctor.Role{Name: "trustee", Groups: groups} }

// service is the trustee that is checked.
type service struct {
	options *doctor.Options
	folder  *trustee.Folder
}

// groups returns the checks of a trustee.
func groups(o *doctor.Options) ([]doctor.Group, func() error, error) {
	s := &service{options: o}
	return []doctor.Group{{Title: "Key Trustee Server", Checks: []doctor.Check{
		{ID: "D-trustee-folder", Title: "the folder",
			Measures: trustee.ConfFile + " and the rings of the folder of --conf are read as the server reads them",
			Why:      "the folder has the identity of the trustee, which signs its answers",
			Cure:     "name the folder of the trustee (its --confdir), or make it: claviger trustee init",
			Run:      s.read},
		{ID: "D-trustee-secrets", Title: "files with secrets", Needs: []string{"D-trustee-folder"},
			Measures: "owner and mode of the private ring, the private key and the store, and of the folders above " +
				"them",
			Why:  "another user of this host who reads or replaces such a file can answer as the trustee",
			Cure: "correct owner and mode",
			Run:  s.secrets},
		{ID: "D-trustee-certificate", Title: "the certificate", Needs: []string{"D-trustee-folder"},
			Measures: "the certificate and its private key are read; less than 30 days left is a warning",
			Why:      "clients refuse a server whose certificate has ended",
			Cure:     "put a new certificate and its private key in the place of the old ones; no restart is needed",
			Run:      s.certificate},
		{ID: "D-trustee-store", Title: "the store", Needs: []string{"D-trustee-folder"},
			Measures: "the store of the deposits, a SQLite file or a database in PostgreSQL, is opened for reading, " +
				"and read; a database must belong to this identity, and have its whole schema",
			Why:  "without the deposits, a Key Trustee KMS has no keys",
			Cure: "restore the newest backup: claviger trustee restore",
			Run:  s.store},
		{ID: "D-trustee-keyhsm", Title: "the Key HSM behind the trustee", Needs: []string{"D-trustee-folder"},
			After: []string{"D-trustee-store"},
			Measures: "the Key HSM of --keyhsm and --keyhsm-cert, as the server's command names them, is asked for " +
				"its status over TLS with the trustee's certificate; one deposit of each of its pairs of keys is " +
				"opened",
			Why: "deposits that a Key HSM has wrapped cannot be read without it; Cloudera's procedure: \"Key Trustee " +
				"Server must be configured with Key HSM using either the SafeNet Luna or Thales HSM.\"",
			Cure: "on the Key HSM's host, run claviger doctor --role keyhsm, and trust the trustee's certificate: " +
				"claviger keyhsm trust",
			Run: s.keyHSM},
	}}}, func() error { return nil }, nil
}

func (s *service) read(context.Context) []doctor.Finding {
	folder, err := location.Load(s.options.Conf)
	if err != nil {
		return doctor.Error(err, "")
	}
	s.folder = folder
	return doctor.Pass("the identity is %s", claviger.Printable(folder.Identity.String()))
}

func (s *service) secrets(context.Context) []doctor.Finding {
	return s.options.Secrets(host.SecretFiles(s.folder))
}

func (s *service) certificate(ctx context.Context) []doctor.Finding {
	leaf, err := host.InspectCertificate(ctx, s.folder.Path, slog.New(slog.DiscardHandler))
	if err != nil {
		return doctor.Error(err, "make a certificate: claviger trustee init --confdir "+shellword.Quote(s.folder.Path))
	}
	now := time.Now()
	if leaf.NotAfter.Before(now) || leaf.NotBefore.After(now) {
		return doctor.Fail("the certificate is valid from "+leaf.NotBefore.UTC().Format(time.RFC3339)+" to "+
			leaf.NotAfter.UTC().Format(time.RFC3339)+" only", "")
	}
	if err := web.CheckExpiry(func() (*x509.Certificate, error) { return leaf, nil }, now); err != nil {
		return doctor.Warn(err.Error(), "")
	}
	return doctor.Pass("%s, until %s", leaf.Subject, leaf.NotAfter.UTC().Format(time.DateOnly))
}

func (s *service) store(ctx context.Context) []doctor.Finding {
	cure := ""
	if s.folder.Store != "" {
		cure = "check that DB_CONNECT in " + trustee.ConfFile + " names the database of this trustee, and that the " +
			"server runs and admits its role; without a database, restore the newest backup: claviger trustee " +
			"restore --store URI"
	}
	store, release, err := location.OpenReadOnly(ctx, s.folder)
	if err != nil {
		return doctor.Error(err, cure)
	}
	err = store.Check(ctx)
	role, failed := store.Role(ctx)
	wrapped, unread := server.NewWrapped(store, nil).Count(ctx)
	for _, err := range []error{err, failed, unread, release()} {
		if err != nil {
			return doctor.Error(err, cure)
		}
	}
	return doctor.Pass("it can be read; the role is %s; deposits that a Key HSM has wrapped: %d", role, total(wrapped))
}

// keyHSM requests the status of the Key HSM, and opens one deposit of each of its pairs.
func (s *service) keyHSM(ctx context.Context) (list []doctor.Finding) {
	c := host.Config{Folder: s.folder.Path, KeyHSM: s.options.KeyHSM, KeyHSMCertificate: s.options.KeyHSMCertificate,
		Log: slog.New(slog.DiscardHandler)}
	store, release, err := location.OpenReadOnly(ctx, s.folder)
	if err != nil { // D-trustee-store says more
		return doctor.Error(err, "")
	}
	defer release() //nolint:errcheck // it was only read
	if c.KeyHSM == "" {
		return withoutKeyHSM(ctx, store)
	}
	state, err := host.InspectKeyHSM(ctx, c, store)
	if err != nil {
		return doctor.Error(err, "")
	}
	list = doctor.Pass("%s is ready, with the pair %s on token %q; it answered in %.2f ms", secret.Value(c.KeyHSM),
		state.Status.KeyID, claviger.Printable(state.Status.Token), float64(state.Took)/float64(time.Millisecond))
	for _, err := range state.Unopened {
		list = append(list, doctor.Error(err, "")...)
	}
	if len(state.Unopened) == 0 {
		list = append(list, doctor.Pass("deposits that a Key HSM has wrapped: %d; one of each pair was opened",
			total(state.Wrapped))...)
	}
	return list
}

// withoutKeyHSM says whether deposits need a Key HSM that is not named.
func withoutKeyHSM(ctx context.Context, store server.Store) []doctor.Finding {
	const name = "name the Key HSM by --keyhsm and --keyhsm-cert, as the server's command does"
	wrapped, err := server.NewWrapped(store, nil).Count(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	if len(wrapped) > 0 {
		return doctor.Warn(fmt.Sprintf("deposits that a Key HSM has wrapped: %d; --keyhsm names no Key HSM, so none "+
			"was opened", total(wrapped)), name)
	}
	return doctor.Skip("--keyhsm names no Key HSM, and no deposit needs one; with an HSM, %s", name)
}

func total(counts map[string]int) (sum int) {
	for _, n := range counts {
		sum += n
	}
	return sum
}
