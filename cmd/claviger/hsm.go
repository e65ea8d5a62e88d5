package main

import (
	"cmp"
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
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// hsmTimeout is how long one command may work on the token.
const hsmTimeout = 5 * time.Minute

func newHSMCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "hsm", Short: "Set up, list, inspect and measure an HSM token", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newHSMInit(), newHSMList(), newHSMInspect(), newHSMBench(), newHSMPrune(), newHSMAdopt(),
		newHSMTLSKey())
	return cmd
}

func newHSMInit() *cobra.Command {
	var c pkcs11.FileConfig
	var slot int
	var profile string
	var noCheck, inWorker bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "init --module LIBRARY (--token LABEL | --serial SERIAL | --slot N) " +
			"(--pin-file FILE | --pin-env NAME | --credential NAME) FILE",
		Short: "Write the file that names the token for claviger",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := uint(slot); slot >= 0 {
				c.Slot = &n
			}
			var err error
			if c.Profile, err = pkcs11.ParseProfile(profile); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--profile: %w", err)}
			}
			if cmd.Flags().Changed("worker") {
				c.Worker = map[bool]pkcs11.WorkerMode{true: pkcs11.WorkerYes, false: pkcs11.WorkerNo}[inWorker]
			}
			for _, path := range []*string{&c.PINFile, &c.Standby} {
				if *path == "" {
					continue
				}
				if *path, err = filepath.Abs(*path); err != nil {
					return err
				}
			}
			done, err := initHSM(cmd.Context(), args[0], c, !noCheck)
			if err != nil {
				return err
			}
			return out.Write(done, done.text)
		},
	}
	out.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&c.Module, "module", "", "path of the HSM's PKCS#11 library")
	f.StringVar(&c.Token, "token", "", "label of the token")
	f.StringVar(&c.Serial, "serial", "", "serial number of the token")
	f.IntVar(&slot, "slot", -1, "slot of the token")
	hideDefault(cmd, "slot")
	f.StringVar(&c.PINFile, "pin-file", "", "file that holds the user's PIN and nothing else")
	f.StringVar(&c.PINEnv, "pin-env", "", "environment variable that holds the PIN")
	f.StringVar(&c.Credential, "credential", "", "systemd credential that holds the PIN")
	f.StringVar(&profile, "profile", "", "luna, ncipher, softhsm, cloudhsm or generic (default: by the token's maker)")
	f.IntVar(&c.MaxSessions, "max-sessions", 0, "sessions at most, one for the login (default: from the profile)")
	f.BoolVar(&inWorker, "worker", false, "run the HSM's library in a process of its own")
	f.DurationVar(&c.CallLimit, "call-limit", 0, "longest call in the process of the library (default 25s)")
	f.StringVar(&c.Standby, "standby", "", "keystore file of a token with copies of the keys")
	f.BoolVar(&noCheck, "no-check", false, "write the file without opening the token")
	_ = cmd.MarkFlagRequired("module") // the flag is defined above
	return cmd
}

// initialized is the result of hsm init.
type initialized struct {
	File  string            `json:"file"`
	URI   string            `json:"providerURI"`
	Token *pkcs11.TokenInfo `json:"token,omitempty"` // nil with --no-check
}

func (i *initialized) text(w io.Writer) {
	if t := i.Token; t != nil {
		fmt.Fprintf(w, "token %s, serial %s, %s %s: logged in, encrypts by %s, made and destroyed a key of 256 bits\n",
			t.Label, t.Serial, t.Manufacturer, t.Model, t.Mechanism)
	}
	fmt.Fprintf(w, "wrote %s; in kms-site.xml: hadoop.kms.key.provider.uri = %s\n", i.File, i.URI)
}

// initHSM makes all checks before it writes the file.
func initHSM(ctx context.Context, path string, c pkcs11.FileConfig, check bool) (*initialized, error) {
	if err := c.Check(path); err != nil { // before the PIN is tried: the HSM counts wrong PINs
		return nil, &exitError{exitUsage, err}
	}
	if err := pkcs11.CheckNew(path); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	done := &initialized{File: path, URI: "cloudera.hsmkp://file@" + abs}
	if check {
		cfg, err := c.Config(path)
		if err != nil {
			return nil, &exitError{exitUsage, err}
		}
		ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
		defer cancel()
		info, err := pkcs11.Try(ctx, cfg)
		if err != nil {
			return nil, fmt.Errorf("%s was not written: %w", path, err)
		}
		done.Token = &info
	}
	return done, pkcs11.WriteKeystoreFile(path, c)
}

// hsmCommand returns a subcommand that works on the token of a configuration folder.
func hsmCommand(use, short string, access hsm.Access,
	run func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error) *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return withHSM(cmd, conf, access, func(ctx context.Context, p *hsm.Provider) error { return run(ctx, p, &out) })
	}
	cmd.Flags().StringVar(&conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// withHSM calls work with the token of a configuration folder.
func withHSM(cmd *cobra.Command, conf string, access hsm.Access,
	work func(context.Context, *hsm.Provider) error) error {
	return withHSMService(cmd, conf, access,
		func(ctx context.Context, _ *kms.Service, p *hsm.Provider) error { return work(ctx, p) })
}

// withHSMService is withHSM for work that also needs the service.
func withHSMService(cmd *cobra.Command, conf string, access hsm.Access,
	work func(context.Context, *kms.Service, *hsm.Provider) error) error {
	log, err := newLogger("warn")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), hsmTimeout)
	defer cancel()
	svc, err := kms.Open(ctx, conf, cmd.CommandPath(), access, log)
	if err != nil {
		return err
	}
	p, ok := svc.Primary.(*hsm.Provider)
	if !ok {
		err := fmt.Errorf("the first provider is %s, which is not an HSM. With --conf, name the configuration folder "+
			"of a server with an HSM (cloudera.hsmkp:// or pkcs11:). To list the keys of this server: claviger key "+
			"list --provider kms://https@HOST:9600/kms", svc.Primary.URI())
		return errors.Join(svc.Blame(hadoopconf.ProviderURI, err), svc.Close())
	}
	return errors.Join(kms.RefuseMisfit(work(ctx, svc, p)), svc.Close())
}

func newHSMList() *cobra.Command {
	return hsmCommand("list --conf DIR", "List the AES keys on the token", hsm.Inspect,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			objects, err := p.Objects(ctx)
			if err != nil {
				return err
			}
			sortObjects(objects)
			return errors.Join(out.Write(objects, func(w io.Writer) { objectTable(w, objects) }), misfit(ctx, p))
		})
}

// misfit returns an error if the token and the metastore do not fit together, or if the token lacks keys.
func misfit(ctx context.Context, p *hsm.Provider) error {
	if err := p.Misfit(); err != nil {
		return &exitError{exitRefused, err}
	}
	h, err := p.Holdings(ctx)
	if err != nil {
		return err
	}
	if n := len(h.All()); n > 0 {
		return &exitError{exitRefused, fmt.Errorf("the token lacks %d key versions of the metastore: %s; %s",
			n, h.Names(), p.CureLost())}
	}
	return nil
}

// sortObjects sorts objects by label. Objects with the same label are sorted by CKA_ID.
func sortObjects(objects []hsm.Object) {
	slices.SortFunc(objects, func(a, b hsm.Object) int {
		return cmp.Or(strings.Compare(a.Label, b.Label), strings.Compare(a.ID, b.ID))
	})
}

// objectTable writes objects as a table.
func objectTable(w io.Writer, objects []hsm.Object) {
	fmt.Fprintln(w, "CKA_ID\tLABEL\tBITS\tSTATE")
	for _, o := range objects {
		since := ""
		if o.Since != nil {
			since = ", since " + o.Since.UTC().Format(time.DateOnly)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s%s%s\n", o.ID, claviger.Printable(o.Label), o.Bits, o.Mark, since, o.Alarm())
	}
}

func newHSMInspect() *cobra.Command {
	return hsmCommand("inspect --conf DIR", "Show the token, its mechanism, and whether its keys are protected",
		hsm.Inspect,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			found, err := p.InspectToken(ctx)
			if err == nil {
				err = out.Write(found, found.Text)
			}
			if err == nil {
				err = misfit(ctx, p)
			}
			if err != nil {
				return err
			}
			if err := found.Refusal(); err != nil {
				return &exitError{exitRefused, err}
			}
			return nil
		})
}

func newHSMBench() *cobra.Command {
	each := time.Second
	cmd := hsmCommand("bench --conf DIR", "Measure the token: calls at the same time, and calls for many EDEKs",
		hsm.Read,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			progress := terminal.NewProgress(os.Stderr, "steps", false)
			results, err := p.Bench(ctx, each, progress.Show)
			progress.End()
			if err != nil {
				return err
			}
			if err := out.Write(results, func(w io.Writer) { hsm.WriteBench(w, results) }); err != nil {
				return err
			}
			if results[0].Median > provider.AdvisedLatency {
				return &exitError{exitRefused, fmt.Errorf("the median latency is above %v: requests may time out; "+
					"move the server nearer to the HSM", provider.AdvisedLatency)}
			}
			return nil
		})
	cmd.Flags().DurationVar(&each, "time", each, "how long each step takes")
	return cmd
}
