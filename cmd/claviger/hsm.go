package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/pkcs11"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// hsmTimeout bounds one command's work on the token.
const hsmTimeout = 5 * time.Minute

// hsmLatency is the latency that Cloudera's procedure recommends at most.
const hsmLatency = 30 * time.Millisecond

func newHSMCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "hsm", Short: "Set up, list, inspect and measure an HSM token", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newHSMInit(), newHSMList(), newHSMInspect(), newHSMBench(), newHSMPrune(), newHSMAdopt())
	return cmd
}

func newHSMInit() *cobra.Command {
	var c pkcs11.FileConfig
	var slot int
	var profile string
	var noCheck bool
	var out terminal.Output
	cmd := &cobra.Command{
		Use: "init --module LIBRARY (--token LABEL | --serial SERIAL | --slot N) " +
			"(--pin-file FILE | --pin-env NAME | --credential NAME) FILE",
		Short: "Write the small file that names the token for claviger",
		Long: `init writes FILE, which a provider URI names: cloudera.hsmkp://file@/path/of/FILE. The file holds no
secret: the PIN stays where it is. Before it writes, init opens the token, makes a key there, encrypts with it and
destroys it; --no-check leaves that out. FILE is never overwritten.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if slot >= 0 {
				n := uint(slot)
				c.Slot = &n
			}
			var err error
			if c.Profile, err = pkcs11.ParseProfile(profile); err != nil {
				return &exitError{exitUsage, fmt.Errorf("--profile: %w", err)}
			}
			if c.PINFile != "" {
				if c.PINFile, err = filepath.Abs(c.PINFile); err != nil {
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
	f.StringVar(&c.PINFile, "pin-file", "", "file that holds the user's PIN and nothing else")
	f.StringVar(&c.PINEnv, "pin-env", "", "environment variable that holds the PIN")
	f.StringVar(&c.Credential, "credential", "", "systemd credential that holds the PIN")
	f.StringVar(&profile, "profile", "", "luna, ncipher, softhsm or generic; otherwise by the token's maker")
	f.IntVar(&c.MaxSessions, "max-sessions", 0, "concurrent calls; otherwise by the profile")
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

// initHSM checks everything that can fail before it writes the file.
func initHSM(ctx context.Context, path string, c pkcs11.FileConfig, check bool) (*initialized, error) {
	if err := c.Check(path); err != nil { // a try of the PIN would be wasted
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
		cfg, err := c.Config(filepath.Dir(path))
		if err != nil {
			return nil, &exitError{exitUsage, err}
		}
		ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
		defer cancel()
		info, err := pkcs11.Try(ctx, cfg)
		if err != nil {
			return nil, err
		}
		done.Token = &info
	}
	return done, pkcs11.WriteKeystoreFile(path, c)
}

// hsmCommand is a subcommand that works on the token of a configuration folder.
func hsmCommand(use, short, long string, access hsm.Access,
	run func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error) *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return withHSM(cmd, conf, access, func(ctx context.Context, p *hsm.Provider) error { return run(ctx, p, &out) })
	}
	cmd.Flags().StringVar(&conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// withHSM has work use the token of a configuration folder.
func withHSM(cmd *cobra.Command, conf string, access hsm.Access,
	work func(context.Context, *hsm.Provider) error) error {
	return withHSMService(cmd, conf, access,
		func(ctx context.Context, _ *kms.Service, p *hsm.Provider) error { return work(ctx, p) })
}

// withHSMService is withHSM for work that needs more of the service than its HSM.
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
		err := fmt.Errorf("the first provider is %s, which is no HSM; give the configuration folder of a server with "+
			"an HSM (cloudera.hsmkp:// or pkcs11:) by --conf. The keys of this one are listed by claviger key list "+
			"--provider kms://https@HOST:9600/kms",
			svc.Primary.URI())
		return errors.Join(svc.Blame(hadoopconf.ProviderURI, err), svc.Close())
	}
	return errors.Join(kms.RefuseMisfit(work(ctx, svc, p)), svc.Close())
}

func newHSMList() *cobra.Command {
	return hsmCommand("list --conf DIR", "List the AES keys on the token",
		`list shows every AES key on the token with its state:

  in use     a version that the metastore knows uses it
  deleted    its key was deleted, and can be brought back (claviger key
             undelete) or destroyed (claviger key purge)
  pending    it belongs to a step that was interrupted; the next run of that
             step uses it
  unknown    it is named like ours, and this metastore does not know it: the
             metastore is older than the token, or the key is another
             metastore's (claviger hsm adopt)
  set aside  it is unknown, and an operator has left it so
  orphan     this metastore once numbered it, and nothing refers to it any
             more (claviger hsm prune)
  foreign    it is not ours

DAMAGED marks what a process left that was killed while the token made a key. Nothing was ever encrypted with it:
destroy it with the HSM's own tool.

Exit status 3: the token and the metastore do not fit together, or the token lacks keys of the metastore. list names
these.`,
		hsm.Inspect,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			objects, err := p.Objects(ctx)
			if err != nil {
				return err
			}
			sortObjects(objects)
			return errors.Join(out.Write(objects, func(w io.Writer) { objectTable(w, objects) }), misfit(ctx, p))
		})
}

// misfit returns an error where the token and the metastore do not fit together, or the token lacks keys.
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
		fmt.Fprintf(w, "%s\t%s\t%d\t%s%s%s\n", o.ID, claviger.Printable(o.Label), o.Bits, o.Mark, since, alarm(o))
	}
}

// alarm returns a warning about a key that is less protected than it should be.
func alarm(o hsm.Object) string {
	switch {
	case o.Damaged:
		return "  DAMAGED: no whole key, so nothing is encrypted with it; destroy it with the HSM's own tool"
	case o.Extractable:
		return "  EXTRACTABLE!"
	case !o.Sensitive:
		return "  NOT SENSITIVE!"
	}
	return ""
}

// inspection is the report of hsm inspect.
type inspection struct {
	Keys      map[hsm.Mark]int `json:"keys"`
	Token     pkcs11.TokenInfo `json:"token"`
	Unguarded int              `json:"unguarded"`
}

func (i *inspection) text(w io.Writer) {
	t := i.Token
	fmt.Fprintf(w, "token\t%s\nserial\t%s\nslot\t%d\nmaker\t%s %s, firmware %s\n", t.Label, t.Serial, t.Slot,
		t.Manufacturer, t.Model, t.Firmware)
	fmt.Fprintf(w, "profile\t%s\nmechanism\t%s\nsessions\tup to %d\none call\tup to %d bytes\n", t.Profile, t.Mechanism,
		t.MaxSessions, t.MaxData)
	for _, m := range hsm.Marks() {
		fmt.Fprintf(w, "keys %s\t%d\n", m, i.Keys[m])
	}
	fmt.Fprintf(w, "of ours not sensitive, or extractable\t%d\n", i.Unguarded)
}

func newHSMInspect() *cobra.Command {
	return hsmCommand("inspect --conf DIR", "Show the token, its mechanism, and whether its keys are protected",
		"inspect shows which token is used and how, and says how many of its keys could leave it.", hsm.Inspect,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			objects, err := p.Objects(ctx)
			if err != nil {
				return err
			}
			found := &inspection{Keys: map[hsm.Mark]int{}, Token: p.Info()}
			for _, o := range objects {
				found.Keys[o.Mark]++
				if alarm(o) != "" && !o.Damaged && o.Mark != hsm.Foreign {
					found.Unguarded++
				}
			}
			if err := out.Write(found, found.text); err != nil {
				return err
			}
			if err := misfit(ctx, p); err != nil {
				return err
			}
			if n := found.Unguarded; n > 0 {
				return &exitError{exitRefused, fmt.Errorf("%d keys could leave the token: "+
					"roll the EZ keys they belong to, and find out who changed them", n)}
			}
			return nil
		})
}

// benchResult is one line of hsm bench.
type benchResult struct {
	What   string        `json:"what"`
	EDEKs  int           `json:"edeks"`
	Calls  int           `json:"calls"`
	Median time.Duration `json:"medianNanoseconds"`
	P99    time.Duration `json:"p99Nanoseconds"`
	PerSec float64       `json:"edeksPerSecond"`
}

func newHSMBench() *cobra.Command {
	return hsmCommand("bench --conf DIR", "Measure the token's latency and the gain of batches",
		`bench encrypts with the newest version of some key of the metastore, and fails where there is no key. It
prints the latency of calls for one EDEK and for a NameNode's batch of 1,000. Exit status 3: the median is above the
30 ms that Cloudera's procedure recommends at most.`, hsm.Read,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			var results []benchResult
			for _, b := range []struct {
				what         string
				edeks, calls int
			}{{"one EDEK a call", 1, 200}, {"1,000 EDEKs a call", 1000, 50}} {
				l, err := p.MeasureLatency(ctx, b.edeks, b.calls)
				if err != nil {
					return err
				}
				results = append(results, benchResult{b.what, l.EDEKs, l.Calls, l.Median, l.P99, l.PerSec})
			}
			err := out.Write(results, func(w io.Writer) {
				fmt.Fprintln(w, "WHAT\tMEDIAN\tP99\tEDEKS/S, ONE AFTER ANOTHER")
				for _, r := range results {
					fmt.Fprintf(w, "%s\t%v\t%v\t%.0f\n", r.What, r.Median.Round(time.Microsecond),
						r.P99.Round(time.Microsecond), r.PerSec)
				}
			})
			if err == nil && results[0].Median > hsmLatency {
				err = &exitError{exitRefused, fmt.Errorf("the median latency is above %v: requests may time out; "+
					"move the server nearer to the HSM", hsmLatency)}
			}
			return err
		})
}
