// Package diagnosis has the checks of `claviger doctor` for a KMS. Each group of checks has a file. The checks use the
// code with which the server starts, checks its readiness and plans a migration, and change nothing.
package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kms/acls"
	"claviger/metastore/location"
	"claviger/metastore/sqlite"
	"claviger/migrate"
	"claviger/namenode"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/recovery"
	"claviger/secret"
)

// Role returns the role of a KMS for claviger doctor.
func Role() doctor.Role { return doctor.Role{Name: "kms", Groups: groups} }

// site is the KMS that is checked. A check stores what it has opened or read, for the checks that need it.
type site struct {
	options *doctor.Options
	user    secret.User      // that the server runs as
	conf    *hadoopconf.Conf // set by D-conf-read
	closers []func() error   // the newest part is closed first

	service *kms.Service // set by D-conf-read; its parts are opened by the checks

	place      location.Location // of the metastore
	noStore    bool              // there is no metastore yet
	storeOpen  bool              // service.Store is the metastore, and not an empty one
	storeFault string            // why storeOpen is false
	facts      sqlite.Facts      // of the metastore

	tokenConfig pkcs11.Config
	library     *pkcs11.Library
	tokenState  pkcs11.TokenState
	noMechanism error         // the token was opened, and cannot be used
	hsm         *hsm.Provider // nil: it is not open
	compared    *recovery.Token

	krb         *kms.KerberosFacts // set by D-kerberos-keytab, with krbWarnings
	krbWarnings []string
	zk          []kms.ZooKeeperUse // set by D-zk-nodes

	tls      *kms.ServerTLS   // set by D-tls-chain
	hdfsSite *hadoopconf.Conf // set by D-hdfs-path, with hdfsKMS
	hdfsKMS  provider.KMSURI  // that HDFS uses
	states   []namenode.State // of the NameNodes that answer, set by D-hdfs-namenode

	aclFindings  *acls.Findings
	requirements migrate.Requirements
	engine       *migrate.Engine // set by D-seed-source
	sourceRights migrate.SourceRights
	kts          *kms.Trustees // set by D-kts-reach
}

// groups returns the checks of a KMS.
func groups(o *doctor.Options) ([]doctor.Group, func() error, error) {
	s := &site{options: o, user: secret.Self()}
	return []doctor.Group{s.configuration(), s.metastore(), s.token(), s.otherProvider(), s.server(), s.rights(),
		s.groups(), s.transport(), s.kerberos(), s.zookeeper(), s.procedure(), s.sources(), s.trustees(),
		s.hdfs()}, s.close, nil
}

// Configuration are the IDs of the checks that need only the configuration's files, for `claviger kms --check`.
func Configuration() (ids []string) {
	for _, c := range (&site{}).configuration().Checks {
		ids = append(ids, c.ID)
	}
	return ids
}

// close closes what the checks have opened.
func (s *site) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	return errors.Join(errs...)
}

// warnings is a log that collects the texts of warnings and errors.
type warnings struct {
	texts *[]string
	attrs []slog.Attr
}

// collect returns a log and the texts of its warnings.
func collect() (*slog.Logger, *[]string) {
	texts := new([]string)
	return slog.New(warnings{texts: texts}), texts
}

// Enabled lets warnings and errors pass.
func (w warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// Handle keeps the text of a record, with its attributes.
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	add := func(a slog.Attr) bool {
		text += fmt.Sprintf("; %s: %s", a.Key, a.Value)
		return true
	}
	for _, a := range w.attrs {
		add(a)
	}
	r.Attrs(add)
	*w.texts = append(*w.texts, text)
	return nil
}

// WithAttrs returns a handler that adds attributes to each text.
func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.texts, append(w.attrs[:len(w.attrs):len(w.attrs)], attrs...)}
}

// WithGroup returns the handler: a text needs no groups.
func (w warnings) WithGroup(string) slog.Handler { return w }
