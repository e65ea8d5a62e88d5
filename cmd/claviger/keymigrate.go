package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/keyring"
	"claviger/migrate"
	"claviger/provider/kmsclient"
)

// migrator takes keys over at users' requests; nil where there is no source, or
// where the primary makes no keys of its own.
func (s *service) migrator() keyring.Migrator {
	_, target := s.Primary.(migrate.Target)
	_, source := s.reencryptionSource()
	if !target || !source {
		return nil
	}
	return keyMigrator{s}
}

// keyMigrator makes an engine for each request: they are rare, and what an engine
// finds out about this host must not hold up a server's start. The engine does not
// audit; the ring does, in the name of who asked.
type keyMigrator struct{ svc *service }

func (k keyMigrator) SourceMetadata(ctx context.Context, key string) (*claviger.Metadata, error) {
	e, err := k.svc.engine(ctx, migrate.Config{Log: k.svc.Log})
	if err != nil {
		return nil, err
	}
	return e.SourceMetadata(ctx, key)
}

func (k keyMigrator) RunKey(ctx context.Context, key string) ([]string, error) {
	e, err := k.svc.engine(ctx, migrate.Config{Log: k.svc.Log})
	if err != nil {
		return nil, err
	}
	return e.RunKey(ctx, key)
}

// ourselves is who does what nobody has asked the server for. Rules of
// kms-acls.xml do not bind whoever may read our files.
func ourselves() claviger.Caller {
	user := osUser()
	return claviger.Caller{Principal: claviger.Principal{Name: user, Short: user}}
}

// migratedKey is what `claviger key migrate` tells of one key.
type migratedKey struct {
	Key      string   `json:"key"`
	Versions []string `json:"versions"`
}

func newKeyMigrate() *cobra.Command {
	return keyCommand("migrate NAME... --provider URI", "Have a running claviger take keys over from the source of its migration",
		`migrate has the KMS, which must be claviger with a source configured, take the keys over into its HSM now, without a restart. The user needs the
right MIGRATE for each (key.acl.NAME.MIGRATE, default.key.acl.MIGRATE or whitelist.key.acl.MIGRATE in the KMS's kms-acls.xml), which is
nobody's where it is not set. A key that is there already stays as it is. After an error the same command goes on where it was.`, cobra.MinimumNArgs(1),
		func(ctx context.Context, _ *cobra.Command, kms *kmsclient.Provider, out *output, args []string) error {
			done := []migratedKey{}
			var failed error
			for _, name := range args {
				versions, err := kms.Migrate(ctx, name)
				if err != nil {
					failed = err
					break
				}
				done = append(done, migratedKey{name, versions})
			}
			if err := out.write(done, func(w io.Writer) {
				for _, k := range done {
					fmt.Fprintf(w, "key %s: %s\n", claviger.Printable(k.Key), claviger.Printable(strings.Join(k.Versions, " ")))
				}
			}); err != nil {
				return err
			}
			return failed
		})
}
