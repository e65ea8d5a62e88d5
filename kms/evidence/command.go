package evidence

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/kms/edeks"
	"claviger/migrate/evidence"
	"claviger/terminal"
)

// Use and Short describe the command claviger migrate report.
const (
	Use   = "report --conf DIR --out FILE --key KEY"
	Short = "Write a signed file that proves the migration to an auditor"
)

// Options are the flags of the command.
type Options struct {
	edeks.VerdictOptions
	Out         string
	Key         string // file of the private key
	VerdictFile string
	Overwrite   bool
}

// Define gives the command its flags and its subcommands.
func (o *Options) Define(cmd *cobra.Command) {
	o.VerdictOptions.Define(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Out, "out", "", "write this new file")
	f.StringVar(&o.Key, "key", "", "file of the private key that signs; claviger migrate report keygen makes one")
	f.StringVar(&o.VerdictFile, "verdict", "", "output of an earlier claviger migrate verdict -o json")
	f.BoolVar(&o.Overwrite, "overwrite", false, "replace the file of --out, if it is a report")
	_ = cmd.MarkFlagRequired("out") // the flags are defined above
	_ = cmd.MarkFlagRequired("key")
	cmd.AddCommand(verifyCommand(), keygenCommand())
}

// check returns an error of the command line.
func (o *Options) check() error {
	if o.VerdictFile != "" && len(o.Images)+len(o.NameNodes) > 0 {
		return &terminal.UsageError{Err: errors.New("--verdict and the images of --image and --namenode exclude " +
			"each other: a verdict by new images replaces the earlier one")}
	}
	return terminal.NewFile("--out", o.Out)
}

// text writes the result for people.
func (r *Written) text(w io.Writer) {
	fmt.Fprintf(w, "%s is written: %d bytes, signed by the key\n  %s\n", claviger.Printable(r.File), r.Bytes, r.Signer)
	for _, p := range r.Parts {
		if p.Made {
			fmt.Fprintf(w, "  has    %s\n", p.What)
		} else {
			fmt.Fprintf(w, "  lacks  %s: %s\n", p.What, p.Why)
		}
	}
	fmt.Fprintln(w, "Give the auditor the public key apart from the file. To check the file there:\n"+
		"  claviger migrate report verify FILE --public-key KEY.pub")
}

func verifyCommand() *cobra.Command {
	var out terminal.Output
	var key string
	cmd := &cobra.Command{
		Use:   "verify FILE --public-key KEY.pub",
		Short: "Verify the signature and the content of a report",
		Args:  cobra.ExactArgs(1),
		RunE:  func(_ *cobra.Command, args []string) error { return verify(args[0], key, &out) },
	}
	cmd.Flags().StringVar(&key, "public-key", "", "file of the public key, in PEM")
	out.Flag(cmd)
	return cmd
}

func verify(file, key string, out *terminal.Output) error {
	if key == "" {
		return withoutKey(file)
	}
	public, err := evidence.ReadPublicKey(key)
	if err != nil {
		return fmt.Errorf("--public-key: %w", err)
	}
	v, err := evidence.Verify(file, public)
	if err != nil {
		return err
	}
	if err := out.Write(v, v.Text); err != nil || v.Verified {
		return err
	}
	return claviger.Refuse("%s is not verified", claviger.Printable(file))
}

// withoutKey returns the error of a verification without a public key.
func withoutKey(file string) error {
	claim := ""
	if fingerprint := evidence.Claimed(file); fingerprint != "" {
		claim = fmt.Sprintf(" The file names the key %s, but anybody can write that into a file: ask the site whether "+
			"it is the site's key.", claviger.Printable(fingerprint))
	}
	return &terminal.UsageError{Err: fmt.Errorf("--public-key is missing: get the file of the public key from the "+
		"site that made the report, apart from the report, and name it.%s", claim)}
}

func keygenCommand() *cobra.Command {
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make the key that signs reports",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := terminal.NewFile("FILE", args[0]); err != nil {
				return err
			}
			pair, err := evidence.MakeKey(args[0])
			if err != nil {
				return err
			}
			return out.Write(pair, func(w io.Writer) {
				fmt.Fprintf(w, "private key\t%s (keep it secret)\npublic key\t%s\nfingerprint\t%s\n", pair.Private,
					pair.Public, pair.Fingerprint)
			})
		},
	}
	out.Flag(cmd)
	return cmd
}
