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
		Short: "Write a trustee, or a KT KMS's identity, as one encrypted file",
		Long: `backup writes the identity, certificate and store of a trustee into one OpenPGP message to the public keys in KEYFILE (as gpg --export writes
them), with a manifest; nothing of it is in the clear on the way. The trustee may run. With --keytrustee it is the folder of a KT KMS, which has
no store: without its secring.gpg nobody can read that KMS's deposits. FILE is never overwritten; - is standard output.`,
		Args: cobra.NoArgs,
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
			passive := ""
			if client != "" {
				dir = client
				if err := location.RefuseServer(dir); err != nil {
					return err
				}
			} else {
				folder, err := location.Load(dir)
				if err != nil {
					return err
				}
				s, err := location.Open(cmd.Context(), folder, nil)
				if err != nil {
					return err
				}
				defer s.Close() //nolint:errcheck // it was only read
				store = s
				if logged, ok := s.(replica.Logged); ok {
					st, err := logged.Position(cmd.Context())
					if err != nil {
						return err
					}
					if st.Role == server.RolePassive {
						passive = fmt.Sprintf("this is the passive one of two Key Trustee Servers, at change %d of "+
							"epoch %d: the active one may hold more; claviger trustee status tells\n",
							st.Head.Seq, st.Head.Epoch)
					}
				}
			}
			write := func(w io.Writer) (backup.Manifest, error) {
				return backup.Write(cmd.Context(), w, to, dir, store, time.Now())
			}
			fmt.Fprint(cmd.ErrOrStderr(), passive)
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
	cmd.Flags().StringVar(&client, "keytrustee", "", "the .keytrustee folder of a KT KMS, in place of a trustee's")
	cmd.Flags().StringVar(&recipient, "recipient", "",
		"file with the OpenPGP public keys that the backup is encrypted to")
	out.Flag(cmd)
	cmd.Flags().StringVar(&file, "out", "", "file to write; - is standard output")
	cmd.MarkFlagsMutuallyExclusive("confdir", "keytrustee")
	for _, name := range []string{"recipient", "out"} {
		_ = cmd.MarkFlagRequired(name) // the flags are defined above
	}
	return cmd
}

func printBackup(w io.Writer, what string, m backup.Manifest) {
	fmt.Fprintf(w, "%s: %s, of %s, made at %s on %s\n", what, m.Identity,
		map[bool]string{true: "a trustee", false: "a client"}[m.Store != nil], m.Made.Format(time.RFC3339), m.Host)
	if s := m.Store; s != nil {
		fmt.Fprintf(w, "%d organizations, %d clients, %d deposits, digest %s\n", s.Orgs, s.Clients,
			s.Deposits, s.Digest)
	}
}

// restoredNote says what a restoration leaves open.
const restoredNote = "What clients deposited after %s is not in it. A KT KMS whose key was made or rolled since " +
	"says so, changes no key, and answers 503 for EDEKs of the versions that are lost; " +
	"restart NameNodes, whose queues hold such EDEKs. The other trustee, a newer backup or a store beside the old " +
	"one may have them: claviger trustee recover FILE"

func newTrusteeRestore() *cobra.Command {
	var r restoreFlags
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "restore --confdir DIR [--identity KEYRING] [--store URI] FILE",
		Short: "Restore what backup wrote",
		Long: `restore puts a trustee, or a KT KMS's folder, back into DIR, which must not be there or be empty. KEYRING holds the private key without a
passphrase, as gpg --export-secret-keys writes it; without --identity, FILE is taken for decrypted already, as in

  gpg --decrypt FILE | claviger trustee restore --confdir DIR -

All of it is compared with the manifest, the store as it then is too, before DIR is there; a restoration that fails or is killed leaves no DIR.
With --store the deposits go into a PostgreSQL database, which must be empty, or filled by a restoration of this backup that was killed; without it into DIR/` + location.FileName + `, wherever they were: backup and
restore take them from one store to the other. A trustee that was one of two starts by itself; give it its partner anew by trustee serve --peer.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return restoreTrustee(cmd, &out, r, args[0])
		},
	}
	trusteeDirFlag(cmd, &r.dir)
	out.Flag(cmd)
	cmd.Flags().StringVar(&r.uri, "store", "", trusteeStoreHelp)
	cmd.Flags().StringVar(&r.identity, "identity", "", "file with the private key that opens the backup")
	_ = cmd.MarkFlagRequired("confdir") // the flag is defined above
	return cmd
}

// restoreFlags are the flags of trustee restore.
type restoreFlags struct {
	dir, identity, uri string
}

// restoreTrustee restores a file, or standard input where its name is "-".
func restoreTrustee(cmd *cobra.Command, out *terminal.Output, r restoreFlags, name string) error {
	// The folder takes the place of r.dir. Where r.dir does not exist, it is made beside it.
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

// decrypted returns the text of a backup. identity is the file with the private key; "" means that the backup was
// decrypted before.
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

// refuseEncrypted returns an error where in is an OpenPGP message: armored, or binary. The first byte of a binary
// message has its highest bit set (RFC 9580, 4.2). A decrypted backup begins with the name of a file.
func refuseEncrypted(in io.Reader) (io.Reader, error) {
	r := bufio.NewReader(in)
	head, err := r.Peek(len(armorBegin))
	if len(head) > 0 && head[0]&0x80 != 0 || err == nil && string(head) == armorBegin {
		return nil, errors.New("the backup is encrypted: pass --identity KEYRING, the file with the private key " +
			"that opens it; or decrypt the backup before, with gpg --decrypt")
	}
	return r, nil
}

// armorBegin is how an armored OpenPGP message begins.
const armorBegin = "-----BEGIN PGP MESSAGE-----"
