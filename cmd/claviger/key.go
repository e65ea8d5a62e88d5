package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kmswire"
	"claviger/provider"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// keyTimeout is how long a command about keys may take.
const keyTimeout = 2 * time.Minute

// keyFlags are the flags of all subcommands of key.
type keyFlags struct{ provider, conf string }

func newKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "key",
		Annotations: map[string]string{
			"create": "hadoop key create makes keys",
			"roll":   "hadoop key roll makes new versions",
			"delete": "hadoop key delete deletes keys",
		},
		Short: "List, describe, migrate, undelete and purge keys at a KMS",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyList(), newKeyDescribe(), newKeyMigrate(), newKeyUndelete(), newKeyPurge(),
		newKeyVersion())
	return cmd
}

// keyCommand returns a subcommand that works with a KMS.
func keyCommand(use, short string, args cobra.PositionalArgs, run func(ctx context.Context,
	cmd *cobra.Command, kms *kmsclient.Provider, out *terminal.Output, args []string) error) *cobra.Command {
	var f keyFlags
	var out terminal.Output
	cmd := &cobra.Command{Use: use, Short: short, Args: args}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), keyTimeout)
		defer cancel()
		opt, err := clientOptions(f.conf, f.provider)
		if err != nil {
			return err
		}
		kms, err := kmsclient.New(f.provider, opt)
		if err != nil {
			return err
		}
		return errors.Join(run(ctx, cmd, kms, &out, args), kms.Close())
	}
	cmd.Flags().StringVar(&f.provider, "provider", "", "the KMS, as in kms://https@HOST:9600/kms")
	cmd.Flags().StringVar(&f.conf, "conf", "",
		"configuration folder: its ssl-client.xml names the truststore, and claviger.client.kerberos.* the login "+
			"(default: the system's roots and the tickets of kinit)")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("provider") // the flag is defined above
	return cmd
}

// clientOptions says how to log in at a KMS: as the process's user, or as HADOOP_USER_NAME. dir is a configuration
// folder, or "". Its truststore is opened only if a URI needs it.
func clientOptions(dir string, uris ...string) (opt kmsclient.Options, err error) {
	log, err := newLogger("warn")
	if err != nil {
		return opt, err
	}
	opt = kmsclient.Options{User: kms.OSUser(), Log: log}
	conf := hadoopconf.New("", os.LookupEnv)
	if dir != "" {
		if dir, err = filepath.Abs(dir); err != nil {
			return opt, err
		}
		if conf, err = hadoopconf.LoadKMS(dir, os.LookupEnv); err != nil {
			return opt, err
		}
		if strings.Contains(strings.Join(uris, " "), "https") {
			s := &kms.Service{Conf: conf, Log: log}
			if opt.TLS, err = s.ClientTLS(provider.Env{}); err != nil {
				return opt, err
			}
		}
	}
	opt.Negotiate, err = kms.ClientKerberos(conf)
	return opt, err
}

func newKeyList() *cobra.Command {
	var deleted bool
	cmd := keyCommand("list --provider URI [--deleted]", "List the names of keys, or the deleted keys", cobra.NoArgs,
		func(ctx context.Context, _ *cobra.Command, kms *kmsclient.Provider, out *terminal.Output, _ []string) error {
			if deleted {
				return listDeleted(ctx, kms, out)
			}
			names, err := kms.Keys(ctx)
			if err != nil {
				return err
			}
			slices.Sort(names)
			return out.Write(names, func(w io.Writer) {
				for _, n := range names {
					fmt.Fprintln(w, claviger.Printable(n))
				}
			})
		})
	cmd.Flags().BoolVar(&deleted, "deleted", false, "list deleted keys")
	return cmd
}

func listDeleted(ctx context.Context, kms *kmsclient.Provider, out *terminal.Output) error {
	keys, err := kms.DeletedKeys(ctx)
	if err != nil {
		return err
	}
	return out.Write(keys, func(w io.Writer) {
		fmt.Fprintln(w, "KEY\tBITS\tVERSIONS\tNEWEST\tDELETED\tLAST USED")
		for _, k := range keys {
			last := "none recorded"
			if k.LastUse != 0 {
				last = "by " + clock(k.LastUse)
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", claviger.Printable(k.Name), k.Length, len(k.Versions),
				newestVersion(k), clock(k.Deleted), last)
		}
	})
}

// clock formats a time that is given in milliseconds since 1970.
func clock(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// versionFlag defines the flag that chooses one of several deleted keys with the same name.
func versionFlag(cmd *cobra.Command, version *string) {
	cmd.Flags().StringVar(version, "key-version", "",
		"full name of any version of the deleted key, as in NAME@3, to choose that key: see key list --deleted")
}

func newKeyUndelete() *cobra.Command {
	var version string
	cmd := keyCommand("undelete NAME --provider URI [--key-version NAME@N]", "Bring back a deleted key",
		cobra.ExactArgs(1),
		func(ctx context.Context, cmd *cobra.Command, kms *kmsclient.Provider, out *terminal.Output,
			args []string) error {
			if err := kms.Undelete(ctx, args[0], version); err != nil {
				return err
			}
			return out.Write(map[string]string{"undeleted": args[0]},
				func(w io.Writer) { fmt.Fprintf(w, "key %s is back\n", claviger.Printable(args[0])) })
		})
	versionFlag(cmd, &version)
	return cmd
}

// newestVersion returns the newest version of a deleted key. No other deleted key with that name has this version.
func newestVersion(k kmswire.DeletedKey) string {
	if len(k.Versions) == 0 {
		return "-"
	}
	return claviger.Printable(k.Versions[len(k.Versions)-1])
}
