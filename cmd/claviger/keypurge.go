package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/kmswire"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

// purge is what `claviger key purge` is to do.
type purge struct {
	name, version string
	all           bool
	yes           *string // the name once more; nil: it is asked for
}

func newKeyPurge() *cobra.Command {
	var p purge
	var yes string
	cmd := keyCommand("purge NAME --provider URI [--key-version NAME@N | --all]", "End a deleted key for ever",
		`purge destroys a deleted key of the name NAME, in the HSM: the one that has the version of --key-version. Where you may manage several
deleted keys of that name, purge lists them and does nothing, unless --key-version names one or --all says that all of them are meant. What
they encrypted can never be read again. It lists what it would destroy, and asks you to type the name once more; --yes-purge NAME does that
for scripts. The KMS refuses while the key was deleted, or used, within its claviger.purge.min.unused.`, cobra.ExactArgs(1),
		func(ctx context.Context, cmd *cobra.Command, kms *kmsclient.Provider, out *terminal.Output, args []string) error {
			if err := givenVersion(cmd, p.version); err != nil {
				return err
			}
			if p.all && p.version != "" {
				return &exitError{exitUsage, errors.New("--all and --key-version do not go together: all deleted keys of the name are meant, or the one that has the version")}
			}
			p.name = args[0]
			if cmd.Flags().Changed("yes-purge") {
				p.yes = &yes
			}
			return p.run(ctx, cmd, kms, out)
		})
	cmd.Flags().StringVar(&yes, "yes-purge", "", "the key's name once more, instead of typing it")
	cmd.Flags().BoolVar(&p.all, "all", false, "all deleted keys of the name that you may manage")
	versionFlag(cmd, &p.version)
	return cmd
}

// purged is the answer of a purge: the keys that were destroyed, or of which one must be
// named.
type purged struct {
	Purged  string               `json:"purged,omitempty"`
	Refused string               `json:"refused,omitempty"`
	Keys    []kmswire.DeletedKey `json:"keys"`
}

func (p *purge) run(ctx context.Context, cmd *cobra.Command, kms *kmsclient.Provider, out *terminal.Output) error {
	list, err := kms.DeletedKeys(ctx)
	if err != nil {
		return err
	}
	keys := []kmswire.DeletedKey{}
	for _, k := range list {
		if k.Name == p.name && (p.version == "" || slices.Contains(k.Versions, p.version)) {
			keys = append(keys, k)
			fmt.Fprintf(cmd.ErrOrStderr(), "key %s, deleted %s, %d versions, the newest is %s\n", claviger.Printable(p.name), clock(k.Deleted), len(k.Versions), newestVersion(k))
		}
	}
	if len(keys) > 1 && p.version == "" && !p.all {
		err := &exitError{exitRefused, fmt.Errorf("nothing was purged: %d deleted keys have the name %s, listed above; name one of them by --key-version NAME@N, or say --all", len(keys), claviger.Printable(p.name))}
		if out.JSON() {
			return errors.Join(out.Write(purged{Refused: p.name, Keys: keys}, nil), err)
		}
		return err
	}
	if len(keys) > 0 || p.version == "" {
		if err := p.confirm(cmd, len(keys)); err != nil {
			return err
		}
	}
	if len(keys) == 0 { // what an earlier purge has left is ended, or the KMS says what is wrong
		err = kms.Purge(ctx, p.name, p.version)
	}
	for i, k := range keys { // those that were listed, and no other
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
	return out.Write(purged{Purged: p.name, Keys: keys}, func(w io.Writer) { fmt.Fprintf(w, "key %s is gone for ever\n", claviger.Printable(p.name)) })
}

// confirm wants the name once more.
func (p *purge) confirm(cmd *cobra.Command, n int) (err error) {
	var typed string
	if p.yes != nil {
		typed = *p.yes
	} else {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d deleted keys will be destroyed, and all that they encrypted is lost. Type the key's name to purge: ", n)
		if typed, err = readName(cmd.InOrStdin()); err != nil {
			return err
		}
	}
	if typed != p.name {
		return &exitError{exitRefused, fmt.Errorf("nothing was purged: %q is not the key's name, %q", typed, p.name)}
	}
	return nil
}

// readName reads one line.
func readName(in io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, 8<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}
