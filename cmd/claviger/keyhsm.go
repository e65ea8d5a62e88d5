package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"claviger/durable"
	"claviger/internal/softhsm"
	"claviger/keyhsm"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/terminal"
)

// keyHSMModules are where the makers' clients put their libraries.
var keyHSMModules = map[pkcs11.Profile]string{
	pkcs11.Luna:    "/usr/safenet/lunaclient/lib/libCryptoki2_64.so",
	pkcs11.NCipher: "/opt/nfast/toolkits/pkcs11/libcknfast.so",
}

func newKeyHSMCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keyhsm", Short: "Wrap a trustee's deposits by a key that stays in the HSM", Args: cobra.NoArgs,
		Long: `keyhsm is Key HSM: a server beside a Key Trustee Server that encrypts each deposit once more, under a data key that an RSA pair in the HSM wraps.
When that pair is destroyed, the deposits are unreadable. Its verbs are those of Cloudera's "service keyhsm".`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newKeyHSMSetup(), newKeyHSMTrust(), newKeyHSMValidate(), newKeyHSMSettings(), newKeyHSMStart(), newKeyHSMStatus(), newKeyHSMReload())
	return cmd
}

// keyHSMConf adds the flag that all its subcommands have.
func keyHSMConf(cmd *cobra.Command, conf *string) {
	cmd.Flags().StringVar(conf, "conf", "", "folder of "+keyhsm.SettingsFile)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
}

// keyHSMSetup is what `keyhsm setup` is told.
type keyHSMSetup struct {
	conf  string
	bits  int
	hosts []string
	set   keyhsm.Settings
}

func newKeyHSMSetup() *cobra.Command {
	var s keyHSMSetup
	var slot int
	cmd := &cobra.Command{
		Use:   "setup (luna | ncipher | softhsm | generic) --conf DIR (--token LABEL | --serial SERIAL | --slot N) --pin-file FILE",
		Short: "Make the pair in the token, and write the settings",
		Long: `setup makes an RSA pair in the token, whose private key never leaves it, has it wrap and unwrap once, and writes DIR/` + keyhsm.SettingsFile + `.
Unless --certificate and --key name others, it makes DIR/` + keyhsm.CertificateFile + ` and DIR/` + keyhsm.PrivateKeyFile + `; give the first of them to the trustees.
With --key-id, an existing pair is used: for a second Key HSM at the same HSM, or after a move. Nothing is ever overwritten.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if s.set.HSM, err = pkcs11.ParseProfile(args[0]); err != nil || s.set.HSM == "" {
				return &exitError{exitUsage, fmt.Errorf("unknown HSM %q; known ones: %v", args[0], pkcs11.Profiles())}
			}
			if slot >= 0 {
				n := uint(slot)
				s.set.Slot = &n
			}
			return s.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	keyHSMConf(cmd, &s.conf)
	f := cmd.Flags()
	f.StringVar(&s.set.Module, "module", "", "path of the HSM's PKCS#11 library; otherwise where its client puts it")
	f.StringVar(&s.set.Token, "token", "", "label of the token")
	f.StringVar(&s.set.Serial, "serial", "", "serial number of the token")
	f.IntVar(&slot, "slot", -1, "slot of the token")
	f.StringVar(&s.set.PINFile, "pin-file", "", "file that holds the user's PIN and nothing else")
	f.StringVar(&s.set.KeyLabel, "key-label", "claviger-keyhsm", "label of the pair")
	f.StringVar(&s.set.KeyID, "key-id", "", "CKA_ID, in hexadecimal, of a pair that is there already")
	f.IntVar(&s.bits, "bits", 3072, "bits of the new pair: 2048, 3072 or 4096")
	f.StringVar(&s.set.Listen, "listen", keyhsm.DefaultListen, "address and port to listen at")
	f.StringSliceVar(&s.hosts, "host", nil, "name or address that the new certificate is good for; otherwise this host's")
	f.StringVar(&s.set.Certificate, "certificate", "", "PEM file of the server's certificate")
	f.StringVar(&s.set.PrivateKey, "key", "", "PEM file of its private key")
	_ = cmd.MarkFlagRequired("pin-file") // the flag is defined above
	return cmd
}

// run does what can fail for the command line's sake first, then the token, and
// the settings last: what it made is unmade where a later step fails.
func (s *keyHSMSetup) run(ctx context.Context, out io.Writer) error {
	fresh := s.set.KeyID == ""
	certificate, err := s.complete()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	if err := s.set.Check(s.conf); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	cfg, err := s.set.PKCS11()
	if err != nil {
		return err
	}
	tok, err := pkcs11.Open(ctx, cfg)
	if err != nil {
		return err
	}
	info := tok.Info()
	fmt.Fprintf(out, "token %s, serial %s, %s %s: logged in\n", info.Label, info.Serial, info.Manufacturer, info.Model)
	return errors.Join(s.onToken(ctx, out, tok, fresh, certificate), tok.Close())
}

// complete fills in what is not told; certificate says whether one is to be made.
func (s *keyHSMSetup) complete() (certificate bool, err error) {
	if s.set.Module == "" {
		if s.set.Module = keyHSMModules[s.set.HSM]; s.set.HSM == pkcs11.SoftHSM {
			if s.set.Module, err = softhsm.Module(); err != nil {
				return false, err
			}
		}
	}
	if s.set.KeyID == "" {
		id := make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return false, err
		}
		s.set.KeyID = hex.EncodeToString(id)
	}
	if (s.set.Certificate == "") != (s.set.PrivateKey == "") {
		return false, errors.New("--certificate and --key belong together: give both, or neither to have them made")
	}
	if certificate = s.set.Certificate == ""; certificate {
		s.set.Certificate, s.set.PrivateKey = keyhsm.CertificateFile, keyhsm.PrivateKeyFile
	} else if s.set.Certificate, err = filepath.Abs(s.set.Certificate); err == nil {
		s.set.PrivateKey, err = filepath.Abs(s.set.PrivateKey)
	}
	if err == nil {
		s.set.PINFile, err = filepath.Abs(s.set.PINFile)
	}
	s.set.Trust = "trust"
	return certificate, err
}

func (s *keyHSMSetup) onToken(ctx context.Context, out io.Writer, tok *pkcs11.Token, fresh, certificate bool) (err error) {
	var undo []func() error
	defer func() {
		if err != nil {
			for _, f := range slices.Backward(undo) {
				err = errors.Join(err, f())
			}
		}
	}()
	id, label := s.set.ID(), s.set.KeyLabel
	if fresh {
		if err := owner.RefuseRoot(s.set.PINFile); err != nil {
			return err
		}
		if err := tok.GeneratePair(ctx, id, label, s.bits); err != nil {
			return err
		}
		// It has wrapped nothing yet.
		undo = append(undo, func() error { return tok.DestroyPair(context.WithoutCancel(ctx), id, label) })
	}
	st := keyhsm.NewKeeper(tok, id, label).Status(ctx)
	if st.State != keyhsm.Ready {
		return fmt.Errorf("the pair does not wrap and unwrap: %s", st.Detail)
	}
	fmt.Fprintf(out, "RSA pair %q, id %s, %d bits: wraps and unwraps by RSA-OAEP with %s\n", label, st.KeyID, st.KeyBits, st.OAEP)
	if err := durable.MakeFolder(s.conf, 0o700); err != nil {
		return err
	}
	if certificate {
		remove, err := s.makeCertificate(out)
		if err != nil {
			return err
		}
		undo = append(undo, remove)
	}
	if err := keyhsm.WriteSettings(s.conf, s.set); err != nil {
		return err
	}
	fmt.Fprintf(out, "wrote %s; next: claviger keyhsm trust --conf %s TRUSTEE-CERTIFICATE, then claviger keyhsm validate --conf %s\n", filepath.Join(s.conf, keyhsm.SettingsFile), s.conf, s.conf)
	return nil
}

// makeCertificate makes the certificate and its key, unless a setup that was broken off has
// made them. remove takes away what it has made.
func (s *keyHSMSetup) makeCertificate(out io.Writer) (remove func() error, err error) {
	cert, hosts := filepath.Join(s.conf, keyhsm.CertificateFile), s.certificateHosts()
	made, err := keyhsm.HasCertificate(s.conf, hosts)
	if err != nil {
		return nil, err
	}
	if made {
		fmt.Fprintf(out, "%s and its key are there, of a setup that was broken off: they are used\n", cert)
		return func() error { return nil }, nil
	}
	if err := keyhsm.CreateCertificate(s.conf, hosts); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "wrote %s for %v; trustees need this file\n", cert, hosts)
	return func() error { return durable.Remove(cert, filepath.Join(s.conf, keyhsm.PrivateKeyFile)) }, nil
}

// certificateHosts are those that were told, or else this host's.
func (s *keyHSMSetup) certificateHosts() []string {
	if len(s.hosts) > 0 {
		return s.hosts
	}
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	if host, _, err := net.SplitHostPort(s.set.Listen); err == nil && host != "" {
		if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func newKeyHSMTrust() *cobra.Command {
	var conf string
	cmd := &cobra.Command{
		Use:   "trust --conf DIR FILE",
		Short: "Trust the certificate of a trustee",
		Long: `trust takes the certificate in FILE (PEM or DER; of a chain, the first) for that of a trustee, who may then have deposits wrapped and unwrapped.
It is that very certificate: one that replaces it must be trusted anew. A server that runs learns of it by: claviger keyhsm reload.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			cert, file, added, err := keyhsm.AddTrusted(set.Trust, args[0])
			if err != nil {
				return err
			}
			word := "now"
			if !added {
				word = "already"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%q, until %s, is trusted %s: %s\n", cert.Subject, cert.NotAfter.UTC().Format("2006-01-02"), word, file)
			return nil
		},
	}
	keyHSMConf(cmd, &conf)
	return cmd
}

// readKeyHSM reads the settings, and tells what in them is odd.
func readKeyHSM(w io.Writer, dir string) (keyhsm.Settings, error) {
	set, warnings, err := keyhsm.ReadSettings(dir)
	for _, warning := range warnings {
		fmt.Fprintf(w, "claviger: warning: %s\n", warning)
	}
	return set, err
}

func newKeyHSMSettings() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "settings --conf DIR", Short: "Show the settings in force", Args: cobra.NoArgs,
		Long: "settings shows what " + keyhsm.SettingsFile + " says, and what is assumed where it says nothing. There is no secret in it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			return out.Write(s, func(w io.Writer) {
				token := "token " + s.Token
				if s.Serial != "" {
					token = "serial " + s.Serial
				} else if s.Slot != nil {
					token = fmt.Sprint("slot ", *s.Slot)
				}
				fmt.Fprintf(w, "HSM\t%s\nmodule\t%s\ntoken\t%s\nPIN file\t%s\nkey\t%s, id %s\nlistens at\t%s\ncertificate\t%s\nprivate key\t%s\ntrust\t%s\nconnections\tup to %d\n",
					s.HSM, s.Module, token, s.PINFile, s.KeyLabel, s.KeyID, s.Listen, s.Certificate, s.PrivateKey, s.Trust, s.MaxConnections)
			})
		},
	}
	keyHSMConf(cmd, &conf)
	out.Flag(cmd)
	return cmd
}
