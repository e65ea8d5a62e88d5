package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/hadoopconf"
	"claviger/kms"
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
	sourceGone   bool
	sourceRolled bool
	unused       time.Duration
	shred        bool
	yes          bool
	leftovers    []string
	adopted      []string
	allAdopted   bool
	quiet        bool
}

func newMigrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Take over the key metadata of another KMS, and say when it may go",
		Long: `migrate takes over the metadata of encryption-zone keys from a running Hadoop KMS into the HSM, where
each key gets new versions. Key material never moves, and the source is only read. The usual order: plan, run (or
cloudera.hsmkp.initiatemigration, by which the server does it at its start), verify; re-encrypt the zones; status,
finish.

Exit status: 0 all is well, 1 it could not be done, 2 the command line is wrong, 3 something stands against it that
a person decides: keys that cannot be imported, a difference, a source that is still needed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMigratePlan(), newMigrateRun(), newMigrateStatus(), newMigrateVerify(),
		newMigrateFinish(), newMigrateFree())
	return cmd
}

func newMigratePlan() *cobra.Command {
	return migrateCommand("plan --conf DIR", "Say what a run would do, and check what the procedure requires",
		"plan changes nothing. It measures what the procedure requires, and lists for each key of the source "+
			"what a run would do with it.", hsm.Read,
		func(cmd *cobra.Command, f *migrateFlags) {
			versionsFlag(cmd, f)
			cmd.Flags().StringVar(&f.hdfs, "hdfs-conf", "", "folder with the cluster's core-site.xml and hdfs-site.xml")
			cmd.Flags().StringVar(&f.asUser, "as-user", "",
				"short name of a user who reads files in encryption zones, for whom an EDEK is opened at the source")
			cmd.Flags().StringVar(&f.nameNode, "namenode-user", "",
				"short name that the NameNode comes as (default: by its principal in --hdfs-conf, else "+
					"claviger.kms.hdfs.superusers)")
		},
		func(m *migration) error {
			plan, err := m.engine.Plan(m.ctx)
			if plan != nil { // the checks tell more than the error does
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
	return migrateCommand("run --conf DIR", "Import every key that is not here yet",
		`run imports every key of the source that is not here yet. It may be run again at any time, after a crash
too: what is done is not done twice, what was begun is gone on with. A key that cannot be imported does not keep the
others from it.

A key that was migrated, lost with the metastore and brought back by claviger hsm adopt has lost its attributes and
its time of creation, and is a conflict. --adopted NAME is your word that it was migrated from this source: it gets
the source's description, attributes and time of creation, and keeps its versions. Do not say it of a key that was
made here: the source's rules would guard it.

Each key is audited as the server audits; what the server writes to its standard output goes to standard error here.
Who may read the configuration needs no right of kms-acls.xml. Beside a running server that has the store to itself
(SQLite) it refuses: there keys are taken over by claviger key migrate.`,
		hsm.Make,
		func(cmd *cobra.Command, f *migrateFlags) {
			versionsFlag(cmd, f)
			cmd.Flags().StringSliceVar(&f.adopted, "adopted", nil,
				"keys that claviger hsm adopt brought back, and that were migrated from this source before: they are "+
					"taken over with the versions that are here")
			cmd.Flags().BoolVar(&f.quiet, "quiet", false, "show no progress on standard error")
			cmd.Flags().BoolVar(&f.allAdopted, "all-adopted", false,
				"--adopted with each key that claviger hsm adopt brought back and the source lists")
		},
		func(m *migration) (err error) {
			if err := m.mayMake(); err != nil {
				return err
			}
			progress := terminal.NewProgress(m.stderr, "keys", m.flags.quiet)
			m.cfg.Progress = func(p migrate.Progress) { progress.Show(p.Keys, p.KeysTotal, progressStep(p)) }
			end, err := m.audited()
			if err != nil {
				return err
			}
			defer func() {
				if failed := end(); failed != nil {
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

// progressStep names the step of a run that is under way.
func progressStep(p migrate.Progress) string {
	if p.Key == "" {
		return p.Step
	}
	return claviger.Printable(p.Key) + ": " + p.Step
}

func newMigrateStatus() *cobra.Command {
	return migrateCommand("status --conf DIR", "Show the runs, the keys, and when the source was last needed",
		"status reads the journal. It does not ask the source, and works when that is gone.", hsm.Read, nil,
		func(m *migration) error {
			standing, err := m.engine.Status(m.ctx)
			if err != nil {
				return err
			}
			if err := write(m, standing, report.Status); err != nil {
				return err
			}
			if slices.ContainsFunc(standing.Keys,
				func(k migrate.KeyStatus) bool { return k.State == migrate.Elsewhere }) {
				return &exitError{code: exitRefused}
			}
			return nil
		})
}

func newMigrateVerify() *cobra.Command {
	return migrateCommand("verify --conf DIR", "Compare every field of every key with the source",
		"verify changes nothing. It asks the running source for all metadata, and compares it with what is "+
			"here.", hsm.Read, nil,
		func(m *migration) error {
			v, err := m.engine.Verify(m.ctx)
			if err != nil {
				return err
			}
			if err := write(m, v, report.Verification); err != nil {
				return err
			}
			if v.Empty() {
				return &exitError{code: exitRefused}
			}
			if v.Different > 0 {
				return &exitError{code: exitRefused}
			}
			return nil
		})
}

func newMigrateFree() *cobra.Command {
	cmd := migrateCommand("free NAME... --conf DIR", "Let keys be made under names that the journal keeps",
		`free lets users make keys under names that the journal of a finished migration keeps: names of keys that
were deleted here, or that were never taken over. A name is kept since the source may be named again, and then the
rules of a new key of that name would shut the users of the source's key out. Free a name when the source and the
backups of its keys are gone for good. A running server notices within seconds. The journal keeps which user freed
which name, and when.`, hsm.Journal, nil,
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

func versionsFlag(cmd *cobra.Command, f *migrateFlags) {
	cmd.Flags().StringVar(&f.versions, "versions", "",
		"auto: one new version a key where the source numbers its versions, else as many as it counts; all: "+
			"as many as it counts; current: one a key (default claviger.migration.versions)")
}

// migration is the state of a subcommand.
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

// mayMake refuses a run whose every key would fail for the same reason.
func (m *migration) mayMake() error {
	p, ok := m.svc.Primary.(*hsm.Provider)
	if !ok {
		return nil
	}
	if err := p.CheckFit(m.ctx); err != nil {
		return err
	}
	return p.Stale(m.ctx)
}

// audited makes the engine anew, so that it audits. The function end closes the log.
func (m *migration) audited() (end func() error, err error) {
	trail, err := m.svc.OpenAudit(m.ctx, m.stderr)
	if err != nil {
		return nil, fmt.Errorf("%w (where a server is running here, it can take the keys over itself: "+
			"claviger key migrate NAME --provider URI)", err)
	}
	m.cfg.Audit, m.cfg.Caller = trail, kms.OwnCaller()
	m.engine, err = m.svc.Engine(m.ctx, m.cfg)
	if err != nil {
		return nil, errors.Join(err, trail.Close())
	}
	return func() error { return errors.Join(trail.Err(), trail.Close()) }, nil
}

// write writes what the engine found in the format that the flag -o chooses.
func write[T any](m *migration, found *T, text func(io.Writer, *T)) error {
	return m.out.Write(found, func(w io.Writer) { text(w, found) })
}

// migrateCommand is a subcommand on the KMS that a folder configures.
func migrateCommand(use, short, long string, access hsm.Access, flags func(*cobra.Command, *migrateFlags),
	work func(*migration) error) *cobra.Command {
	var f migrateFlags
	var out terminal.Output
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		m := &migration{ctx: cmd.Context(), args: args, flags: &f, cmd: cmd, stderr: cmd.ErrOrStderr(), out: &out}
		cfg, err := f.config()
		if err != nil {
			return &exitError{exitUsage, err}
		}
		if cfg.Log, err = newLogger("warn"); err != nil {
			return err
		}
		if m.svc, err = kms.Open(m.ctx, f.conf, cmd.CommandPath(), access, cfg.Log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.svc.Close()) }()
		m.cfg = cfg
		if m.engine, err = m.svc.Engine(m.ctx, cfg); err != nil {
			return err
		}
		err = work(m)
		if claviger.Is(err, claviger.SourceRefused) || errors.Is(err, migrate.ErrNoSource) {
			err = &exitError{exitRefused, err} // a person must grant, or name, something
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

// config returns the part of the engine's configuration that flags give. Its errors are about the command line.
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
		return cfg, fmt.Errorf("--unused-for %v: it must not be negative; 0s asks for no time at all", f.unused)
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
