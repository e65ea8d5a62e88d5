package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/terminal"
	"claviger/trustee"
	"claviger/trustee/location"
	"claviger/trustee/server"
	"claviger/typo"
)

func newOrgtoolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "orgtool",
		Short: "Manage organizations of a Key Trustee Server, their secrets and clients",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newOrgAdd(), newOrgList(), newOrgClients(), newOrgSetAuth(),
		newOrgState("disable-client", "Refuse the requests of a client", server.Disabled),
		newOrgState("enable-client", "Accept a client that is pending or disabled", server.Active))
	return cmd
}

// orgCommand returns a subcommand that works on the store.
func orgCommand(use, short string, work func(ctx context.Context, store server.Store) error) *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		folder, err := location.Load(dir)
		if err != nil {
			return err
		}
		store, err := location.Open(cmd.Context(), folder, nil)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		return work(cmd.Context(), store)
	}
	trusteeDirFlag(cmd, &dir)
	return cmd
}

// readSecretLine reads a secret from standard input, without the line end after it.
func readSecretLine(in io.Reader) (string, error) {
	const maxSecret = 4 << 10
	b, err := io.ReadAll(io.LimitReader(in, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("the secret has more than %d bytes", maxSecret)
	}
	return strings.TrimRight(string(b), "\r\n"), err
}

func newOrgAdd() *cobra.Command {
	var name, contacts string
	var out terminal.Output
	cmd := orgCommand("add -n NAME -c CONTACT[,CONTACT...]", "Add an organization",
		func(ctx context.Context, store server.Store) error {
			o, err := server.NewOrg(name, splitContacts(contacts))
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("-n %q: a name has 1 to 255 bytes, without blanks", name)}
			}
			if err := store.AddOrg(ctx, o); err != nil {
				if claviger.Is(err, claviger.KeyExists) {
					return &exitError{exitRefused, fmt.Errorf("organization %q already exists", name)}
				}
				return err
			}
			return printOrgs(&out, []server.Org{o})
		})
	out.JSONFlag(cmd)
	cmd.Flags().StringVarP(&name, "name", "n", "", "the organization's name")
	cmd.Flags().StringVarP(&contacts, "contacts", "c", "", "people to contact about it, separated by commas")
	_ = cmd.MarkFlagRequired("name") // the flag is defined above
	return cmd
}

func splitContacts(list string) (contacts []string) {
	for c := range strings.SplitSeq(list, ",") {
		if c = strings.TrimSpace(c); c != "" {
			contacts = append(contacts, c)
		}
	}
	return contacts
}

func newOrgList() *cobra.Command {
	var out terminal.Output
	cmd := orgCommand("list", "Show the organizations with their secrets",
		func(ctx context.Context, store server.Store) error {
			orgs, err := store.Orgs(ctx)
			if err != nil {
				return err
			}
			return printOrgs(&out, orgs)
		})
	out.JSONFlag(cmd)
	return cmd
}

// listedOrg is an organization in the JSON of keytrustee-orgtool list.
type listedOrg struct {
	Auth       *string  `json:"auth_secret"` // null: an operator must accept each client
	Contacts   []string `json:"contacts"`
	Creation   string   `json:"creation"`
	Expiration string   `json:"expiration"`
	KeyInfo    *string  `json:"key_info"`
	Name       string   `json:"name"`
	State      int      `json:"state"`
	UUID       string   `json:"uuid"`
}

// orgTime is the format of times in that JSON. It has no zone; claviger writes UTC.
const orgTime = "2006-01-02T15:04:05"

func printOrgs(out *terminal.Output, orgs []server.Org) error {
	list := map[string]listedOrg{}
	for _, o := range orgs {
		l := listedOrg{
			Name: o.Name, UUID: o.UUID, Contacts: append([]string{}, o.Contacts...),
			Creation: o.Created.UTC().Format(orgTime), Expiration: "9999-12-31T18:59:59",
		}
		if o.Auth != "" {
			l.Auth = &o.Auth
		}
		list[o.Name] = l
	}
	return out.Write(list, func(w io.Writer) {
		fmt.Fprintln(w, "NAME\tSECRET\tCONTACTS\tCREATED (UTC)\tUUID")
		for _, name := range slices.Sorted(maps.Keys(list)) {
			l, secret := list[name], "none"
			if l.Auth != nil {
				secret = claviger.Printable(*l.Auth)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", claviger.Printable(name), secret,
				strings.Join(l.Contacts, ","), l.Creation, l.UUID)
		}
	})
}

// listedClient is a client in the JSON of orgtool clients. keytrustee-orgtool has no such command.
type listedClient struct {
	Fingerprint string       `json:"fingerprint"`
	Org         string       `json:"org"`
	State       server.State `json:"state"`
	Creation    string       `json:"creation"`
}

func newOrgClients() *cobra.Command {
	var name string
	var out terminal.Output
	cmd := orgCommand("clients [-n NAME]", "Show the clients and their states",
		func(ctx context.Context, store server.Store) error {
			if name != "" { // without this, a misspelt name looks like an organization without clients
				if _, err := store.Org(ctx, name); err != nil {
					return noOrg(ctx, store, name, err)
				}
			}
			clients, err := store.Clients(ctx, name)
			if err != nil {
				return err
			}
			list := make([]listedClient, len(clients))
			for i, c := range clients {
				list[i] = listedClient{c.Fingerprint, c.Org, c.State, c.Created.UTC().Format(orgTime)}
			}
			return out.Write(list, func(w io.Writer) {
				fmt.Fprintln(w, "FINGERPRINT\tORGANIZATION\tSTATE\tCREATED (UTC)")
				for _, c := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Fingerprint, claviger.Printable(c.Org), c.State, c.Creation)
				}
			})
		})
	out.JSONFlag(cmd)
	cmd.Flags().StringVarP(&name, "name", "n", "", "the organization's name (default: all organizations)")
	return cmd
}

// noOrg returns an error of the store about an organization. If there is no such organization, it suggests similar
// names.
func noOrg(ctx context.Context, store server.Store, name string, err error) error {
	if !claviger.Is(err, claviger.KeyNotFound) {
		return err
	}
	orgs, err := store.Orgs(ctx)
	names := make([]string, len(orgs))
	for i, o := range orgs {
		names[i] = o.Name
	}
	return &exitError{exitRefused,
		errors.Join(fmt.Errorf("there is no organization %q%s; claviger orgtool list prints all organizations",
			name, typo.DidYouMean(name, names, claviger.Printable)), err)}
}

// changedClient is the report of a change of a client's state.
type changedClient struct {
	Fingerprint string       `json:"fingerprint"`
	State       server.State `json:"state"`
}

func newOrgState(use, short string, state server.State) *cobra.Command {
	var fingerprint string
	var out terminal.Output
	cmd := orgCommand(use+" --fingerprint FINGERPRINT", short, func(ctx context.Context, store server.Store) error {
		f, ok := trustee.ParseFingerprint(fingerprint)
		if !ok {
			return &exitError{exitUsage, fmt.Errorf("--fingerprint %.80q: it must have 40 hex digits", fingerprint)}
		}
		if err := store.SetState(ctx, f, state); err != nil {
			if claviger.Is(err, claviger.KeyNotFound) {
				return &exitError{exitRefused,
					fmt.Errorf("no client %s is registered here; claviger orgtool clients prints all clients", f)}
			}
			return err
		}
		return out.Write(changedClient{f, state}, func(w io.Writer) { fmt.Fprintf(w, "client %s is %s\n", f, state) })
	})
	out.Flag(cmd)
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "fingerprint of the client's OpenPGP key")
	_ = cmd.MarkFlagRequired("fingerprint") // the flag is defined above
	return cmd
}

func newOrgSetAuth() *cobra.Command {
	var name, secret string
	var cmd *cobra.Command
	cmd = orgCommand("set-auth -n NAME -s SECRET", "Set the secret with which clients register",
		func(ctx context.Context, store server.Store) error {
			if secret == "-" {
				var err error
				if secret, err = readSecretLine(cmd.InOrStdin()); err != nil {
					return err
				}
			}
			if err := store.SetAuth(ctx, name, secret); err != nil {
				return noOrg(ctx, store, name, err)
			}
			return nil
		})
	cmd.Flags().StringVarP(&name, "name", "n", "", "the organization's name")
	cmd.Flags().StringVarP(&secret, "secret", "s", "", "the secret, '' for none, - to read it from standard input")
	for _, f := range []string{"name", "secret"} {
		_ = cmd.MarkFlagRequired(f) // the flags are defined above
	}
	terminal.AllowEmpty(cmd, "secret")
	return cmd
}
