package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"claviger/durable"
	"claviger/owner"
	"claviger/terminal"
	"claviger/trustee/backup"
	"claviger/trustee/location"
	"claviger/trustee/replica"
	"claviger/trustee/server"
)

func newTrusteeBackup() *cobra.Command {
	var dir, client, recipient, file string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "backup (--confdir DIR | --keytrustee DIR) --recipient KEYFILE --out FILE",
		Short: "Write a trustee, or the identity of a KT KMS, into one encrypted file",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ring, err := os.Open(recipient)
			if err != nil {
				return fmt.Errorf("--recipient: %w", err)
			}
			defer ring.Close()
			to, err := backup.Recipients(ring)
			if err != nil {
				return fmt.Errorf("--recipient %s: %w; give the output of gpg --export", recipient, err)
			}
			var store server.Store
			if client != "" {
				dir = client
				if err := location.RefuseServer(dir); err != nil {
					return err
				}
			} else {
				if store, err = openForBackup(cmd, dir); err != nil {
					return err
				}
				defer store.Close() //nolint:errcheck // it was only read
			}
			write := func(w io.Writer) (backup.Manifest, error) {
				return backup.Write(cmd.Context(), w, to, dir, store, time.Now())
			}
			if file == "-" {
				_, err := write(cmd.OutOrStdout())
				return err
			}
			var m backup.Manifest
			err = durable.CreateFrom(file, 0o600, func(w io.Writer) (err error) {
				m, err = write(w)
				return err
			})
			if err != nil {
				return fmt.Errorf("--out: %w", err)
			}
			return out.Write(m, func(w io.Writer) { printBackup(w, "wrote "+file, m) })
		},
	}
	trusteeDirFlag(cmd, &dir)
	cmd.Flags().StringVar(&client, "keytrustee", "", "the .keytrustee folder of a KT KMS, instead of a trustee's")
	cmd.Flags().StringVar(&recipient, "recipient", "",
		"file with the OpenPGP public keys to encrypt the backup to")
	out.Flag(cmd)
	cmd.Flags().StringVar(&file, "out", "", "file to write; - is standard output")
	cmd.MarkFlagsMutuallyExclusive("confdir", "keytrustee")
	for _, name := range []string{"recipient", "out"} {
		_ = cmd.MarkFlagRequired(name) // the flags are defined above
	}
	return cmd
}

// openForBackup opens the store of a trustee. It warns if that trustee is the passive one of two.
func openForBackup(cmd *cobra.Command, dir string) (server.Store, error) {
	folder, err := location.Load(dir)
	if err != nil {
		return nil, err
	}
	store, err := location.Open(cmd.Context(), folder, nil)
	if err != nil {
		return nil, err
	}
	logged, ok := store.(replica.Logged)
	if !ok {
		return store, nil
	}
	p, err := logged.Position(cmd.Context())
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	if p.Role == server.RolePassive {
		fmt.Fprintf(cmd.ErrOrStderr(), "this is the passive one of two Key Trustee Servers, at change %d of epoch %d: "+
			"the active one may have more; see claviger trustee status\n", p.Head.Seq, p.Head.Epoch)
	}
	return store, nil
}

// printBackup prints a manifest as text.
func printBackup(w io.Writer, what string, m backup.Manifest) {
	fmt.Fprintf(w, "%s: %s, of %s, made at %s on %s\n", what, m.Identity,
		map[bool]string{true: "a trustee", false: "a client"}[m.Store != nil], m.Made.Format(time.RFC3339), m.Host)
	if s := m.Store; s != nil {
		fmt.Fprintf(w, "%d organizations, %d clients, %d deposits, digest %s\n", s.Orgs, s.Clients,
			s.Deposits, s.Digest)
	}
}

// restoredNote says what is missing after a restoration.
const restoredNote = "Deposits made after %s are not restored. A KT KMS that made or rolled a key since then " +
	"reports this, changes no key, and answers 503 for EDEKs of the lost versions. Restart the NameNodes, because " +
	"their queues hold such EDEKs. The other trustee, a newer backup or a file beside the old store may have the " +
	"deposits: claviger trustee recover FILE"

func newTrusteeRestore() *cobra.Command {
	var r restoreFlags
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "restore --confdir DIR [--identity KEYRING] [--store URI] FILE",
		Short: "Restore a backup",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return restoreTrustee(cmd, &out, r, args[0])
		},
	}
	trusteeDirFlag(cmd, &r.dir)
	out.Flag(cmd)
	cmd.Flags().StringVar(&r.uri, "store", "", trusteeStoreHelp)
	cmd.Flags().StringVar(&r.identity, "identity", "", "file with the private key that decrypts the backup")
	_ = cmd.MarkFlagRequired("confdir") // the flag is defined above
	return cmd
}

// restoreFlags are the flags of trustee restore.
type restoreFlags struct {
	dir, identity, uri string
}

// restoreTrustee restores a file, or standard input if its name is "-".
func restoreTrustee(cmd *cobra.Command, out *terminal.Output, r restoreFlags, name string) error {
	// The restored folder is made beside r.dir and then takes its place, so its owner is the user of this process.
	if err := owner.RefuseRoot(r.dir); err != nil {
		return err
	}
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	in, err := decrypted(in, r.identity)
	if err != nil {
		return err
	}
	undo := func(context.Context) error { return nil }
	m, err := backup.Read(cmd.Context(), in, r.dir,
		func(ctx context.Context, folder string) (server.Store, error) {
			store, back, err := location.OpenRestored(ctx, folder, r.uri)
			if err == nil {
				undo = back
			}
			return store, err
		}, r.uri != "")
	if err != nil {
		return errors.Join(err, undo(context.WithoutCancel(cmd.Context())))
	}
	return out.Write(m, func(w io.Writer) {
		printBackup(w, "restored "+r.dir, m)
		if m.Store != nil {
			fmt.Fprintf(w, restoredNote+"\n", m.Made.Format(time.RFC3339))
		}
	})
}

// decrypted returns the text of a backup. identity is the file with the private key; "" means that the backup is
// decrypted already.
func decrypted(in io.Reader, identity string) (io.Reader, error) {
	if identity == "" {
		return refuseEncrypted(in)
	}
	ring, err := os.Open(identity)
	if err != nil {
		return nil, fmt.Errorf("--identity: %w", err)
	}
	defer ring.Close()
	return backup.Decrypt(in, ring)
}

// refuseEncrypted returns an error if in is an OpenPGP message, armored or binary. The first byte of a binary
// message has its highest bit set (RFC 9580, 4.2). A decrypted backup begins with the name of a file.
func refuseEncrypted(in io.Reader) (io.Reader, error) {
	r := bufio.NewReader(in)
	head, err := r.Peek(len(armorBegin))
	if len(head) > 0 && head[0]&0x80 != 0 || err == nil && string(head) == armorBegin {
		return nil, errors.New("the backup is encrypted: pass --identity KEYRING, the file with the private key " +
			"that opens it; or decrypt the backup first, with gpg --decrypt")
	}
	return r, nil
}

// armorBegin is the first line of an armored OpenPGP message.
const armorBegin = "-----BEGIN PGP MESSAGE-----"
