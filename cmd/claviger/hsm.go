package main

import (
	"context"
	"crypto/rand"
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
	cmd := &cobra.Command{
		Use:   "init --module LIBRARY (--token LABEL | --serial SERIAL | --slot N) (--pin-file FILE | --pin-env NAME | --credential NAME) FILE",
		Short: "Write the small file that says which token claviger uses",
		Long: `init writes FILE, which a provider URI names: cloudera.hsmkp://file@/path/of/FILE. The file holds no secret: the PIN stays where it is.
Unless --no-check is given, the token is opened, and has to make a key, encrypt with it and destroy it before anything is written. FILE is
never overwritten.`,
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
			return initHSM(cmd.Context(), cmd.OutOrStdout(), args[0], c, !noCheck)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Module, "module", "", "path of the HSM's PKCS#11 library")
	f.StringVar(&c.Token, "token", "", "label of the token")
	f.StringVar(&c.Serial, "serial", "", "serial number of the token")
	f.IntVar(&slot, "slot", -1, "slot of the token")
	f.StringVar(&c.PINFile, "pin-file", "", "file that holds the user's PIN and nothing else")
	f.StringVar(&c.PINEnv, "pin-env", "", "environment variable that holds it")
	f.StringVar(&c.Credential, "credential", "", "systemd credential that holds it")
	f.StringVar(&profile, "profile", "", "luna, ncipher, softhsm or generic; otherwise by the token's maker")
	f.IntVar(&c.MaxSessions, "max-sessions", 0, "calls under way at once; otherwise by the profile")
	f.BoolVar(&noCheck, "no-check", false, "write the file without opening the token")
	_ = cmd.MarkFlagRequired("module") // the flag is defined above
	return cmd
}

// initHSM writes the file beside its place, opens the token by it, and only then
// puts it there.
func initHSM(ctx context.Context, out io.Writer, path string, c pkcs11.FileConfig, check bool) error {
	if err := c.Check(path); err != nil { // before the PIN is tried in vain
		return &exitError{exitUsage, err}
	}
	if err := pkcs11.CheckNew(path); err != nil {
		return err
	}
	if check {
		cfg, err := c.Config(filepath.Dir(path))
		if err != nil {
			return &exitError{exitUsage, err}
		}
		ctx, cancel := context.WithTimeout(ctx, hsmTimeout)
		defer cancel()
		tok, err := pkcs11.Open(ctx, cfg)
		if err != nil {
			return err
		}
		info := tok.Info()
		if err := errors.Join(tryKey(ctx, tok), tok.Close()); err != nil {
			return err
		}
		fmt.Fprintf(out, "token %s, serial %s, %s %s: logged in, encrypts by %s, made and destroyed a key of 256 bits\n", info.Label, info.Serial, info.Manufacturer, info.Model, info.Mechanism)
	}
	if err := pkcs11.WriteKeystoreFile(path, c); err != nil {
		return err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "wrote %s; in kms-site.xml: hadoop.kms.key.provider.uri = cloudera.hsmkp://file@%s\n", path, abs)
	return nil
}

// tryKey makes a key as the server makes them, uses it, and destroys it again: what
// the token's policies refuse is found here, not at the first creation.
func tryKey(ctx context.Context, tok *pkcs11.Token) error {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails: it ends the process first
	label := fmt.Sprintf("claviger hsm init %x", id)
	const bits = 256
	if err := tok.GenerateKey(ctx, id, label, bits); err != nil {
		return fmt.Errorf("the token makes no key of the kind that is needed (AES, %d bits, not extractable, to encrypt alone), so nothing was written: %w", bits, err)
	}
	_, err := tok.CheckValue(ctx, id, label)
	if err != nil {
		err = fmt.Errorf("the token made a key and does not encrypt with it, so nothing was written: %w", err)
	}
	if gone := tok.Destroy(ctx, id, label); gone != nil {
		err = errors.Join(err, fmt.Errorf("the key that was made to try the token could not be destroyed; destroy the key %q with the HSM's own tool: %w", label, gone))
	}
	return err
}

// hsmCommand is a subcommand that works on the token of a configuration folder.
func hsmCommand(use, short, long string, access hsm.Access, run func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error) *cobra.Command {
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
func withHSM(cmd *cobra.Command, conf string, access hsm.Access, work func(context.Context, *hsm.Provider) error) error {
	return withHSMService(cmd, conf, access, func(ctx context.Context, _ *service, p *hsm.Provider) error { return work(ctx, p) })
}

// withHSMService is withHSM for work that needs more of the service than its HSM.
func withHSMService(cmd *cobra.Command, conf string, access hsm.Access, work func(context.Context, *service, *hsm.Provider) error) error {
	log, err := newLogger("warn")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), hsmTimeout)
	defer cancel()
	svc, err := openService(ctx, conf, cmd.CommandPath(), access, log)
	if err != nil {
		return err
	}
	p, ok := svc.Primary.(*hsm.Provider)
	if !ok {
		err := fmt.Errorf("the first provider is %s, which is no HSM; give the configuration folder of a server with an HSM (cloudera.hsmkp:// or pkcs11:) by --conf. "+
			"The keys of this one are listed by claviger key list --provider kms://https@HOST:9600/kms", svc.Primary.URI())
		return errors.Join(svc.blame(hadoopconf.ProviderURI, err), svc.Close())
	}
	return errors.Join(ofMisfit(work(ctx, svc, p)), svc.Close())
}

func newHSMList() *cobra.Command {
	return hsmCommand("list --conf DIR", "List the AES keys on the token",
		`list shows every AES key on the token and what it is: in use by a version that the metastore knows; deleted, of a key that
was deleted and can be brought back (claviger key undelete) or ended (claviger key purge); pending, of a step that was broken
off and that the next run of the same step uses; unknown, named like ours and not known to this metastore, which is older than
the token or another's (claviger hsm adopt); set aside, unknown and left so by an operator; an orphan, which this metastore once
numbered and nothing refers to any more (claviger hsm prune); or foreign. DAMAGED is what a process left that was killed while the
token made a key: nothing was ever encrypted with it; destroy it with the HSM's own tool.

Exit status 3: the token and the metastore do not fit together, or the token lacks keys of the metastore, which are named.`, hsm.Look,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			objects, err := p.Objects(ctx)
			if err != nil {
				return err
			}
			return errors.Join(out.Write(objects, func(w io.Writer) { objectTable(w, objects) }), misfit(ctx, p))
		})
}

// misfit refuses, after what there is was shown, where the token and the metastore do not
// fit together or the token lacks keys.
func misfit(ctx context.Context, p *hsm.Provider) error {
	if err := p.Misfit(); err != nil {
		return &exitError{exitRefused, err}
	}
	h, err := p.Holdings(ctx)
	if err != nil {
		return err
	}
	if n := len(h.All()); n > 0 {
		return &exitError{exitRefused, fmt.Errorf("the token lacks %d key versions of the metastore: %s; %s", n, h.Names(), p.CureLost())}
	}
	return nil
}

// objectTable writes objects for people, by label.
func objectTable(w io.Writer, objects []hsm.Object) {
	slices.SortFunc(objects, func(a, b hsm.Object) int { return strings.Compare(a.Label, b.Label) })
	fmt.Fprintln(w, "CKA_ID\tLABEL\tBITS\tSTATE")
	for _, o := range objects {
		since := ""
		if o.Since != nil {
			since = ", since " + o.Since.UTC().Format(time.DateOnly)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s%s%s\n", o.ID, claviger.Printable(o.Label), o.Bits, o.Mark, since, alarm(o))
	}
}

// alarm shouts where a key is less guarded than it should be.
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

func newHSMInspect() *cobra.Command {
	return hsmCommand("inspect --conf DIR", "Show the token, its mechanism, and whether its keys are guarded",
		"inspect shows which token is used and how, and says how many of its keys could leave it.", hsm.Look,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			objects, err := p.Objects(ctx)
			if err != nil {
				return err
			}
			marks, weak := map[hsm.Mark]int{}, 0
			for _, o := range objects {
				marks[o.Mark]++
				if alarm(o) != "" && !o.Damaged && o.Mark != hsm.Foreign {
					weak++
				}
			}
			i := p.Info()
			err = out.Write(map[string]any{"token": i, "keys": marks, "unguarded": weak}, func(w io.Writer) {
				fmt.Fprintf(w, "token\t%s\nserial\t%s\nslot\t%d\nmaker\t%s %s, firmware %s\nprofile\t%s\nmechanism\t%s\nsessions\tup to %d\none call\tup to %d bytes\n",
					i.Label, i.Serial, i.Slot, i.Manufacturer, i.Model, i.Firmware, i.Profile, i.Mechanism, i.MaxSessions, i.MaxData)
				for _, m := range hsm.Marks() {
					fmt.Fprintf(w, "keys %s\t%d\n", m, marks[m])
				}
				fmt.Fprintf(w, "of ours not sensitive, or extractable\t%d\n", weak)
			})
			if err == nil {
				err = misfit(ctx, p)
			}
			if err == nil && weak > 0 {
				err = &exitError{exitRefused, fmt.Errorf("%d keys could leave the token: roll the EZ keys they belong to, and find out who changed them", weak)}
			}
			return err
		})
}

// benchResult is one line of `hsm bench`.
type benchResult struct {
	What   string        `json:"what"`
	EDEKs  int           `json:"edeks"`
	Calls  int           `json:"calls"`
	Median time.Duration `json:"medianNanoseconds"`
	P99    time.Duration `json:"p99Nanoseconds"`
	PerSec float64       `json:"edeksPerSecond"`
}

func newHSMBench() *cobra.Command {
	return hsmCommand("bench --conf DIR", "Measure the token's latency and what batches gain",
		`bench encrypts with the newest version of some key of the metastore (it needs one) and prints the latency of calls for one EDEK and for a
NameNode's batch of 1,000. Exit status 3 where the median is above the 30 ms that Cloudera's procedure recommends at most.`, hsm.Read,
		func(ctx context.Context, p *hsm.Provider, out *terminal.Output) error {
			version, err := someVersion(ctx, p)
			if err != nil {
				return err
			}
			var results []benchResult
			for _, b := range []struct {
				what         string
				edeks, calls int
			}{{"one EDEK a call", 1, 200}, {"1,000 EDEKs a call", 1000, 50}} {
				r, err := benchHSM(ctx, p, version, b.edeks, b.calls)
				if err != nil {
					return err
				}
				r.What = b.what
				results = append(results, r)
			}
			err = out.Write(results, func(w io.Writer) {
				fmt.Fprintln(w, "WHAT\tMEDIAN\tP99\tEDEKS/S, ONE AFTER ANOTHER")
				for _, r := range results {
					fmt.Fprintf(w, "%s\t%v\t%v\t%.0f\n", r.What, r.Median.Round(time.Microsecond), r.P99.Round(time.Microsecond), r.PerSec)
				}
			})
			if err == nil && results[0].Median > hsmLatency {
				err = &exitError{exitRefused, fmt.Errorf("the median latency is above %v: requests may time out; move the server nearer to the HSM", hsmLatency)}
			}
			return err
		})
}

func someVersion(ctx context.Context, p *hsm.Provider) (string, error) {
	names, err := p.Keys(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range names {
		if v, err := p.Current(ctx, n); err == nil {
			return v.Name, nil
		}
	}
	return "", errors.New("there is no key yet to measure with; create one: hadoop key create bench -provider kms://...")
}

func benchHSM(ctx context.Context, p *hsm.Provider, version string, edeks, calls int) (benchResult, error) {
	const edekBytes = 32 // of a 256-bit DEK: two counter blocks
	blocks := make([]byte, edeks*edekBytes)
	if _, err := rand.Read(blocks); err != nil {
		return benchResult{}, err
	}
	times := make([]time.Duration, calls)
	var total time.Duration
	for i := range times {
		began := time.Now()
		if err := p.EncryptBlocks(ctx, version, blocks); err != nil {
			return benchResult{}, err
		}
		times[i] = time.Since(began)
		total += times[i]
	}
	slices.Sort(times)
	return benchResult{EDEKs: edeks, Calls: calls, Median: times[calls/2], P99: times[calls*99/100], PerSec: float64(edeks*calls) / total.Seconds()}, nil
}
