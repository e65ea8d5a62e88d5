package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"claviger/kms"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/migrate/shred"
	"claviger/provider/hsm"
	"claviger/terminal"
)

func newMigrateFinish() *cobra.Command {
	return migrateCommand("finish --conf DIR", "Say whether the source can be removed, and end the migration",
		hsm.Journal,
		func(cmd *cobra.Command, f *migrateFlags) {
			cmd.Flags().BoolVar(&f.edeksDone, "edeks-done", false,
				"all EDEKs are re-encrypted or deleted, also in snapshots and copies")
			cmd.Flags().BoolVar(&f.verdict, "verdict", false, "the last verdict shows that no EDEK needs the source")
			cmd.MarkFlagsMutuallyExclusive("edeks-done", "verdict")
			cmd.Flags().BoolVar(&f.sourceGone, "source-gone", false,
				"the source is gone for good, with all keys that it got after the run")
			cmd.Flags().BoolVar(&f.sourceRolled, "source-rolled", false,
				"you know which versions the source has made or lost since the run, and their EDEKs are re-encrypted")
			cmd.Flags().DurationVar(&f.unused, "unused-for", migrate.DefaultUnused,
				"time in which no version of the source must have been used")
			cmd.Flags().BoolVar(&f.shred, "shred", false,
				"overwrite and remove the copies of the source's secrets on this host")
			cmd.Flags().BoolVar(&f.yes, "yes", false, "with --shred: ask for folders with private keys only")
			cmd.Flags().StringArrayVar(&f.leftovers, "leftover", nil,
				"another copy of a .keytrustee folder or of kts-site.xml; may be given several times")
		}, finishMigration)
}

func finishMigration(m *migration) error {
	var given []string
	for _, p := range m.flags.leftovers {
		p, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		given = append(given, p)
	}
	paths, err := m.svc.RecordLeftovers(m.ctx, given)
	if err != nil {
		return err
	}
	servers, err := m.svc.NotRestarted(m.ctx)
	if err != nil {
		return err
	}
	ending, err := m.engine.Finish(m.ctx, migrate.FinishOptions{NotRestarted: servers,
		Since: time.Now().Add(-m.flags.unused), EDEKsDone: m.flags.edeksDone, Verdict: m.flags.verdict,
		SourceGone: m.flags.sourceGone, SourceRolled: m.flags.sourceRolled, Get: m.svc.Conf.SetValue})
	if err != nil {
		return err
	}
	ending.Leftovers = m.svc.Leftovers(paths)
	var shredErr error
	if m.flags.shred {
		shredErr = m.shred(ending)
	}
	if err := write(m, ending, report.Ending); err != nil {
		return errors.Join(shredErr, err)
	}
	if shredErr == nil && !ending.Finished {
		return &exitError{code: exitRefused}
	}
	return shredErr
}

// shred shreds the leftovers that hold secrets.
func (m *migration) shred(f *migrate.Ending) error {
	refuse := func(format string, args ...any) error {
		return &exitError{exitRefused, fmt.Errorf("nothing was shredded: "+format, args...)}
	}
	if !f.Finished {
		for _, p := range f.Properties {
			if !p.Done {
				return refuse("%s: change %s first (wanted: %s)", p.Where, p.Name, p.Want)
			}
		}
		return refuse("the source is still needed, see above")
	}
	if named := kms.ConfiguredLeftovers(m.svc.Conf); len(named) > 0 {
		return refuse("the configuration still names %s: change hadoop.kms.key.provider.uri first", named[0])
	}
	var failed error
	warned := false
	prompt := terminal.NewPrompt(m.cmd)
	for i := range f.Leftovers {
		l := &f.Leftovers[i]
		if !l.Secret {
			continue
		}
		if !warned {
			fmt.Fprintln(m.stderr, shred.Overwriting+".")
			warned = true
		}
		err := shred.Leftover(l, func(doubt string) (bool, error) {
			return shred.Confirm(l, doubt, m.flags.yes, prompt)
		})
		failed = errors.Join(failed, err)
	}
	for _, l := range f.Leftovers {
		if failed == nil && l.Secret && !l.Shredded {
			failed = &exitError{code: exitRefused}
		}
	}
	return failed
}
