package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger/keyhsm"
	keyhsmhost "claviger/keyhsm/host"
	"claviger/pkcs11"
	"claviger/terminal"
)

func newKeyHSMCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keyhsm", Short: "Wrap a trustee's deposits with a key that stays in the HSM",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newKeyHSMSetup(), newKeyHSMTrust(), newKeyHSMValidate(), newKeyHSMSettings(),
		newKeyHSMStart(), newKeyHSMStatus(), newKeyHSMReload())
	return cmd
}

// keyHSMConf adds the flag --conf, which each subcommand of keyhsm has.
func keyHSMConf(cmd *cobra.Command, conf *string) {
	cmd.Flags().StringVar(conf, "conf", "", "configuration folder, with "+keyhsm.SettingsFile)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
}

func newKeyHSMSetup() *cobra.Command {
	var s keyhsmhost.Setup
	var slot int
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "setup (luna | ncipher | softhsm | cloudhsm | generic) --conf DIR (--token LABEL | " +
			"--serial SERIAL | --slot N) --pin-file FILE",
		Short: "Make the key pair on the token, and write the settings",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			s.Settings.HSM, err = pkcs11.ParseProfile(args[0])
			if err != nil {
				return &exitError{exitUsage, fmt.Errorf("unknown HSM %q; known ones: %v", args[0], pkcs11.Profiles())}
			}
			if slot >= 0 {
				n := uint(slot)
				s.Settings.Slot = &n
			}
			return setupKeyHSM(cmd.Context(), &out, &s)
		},
	}
	keyHSMConf(cmd, &s.Folder)
	out.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&s.Settings.Module, "module", "",
		"path of the HSM's PKCS#11 library (default: the path that the HSM's client installs)")
	f.StringVar(&s.Settings.Token, "token", "", "label of the token")
	f.StringVar(&s.Settings.Serial, "serial", "", "serial number of the token")
	f.IntVar(&slot, "slot", -1, "slot of the token")
	hideDefault(cmd, "slot")
	f.StringVar(&s.Settings.PINFile, "pin-file", "", "file that holds the user's PIN and nothing else")
	f.StringVar(&s.Settings.KeyLabel, "key-label", "claviger-keyhsm", "label of the key pair")
	f.StringVar(&s.Settings.KeyID, "key-id", "", "CKA_ID of an existing key pair, in hexadecimal")
	f.IntVar(&s.Bits, "bits", 3072, "bits of the new pair: 2048, 3072 or 4096")
	f.StringVar(&s.Settings.Listen, "listen", keyhsm.DefaultListen, "address and port of the server")
	f.StringSliceVar(&s.Hosts, "host", nil,
		"name or address in the new certificate (default: this host's name)")
	f.StringVar(&s.Settings.Certificate, "certificate", "", "PEM file of the server's certificate")
	f.StringVar(&s.Settings.PrivateKey, "key", "", "PEM file of the server's private key")
	_ = cmd.MarkFlagRequired("pin-file") // the flag is defined above
	return cmd
}

// setupKeyHSM sets up the folder of a Key HSM, and prints each step.
func setupKeyHSM(ctx context.Context, out *terminal.Output, s *keyhsmhost.Setup) error {
	if err := s.Complete(); err != nil {
		return &exitError{exitUsage, err}
	}
	ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
	defer cancel()
	var writeErr error
	report := func(text string) { writeErr = errors.Join(writeErr, out.Printf("%s\n", text)) }
	if err := s.Run(ctx, report); err != nil {
		return err
	}
	set, _, err := keyhsm.ReadSettings(s.Folder) // with the defaults, as keyhsm settings prints them
	if err != nil {
		return err
	}
	return errors.Join(writeErr, out.Write(set, func(io.Writer) {})) // the text output has shown the steps already
}

func newKeyHSMTrust() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "trust --conf DIR FILE",
		Short: "Trust the certificate of a trustee",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := readKeyHSM(cmd.ErrOrStderr(), conf)
			if err != nil {
				return err
			}
			cert, file, added, err := keyhsm.AddTrusted(set.Trust, args[0])
			if err != nil {
				return err
			}
			trusted := trustedCertificate{cert.Subject.String(), cert.NotAfter.UTC(), file, added}
			return out.Write(trusted, func(w io.Writer) {
				word := "now"
				if !added {
					word = "already"
				}
				fmt.Fprintf(w, "%q, until %s, is trusted %s: %s\n", trusted.Subject,
					trusted.Until.Format(time.DateOnly), word, file)
			})
		},
	}
	keyHSMConf(cmd, &conf)
	out.Flag(cmd)
	return cmd
}

// trustedCertificate is the report of keyhsm trust.
type trustedCertificate struct {
	Subject string    `json:"subject"`
	Until   time.Time `json:"until"`
	File    string    `json:"file"`
	Added   bool      `json:"added"` // false: it was trusted before
}

// readKeyHSM reads the settings, and writes its warnings to w.
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
				fmt.Fprintf(w,
					"HSM\t%s\nmodule\t%s\ntoken\t%s\nPIN file\t%s\nkey\t%s, id %s\nlistens "+
						"at\t%s\ncertificate\t%s\nprivate key\t%s\ntrust\t%s\nconnections\tup to %d\n",
					s.HSM, s.Module, token, s.PINFile, s.KeyLabel, s.KeyID, s.Listen, s.Certificate, s.PrivateKey,
					s.Trust, s.MaxConnections)
			})
		},
	}
	keyHSMConf(cmd, &conf)
	out.Flag(cmd)
	return cmd
}
