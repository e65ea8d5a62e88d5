package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/owner"
	"claviger/provider"
	"claviger/provider/builtin"
	"claviger/provider/keytrustee"
	"claviger/terminal"
	"claviger/trustee"
)

func newTrusteeAdopt() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "adopt --conf DIR [NAME@VERSION]...",
		Short: "Merge key versions that recover has kept into their keys, at the KT KMS",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := openKeyTrustee(cmd.Context(), conf)
			if err != nil {
				return err
			}
			return errors.Join(adoptVersions(cmd.Context(), &out, p, args), p.Close())
		},
	}
	cmd.Flags().StringVar(&conf, "conf", "", "configuration folder of the KT KMS")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// openKeyTrustee opens the KT KMS that a configuration names first. Its server may run. The KT KMS is opened as a
// source: it makes no identity then, and opens although the Key Trustee Server lacks acknowledged deposits, which
// adopt repairs.
func openKeyTrustee(ctx context.Context, dir string) (*keytrustee.Provider, error) {
	log, err := newLogger("warn")
	if err != nil {
		return nil, err
	}
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	list, err := provider.SplitURIs(conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 || !strings.HasPrefix(list[0], "keytrustee://") {
		return nil, conf.Refuse(hadoopconf.ProviderURI,
			"the first provider must be a KT KMS, as in keytrustee://file@/PATH/.keytrustee")
	}
	folder, err := provider.UnnestPath(list[0])
	if err == nil {
		_, err = trustee.LoadFolder(folder)
	}
	if err == nil {
		err = owner.RefuseRoot(folder)
	}
	if err != nil {
		return nil, err
	}
	s := &kms.Service{Conf: conf, Log: log}
	registry := builtin.Registry(builtin.Options{ClientTLS: s.ClientTLS})
	opened, err := registry.Open(ctx, list[0],
		provider.Env{Get: conf.Get, Getenv: os.Getenv, ConfDir: conf.Dir(), User: kms.OSUser(), Log: log, Source: true})
	if err != nil {
		return nil, s.Blame(hadoopconf.ProviderURI, err)
	}
	p, ok := opened.(*keytrustee.Provider)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is not a KT KMS", list[0]), opened.Close())
	}
	return p, nil
}

// adoptVersions adopts the versions. Without versions it lists those that can be adopted.
func adoptVersions(ctx context.Context, out *terminal.Output, p *keytrustee.Provider, versions []string) error {
	if len(versions) == 0 {
		list, err := p.Aside(ctx)
		if err != nil {
			return err
		}
		return out.Write(append([]keytrustee.Aside{}, list...), func(w io.Writer) {
			for _, a := range list {
				fmt.Fprintf(w, "%s\tmade %s\n", a.Version, a.Made.UTC().Format(time.RFC3339))
			}
			if len(list) == 0 {
				fmt.Fprintln(w, "the Key Trustee Server has no version to adopt")
			}
		})
	}
	adopted := []string{}
	var failed error
	for _, version := range versions {
		if failed = p.Adopt(ctx, version); failed != nil {
			break
		}
		adopted = append(adopted, version)
	}
	return errors.Join(failed, out.Write(map[string][]string{"adopted": adopted}, func(w io.Writer) {
		for _, version := range adopted {
			fmt.Fprintf(w, "adopted %s: its EDEKs open now\n", version)
		}
	}))
}
