package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/kms/edeks"
	"claviger/kms/evidence"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// migrateFlags are the flags of all subcommands of migrate. Each subcommand has some of them.
type migrateFlags struct {
	conf         string
	versions     string
	hdfs         string
	asUser       string
	nameNode     string
	edeksDone    bool
	verdict      bool
	sourceGone   bool
	sourceRolled bool
	unused       time.Duration
	shred        bool
	yes          bool
	leftovers    []string
	adopted      []string
	allAdopted   bool
	quiet        bool
	open         func(context.Context, string, string, hsm.Access, *slog.Logger) (*kms.Service, error)
}

func newMigrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Take over the key metadata of another KMS, and say when that KMS can be removed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMigratePlan(), newMigrateRun(), newMigrateStatus(), newMigrateVerify(),
		newMigrateVerdict(), newMigrateReport(), newMigrateFinish(), newMigrateFree())
	return cmd
}

func newMigratePlan() *cobra.Command {
	return migrateCommand("plan --conf DIR", "Say what a run would do, and check what the procedure requires",
		hsm.Read,
		func(cmd *cobra.Command, f *migrateFlags) {
			versionsFlag(cmd, f)
			planFlags(cmd, f)
		},
		func(m *migration) error {
			plan, err := m.engine.Plan(m.ctx)
			if plan != nil { // its checks say more than the error
				if failed := write(m, plan, report.Plan); failed != nil {
					return errors.Join(failed, err)
				}
				if err != nil {
					return shown{err}
				}
			}
			if err == nil && !plan.Ready() {
				return &exitError{code: exitRefused}
			}
			return err
		})
}

// shown is an error whose text is in the plan.
type shown struct{ error }

func (s shown) Error() string {
	return "the source's keys were not read: the last of the checks says why"
}
func (s shown) Unwrap() error { return s.error }

func newMigrateRun() *cobra.Command {
	return migrateCommand("run --conf DIR", "Import every key of the source that is missing here", hsm.Make,
		func(cmd *cobra.Command, f *migrateFlags) {
			versionsFlag(cmd, f)
			cmd.Flags().StringSliceVar(&f.adopted, "adopted", nil,
				"keys that claviger hsm adopt has recovered and that were migrated from this source before; they keep "+
					"their versions")
			cmd.Flags().BoolVar(&f.quiet, "quiet", false, "show no progress on standard error")
			cmd.Flags().BoolVar(&f.allAdopted, "all-adopted", false,
				"--adopted for each key that claviger hsm adopt has recovered and that the source has")
		},
		func(m *migration) (err error) {
			if err := m.checkToken(); err != nil {
				return err
			}
			progress := terminal.NewProgress(m.stderr, "keys", m.flags.quiet)
			m.cfg.Progress = func(p migrate.Progress) { progress.Show(p.Keys, p.KeysTotal, p.String()) }
			closeAudit, err := m.openAudit()
			if err != nil {
				return err
			}
			defer func() {
				if failed := closeAudit(); failed != nil {
					err = errors.Join(err, failed)
				}
			}()
			if _, err := m.svc.RecordLeftovers(m.ctx, nil); err != nil {
				return err
			}
			result, err := m.engine.Run(m.ctx)
			progress.End()
			if err != nil {
				return err
			}
			if err := write(m, result, report.Result); err != nil {
				return err
			}
			if !result.Complete() {
				return &exitError{code: exitRefused}
			}
			return nil
		})
}

func newMigrateStatus() *cobra.Command {
	return migrateCommand("status --conf DIR", "Show the runs, the keys, and when the source was last used",
		hsm.Read, nil,
		func(m *migration) error {
			status, err := m.engine.Status(m.ctx)
			if err != nil {
				return err
			}
			if err := write(m, status, report.Status); err != nil {
				return err
			}
			if slices.ContainsFunc(status.Keys,
				func(k migrate.KeyStatus) bool { return k.State == migrate.Elsewhere }) {
				return &exitError{code: exitRefused}
			}
			return nil
		})
}

func newMigrateVerify() *cobra.Command {
	return migrateCommand("verify --conf DIR", "Compare every field of every key with the source", hsm.Read, nil,
		func(m *migration) error {
			v, err := m.engine.Verify(m.ctx)
			if err != nil {
				return err
			}
			if err := write(m, v, report.Verification); err != nil {
				return err
			}
			if v.Empty() || v.Different > 0 {
				return &exitError{code: exitRefused}
			}
			return nil
		})
}

func newMigrateFree() *cobra.Command {
	cmd := migrateCommand("free NAME... --conf DIR", "Allow new keys under names that the journal reserves",
		hsm.Journal, nil,
		func(m *migration) error {
			freed, err := m.engine.FreeNames(m.ctx, kms.OSUser(), m.args...)
			if err != nil {
				return err
			}
			return write(m, freed, report.Freed)
		})
	cmd.Args = cobra.MinimumNArgs(1)
	return cmd
}

func newMigrateVerdict() *cobra.Command {
	var o edeks.VerdictOptions
	return migrateCommand(edeks.VerdictUse, edeks.VerdictShort, hsm.Journal,
		func(cmd *cobra.Command, f *migrateFlags) {
			hdfsFlag(cmd, f)
			o.Define(cmd)
		},
		func(m *migration) error {
			v, err := o.Verdict(m.ctx, m.flags.conf, m.flags.hdfs, m.engine, m.stderr)
			if err != nil {
				return err
			}
			if err := write(m, v, report.Verdict); err != nil || v.Outcome == migrate.Granted {
				return err
			}
			return &exitError{code: exitRefused}
		})
}

func newMigrateReport() *cobra.Command {
	var o evidence.Options
	return migrateCommand(evidence.Use, evidence.Short, hsm.Journal,
		func(cmd *cobra.Command, f *migrateFlags) {
			f.open = kms.OpenDirCarefully
			planFlags(cmd, f)
			o.Define(cmd)
		},
		func(m *migration) error { return o.Report(m.ctx, m.svc, m.engine, m.flags.hdfs, m.out, m.stderr) })
}

func planFlags(cmd *cobra.Command, f *migrateFlags) {
	hdfsFlag(cmd, f)
	cmd.Flags().StringVar(&f.asUser, "as-user", "",
		"short name of a user who reads files in encryption zones; plan opens an EDEK at the source for this user")
	cmd.Flags().StringVar(&f.nameNode, "namenode-user", "",
		"short name of the NameNode's user (default: from its principal in --hdfs-conf, else "+
			"claviger.kms.hdfs.superusers)")
}

func hdfsFlag(cmd *cobra.Command, f *migrateFlags) {
	cmd.Flags().StringVar(&f.hdfs, "hdfs-conf", "", "folder with the cluster's core-site.xml and hdfs-site.xml")
}

func versionsFlag(cmd *cobra.Command, f *migrateFlags) {
	cmd.Flags().StringVar(&f.versions, "versions", "",
		"how many versions each key gets: auto: one if the source numbers its versions, else as many as at the "+
			"source; all: as many as at the source; current: one (default claviger.migration.versions)")
}

// migration is the state of a subcommand of migrate.
type migration struct {
	ctx    context.Context
	args   []string
	flags  *migrateFlags
	svc    *kms.Service
	engine *migrate.Engine
	cfg    migrate.Config
	out    *terminal.Output
	cmd    *cobra.Command
	stderr io.Writer
}

// checkToken returns an error if the token would refuse every key of a run.
func (m *migration) checkToken() error {
	p, ok := m.svc.Primary.(*hsm.Provider)
	if !ok {
		return nil
	}
	if err := p.CheckFit(m.ctx); err != nil {
		return err
	}
	return p.CheckNotStale(m.ctx)
}

// openAudit replaces the engine by one that writes to the audit log. The caller calls closeAudit at the end.
func (m *migration) openAudit() (closeAudit func() error, err error) {
	trail, err := m.svc.OpenAudit(m.ctx, m.stderr)
	if err != nil {
		return nil, fmt.Errorf("%w (if a server runs here, it can take the keys over: "+
			"claviger key migrate NAME --provider URI)", err)
	}
	m.cfg.Audit, m.cfg.Caller = trail, kms.OwnCaller()
	m.engine, err = m.svc.Engine(m.ctx, m.cfg)
	if err != nil {
		return nil, errors.Join(err, trail.Close())
	}
	return func() error { return errors.Join(trail.Err(), trail.Close()) }, nil
}

// write writes a result of the engine in the format that the flag -o chooses.
func write[T any](m *migration, result *T, text func(io.Writer, *T)) error {
	return m.out.Write(result, func(w io.Writer) { text(w, result) })
}

// migrateCommand returns a subcommand that works on the KMS of a configuration folder.
func migrateCommand(use, short string, access hsm.Access, flags func(*cobra.Command, *migrateFlags),
	work func(*migration) error) *cobra.Command {
	f := migrateFlags{open: kms.Open}
	var out terminal.Output
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		m := &migration{ctx: cmd.Context(), args: args, flags: &f, cmd: cmd, stderr: cmd.ErrOrStderr(), out: &out}
		cfg, err := f.config()
		if err != nil {
			return &exitError{exitUsage, err}
		}
		if cfg.Log, err = newLogger("warn"); err != nil {
			return err
		}
		if m.svc, err = f.open(m.ctx, f.conf, cmd.CommandPath(), access, cfg.Log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.svc.Close()) }()
		m.cfg = cfg
		if m.engine, err = m.svc.Engine(m.ctx, cfg); err != nil {
			return err
		}
		err = work(m)
		if claviger.Is(err, claviger.SourceRefused) || errors.Is(err, migrate.ErrNoSource) {
			err = &exitError{exitRefused, err} // a person must grant a right, or configure the source
		}
		return kms.RefuseMisfit(err)
	}
	cmd.Flags().StringVar(&f.conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	if flags != nil {
		flags(cmd, &f)
	}
	return cmd
}

// config returns the engine's configuration as far as it comes from flags. Its errors are usage errors.
func (f *migrateFlags) config() (migrate.Config, error) {
	cfg := migrate.Config{Versions: migrate.Versions(f.versions), Adopted: f.adopted, AllAdopted: f.allAdopted}
	if f.allAdopted && len(f.adopted) > 0 {
		return cfg, errors.New("--adopted and --all-adopted exclude each other")
	}
	if cfg.Versions != "" && !cfg.Versions.Valid() {
		return cfg, fmt.Errorf("--versions %s: it must be %s, %s or %s", f.versions, migrate.Auto, migrate.All,
			migrate.Current)
	}
	if f.unused < 0 {
		return cfg, fmt.Errorf("--unused-for %v: it must not be negative; 0s requires no waiting", f.unused)
	}
	cfg.Probes.AsUser, cfg.Probes.NameNode.User = f.asUser, f.nameNode
	if f.hdfs == "" {
		return cfg, nil
	}
	hdfs, err := hadoopconf.LoadHDFS(f.hdfs, os.LookupEnv)
	if err != nil {
		return cfg, fmt.Errorf("--hdfs-conf: %w", err)
	}
	cfg.Probes.HDFS = hdfs.Get
	return cfg, nil
}
