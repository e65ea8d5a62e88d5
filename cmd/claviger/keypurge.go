package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/kms/edeks"
	"claviger/kmswire"
	"claviger/provider/hsm"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// purgeFlags are the flags and the argument of key purge.
type purgeFlags struct {
	name, version string
	all           bool
	yes           *string // the name again; nil: a prompt asks for it
}

func newKeyPurge() *cobra.Command {
	var p purgeFlags
	var yes string
	cmd := keyCommand("purge NAME --provider URI [--key-version NAME@N | --all]", "Destroy a deleted key for ever",
		cobra.ExactArgs(1),
		func(ctx context.Context, cmd *cobra.Command, kms *kmsclient.Provider, out *terminal.Output,
			args []string) error {
			if p.all && p.version != "" {
				return &exitError{exitUsage,
					errors.New("--all and --key-version exclude each other: --all chooses all deleted keys with the " +
						"name, --key-version one of them")}
			}
			p.name = args[0]
			if cmd.Flags().Changed("yes-purge") {
				p.yes = &yes
			}
			return purgeKeys(ctx, cmd, kms, out, p)
		})
	cmd.Flags().StringVar(&yes, "yes-purge", "", "the key's name again, instead of typing it")
	cmd.Flags().BoolVar(&p.all, "all", false, "all deleted keys with the name that you may manage")
	versionFlag(cmd, &p.version)
	return cmd
}

// purged is the report: the keys that were destroyed, or the keys from which the user must choose.
type purged struct {
	Purged  string               `json:"purged,omitempty"`
	Refused string               `json:"refused,omitempty"`
	Keys    []kmswire.DeletedKey `json:"keys"`
}

// purgeKeys lists the keys, has the user confirm them, and purges them.
func purgeKeys(ctx context.Context, cmd *cobra.Command, kms *kmsclient.Provider, out *terminal.Output,
	p purgeFlags) error {
	list, err := kms.DeletedKeys(ctx)
	if err != nil {
		return err
	}
	keys := []kmswire.DeletedKey{}
	for _, k := range list {
		if k.Name == p.name && (p.version == "" || slices.Contains(k.Versions, p.version)) {
			keys = append(keys, k)
			fmt.Fprintf(cmd.ErrOrStderr(), "key %s, deleted %s, %d versions, the newest is %s\n",
				claviger.Printable(p.name), clock(k.Deleted), len(k.Versions), newestVersion(k))
		}
	}
	if len(keys) > 1 && p.version == "" && !p.all {
		err := &exitError{exitRefused,
			fmt.Errorf("nothing was purged: %d deleted keys have the name %s, listed above; choose one "+
				"with --key-version NAME@N, or all with --all", len(keys), claviger.Printable(p.name))}
		if out.JSON() {
			return errors.Join(out.Write(purged{Refused: p.name, Keys: keys}, nil), err)
		}
		return err
	}
	if len(keys) > 0 || p.version == "" {
		if err := terminal.NewPrompt(cmd).ConfirmName(p.name, p.yes, "purged",
			fmt.Sprintf("%d deleted keys will be destroyed, and all data that they encrypted is lost. "+
				"Type the key's name to purge: ", len(keys))); err != nil {
			return err
		}
	}
	if len(keys) == 0 { // the KMS completes a purge that was interrupted, or says why there is nothing to purge
		err = kms.Purge(ctx, p.name, p.version)
	}
	for i, k := range keys { // each by a version, so that a key that was deleted after the listing is not purged
		if err = kms.Purge(ctx, p.name, k.Versions[len(k.Versions)-1]); err != nil {
			if i > 0 {
				err = fmt.Errorf("%d of %d were purged, then: %w", i, len(keys), err)
			}
			break
		}
	}
	if err != nil {
		return err
	}
	return out.Write(purged{Purged: p.name, Keys: keys},
		func(w io.Writer) { fmt.Fprintf(w, "key %s is destroyed for ever\n", claviger.Printable(p.name)) })
}

func newKeyVersion() *cobra.Command {
	var o edeks.PurgeOptions
	purge := migrateCommand(edeks.PurgeUse, edeks.PurgeShort, hsm.Destroy,
		func(cmd *cobra.Command, f *migrateFlags) {
			hdfsFlag(cmd, f)
			o.Define(cmd)
		},
		func(m *migration) error {
			result, err := o.Purge(m.cmd, m.svc, m.engine, m.flags.hdfs, m.args[0])
			if result == nil {
				return err
			}
			return errors.Join(write(m, result, edeks.PurgeText), err)
		})
	purge.Args = cobra.ExactArgs(1)
	cmd := &cobra.Command{Use: "version", Short: "Destroy old versions of keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(purge)
	return cmd
}
