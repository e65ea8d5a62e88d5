package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/trustee"
	"claviger/trustee/server"
	"claviger/typo"
)

func newOrgtoolCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "orgtool", Short: "Organizations of a Key Trustee Server, their secrets and clients", Args: cobra.NoArgs,
		Long: `orgtool works on the store of the Key Trustee Server of this host, while that runs or not; its subcommands and options are those of
keytrustee-orgtool, and clients.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newOrgAdd(), newOrgList(), newOrgClients(), newOrgState("disable-client", "Keep a client out", server.Disabled),
		newOrgState("enable-client", "Let a client in that waits or was disabled", server.Active), newOrgSetAuth())
	return cmd
}

// orgCommand is a subcommand that works on the store.
func orgCommand(use, short, long string, work func(cmd *cobra.Command, store server.Store) error) *cobra.Command {
	var dir string
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) (err error) {
		folder, err := loadTrustee(dir)
		if err != nil {
			return err
		}
		store, err := openTrusteeStore(cmd.Context(), folder, nil)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		return work(cmd, store)
	}}
	trusteeDirFlag(cmd, &dir)
	return cmd
}

// newAuth is a secret of 160 bits that can be typed.
func newAuth() string {
	var b [20]byte
	_, _ = rand.Read(b[:]) // it never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// readSecretLine reads one line.
func readSecretLine(in io.Reader) (string, error) {
	const most = 4 << 10
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("a secret of more than %d bytes", most)
	}
	return strings.TrimRight(string(b), "\r\n"), err
}

func newOrgAdd() *cobra.Command {
	var name, contacts string
	cmd := orgCommand("add -n NAME -c CONTACT[,CONTACT...]", "Add an organization", "add makes an organization with a fresh secret, and prints it as list does.",
		func(cmd *cobra.Command, store server.Store) error {
			if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
				return &exitError{exitUsage, fmt.Errorf("-n %q: a name has 1 to 255 bytes, without blanks", name)}
			}
			o := server.Org{Name: name, UUID: trustee.NewUUID(), Auth: newAuth(), Created: time.Now()}
			for c := range strings.SplitSeq(contacts, ",") {
				if c = strings.TrimSpace(c); c != "" {
					o.Contacts = append(o.Contacts, c)
				}
			}
			if err := store.AddOrg(cmd.Context(), o); err != nil {
				if claviger.Is(err, claviger.KeyExists) {
					return &exitError{exitRefused, fmt.Errorf("organization %q is there already", name)}
				}
				return err
			}
			return printOrgs(cmd, []server.Org{o})
		})
	cmd.Flags().StringVarP(&name, "name", "n", "", "the organization's name")
	cmd.Flags().StringVarP(&contacts, "contacts", "c", "", "whom to ask about it, separated by commas")
	_ = cmd.MarkFlagRequired("name") // the flag is defined above
	return cmd
}

func newOrgList() *cobra.Command {
	return orgCommand("list", "Show the organizations, with their secrets, as JSON", "", func(cmd *cobra.Command, store server.Store) error {
		orgs, err := store.Orgs(cmd.Context())
		if err != nil {
			return err
		}
		return printOrgs(cmd, orgs)
	})
}

// listedOrg is an organization in the JSON of keytrustee-orgtool list.
type listedOrg struct {
	Auth       *string  `json:"auth_secret"` // null: clients wait for an operator
	Contacts   []string `json:"contacts"`
	Creation   string   `json:"creation"`
	Expiration string   `json:"expiration"`
	KeyInfo    *string  `json:"key_info"`
	Name       string   `json:"name"`
	State      int      `json:"state"`
	UUID       string   `json:"uuid"`
}

// orgTime is the form of times in that JSON, without a zone; ours are UTC.
const orgTime = "2006-01-02T15:04:05"

func printOrgs(cmd *cobra.Command, orgs []server.Org) error {
	list := map[string]listedOrg{}
	for _, o := range orgs {
		l := listedOrg{Contacts: append([]string{}, o.Contacts...), Creation: o.Created.UTC().Format(orgTime), Expiration: "9999-12-31T18:59:59", Name: o.Name, UUID: o.UUID}
		if o.Auth != "" {
			l.Auth = &o.Auth
		}
		list[o.Name] = l
	}
	return printOrgJSON(cmd, list)
}

func printOrgJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "    ")
	return enc.Encode(v)
}

// listedClient is a client in the JSON of orgtool clients, which is ours.
type listedClient struct {
	Fingerprint string       `json:"fingerprint"`
	Org         string       `json:"org"`
	State       server.State `json:"state"`
	Creation    string       `json:"creation"`
}

func newOrgClients() *cobra.Command {
	var name string
	cmd := orgCommand("clients [-n NAME]", "Show the clients, and which of them wait to be let in, as JSON", "", func(cmd *cobra.Command, store server.Store) error {
		if name != "" { // a name that is wrong looks like an organization without clients
			if _, err := store.Org(cmd.Context(), name); claviger.Is(err, claviger.KeyNotFound) {
				return noOrg(cmd.Context(), store, name)
			} else if err != nil {
				return err
			}
		}
		clients, err := store.Clients(cmd.Context(), name)
		if err != nil {
			return err
		}
		list := make([]listedClient, len(clients))
		for i, c := range clients {
			list[i] = listedClient{Fingerprint: c.Fingerprint, Org: c.Org, State: c.State, Creation: c.Created.UTC().Format(orgTime)}
		}
		return printOrgJSON(cmd, list)
	})
	cmd.Flags().StringVarP(&name, "name", "n", "", "the organization's name; otherwise all")
	return cmd
}

func noOrg(ctx context.Context, store server.Store, name string) error {
	orgs, err := store.Orgs(ctx)
	names := make([]string, len(orgs))
	for i, o := range orgs {
		names[i] = o.Name
	}
	return &exitError{exitRefused, errors.Join(fmt.Errorf("there is no organization %q%s; claviger orgtool list shows them",
		name, typo.DidYouMean(name, names, claviger.Printable)), err)}
}

// readFingerprint takes a fingerprint in groups, as gpg prints it, and with
// "4096R/" before it, as keytrustee.conf holds it.
func readFingerprint(s string) (string, error) {
	_, f, ok := strings.Cut(s, "/")
	if !ok {
		f = s
	}
	f = strings.ToUpper(strings.ReplaceAll(f, " ", ""))
	if len(f) != 40 || strings.Trim(f, "0123456789ABCDEF") != "" {
		return "", &exitError{exitUsage, fmt.Errorf("--fingerprint %.80q: it must have 40 hex digits", s)}
	}
	return f, nil
}

func newOrgState(use, short string, state server.State) *cobra.Command {
	var fingerprint string
	cmd := orgCommand(use+" --fingerprint FINGERPRINT", short, "", func(cmd *cobra.Command, store server.Store) error {
		f, err := readFingerprint(fingerprint)
		if err != nil {
			return err
		}
		if err := store.SetState(cmd.Context(), f, state); err != nil {
			if claviger.Is(err, claviger.KeyNotFound) {
				return &exitError{exitRefused, fmt.Errorf("no client %s is registered here; claviger orgtool clients shows them", f)}
			}
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "client %s is %s\n", f, state)
		return err
	})
	cmd.Flags().StringVar(&fingerprint, "fingerprint", "", "of the client's OpenPGP key")
	_ = cmd.MarkFlagRequired("fingerprint") // the flag is defined above
	return cmd
}

func newOrgSetAuth() *cobra.Command {
	var name, secret string
	cmd := orgCommand("set-auth -n NAME -s SECRET", "Set the secret by which clients register",
		"set-auth sets the secret; an empty one (-s '') makes each new client wait for enable-client. Clients that are registered stay so. Others on this host see SECRET in the list of processes; - reads it from standard input.",
		func(cmd *cobra.Command, store server.Store) error {
			if secret == "-" {
				var err error
				if secret, err = readSecretLine(cmd.InOrStdin()); err != nil {
					return err
				}
			}
			if err := store.SetAuth(cmd.Context(), name, secret); err != nil {
				if claviger.Is(err, claviger.KeyNotFound) {
					return noOrg(cmd.Context(), store, name)
				}
				return err
			}
			return nil
		})
	cmd.Flags().StringVarP(&name, "name", "n", "", "the organization's name")
	cmd.Flags().StringVarP(&secret, "secret", "s", "", "the secret, '' for none, - to read it from standard input")
	for _, f := range []string{"name", "secret"} {
		_ = cmd.MarkFlagRequired(f) // the flags are defined above
	}
	return cmd
}
