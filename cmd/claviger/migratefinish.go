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
	return migrateCommand("finish --conf DIR", "Say whether the source may go, and end the migration",
		`finish refuses while the source is still needed: a version of it was used lately, a key is not here or
cannot be used, the source has rolled a key since the run (something may use it still), or nobody has said that all
EDEKs are re-encrypted, those in snapshots too. It must have asked the source for its keys once, after the run,
while that was still configured. Otherwise it lists the properties to remove from kms-site.xml, each with the file
and line where it still stands, and once they are gone it writes the end into the journal. It changes no file of the
configuration.

It names what the procedure has left on this host: the copy of the Key Trustee KMS's .keytrustee folder, with its
private keys, and that of kts-site.xml, with the organization's auth secret. --shred, on each host once all else is
done, overwrites and removes these, after you have typed the path of each; of a folder only the files that are
known, following no link. Nothing proves that a folder is a copy, and not the one from which a Key Trustee KMS runs,
so that you type a sentence in place of its path, also with --yes. A folder from which a KMS runs, or was started as
it is, is refused. A path that the configuration never named is given by --leftover. A run that was killed is
finished by the next.`, hsm.Journal,
		func(cmd *cobra.Command, f *migrateFlags) {
			cmd.Flags().BoolVar(&f.edeksDone, "edeks-done", false,
				"all EDEKs, those in snapshots and copies too, are re-encrypted or deleted")
			cmd.Flags().BoolVar(&f.sourceGone, "source-gone", false,
				"the source is gone for good, and with it what keys it has got since the run")
			cmd.Flags().BoolVar(&f.sourceRolled, "source-rolled", false,
				"versions that the source has made, or lost, since the run are known, and EDEKs of them re-encrypted")
			cmd.Flags().DurationVar(&f.unused, "unused-for", 24*time.Hour,
				"for how long no version of the source may have been used")
			cmd.Flags().BoolVar(&f.shred, "shred", false,
				"overwrite and remove the copies of the source's secrets on this host")
			cmd.Flags().BoolVar(&f.yes, "yes", false, "with --shred: do not ask, but for folders with private keys")
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
		Since: time.Now().Add(-m.flags.unused), EDEKsDone: m.flags.edeksDone, SourceGone: m.flags.sourceGone,
		SourceRolled: m.flags.sourceRolled, Get: m.svc.Conf.SetValue})
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

// shred shreds the leftovers that are known to be copies of secrets.
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
		err := shred.Leftover(l, func(doubt string) (bool, error) { return m.agreed(l, doubt, prompt) })
		failed = errors.Join(failed, err)
	}
	for _, l := range f.Leftovers {
		if failed == nil && l.Secret && !l.Shredded {
			failed = &exitError{code: exitRefused}
		}
	}
	return failed
}

// agreed asks the operator whether a leftover may be shredded. A folder may be the only one with a KMS's
// private key: then neither --yes nor the path is an answer, but only a sentence.
func (m *migration) agreed(l *migrate.Leftover, doubt string, prompt *terminal.Prompt) (bool, error) {
	want, what := l.Path, "its path"
	question := fmt.Sprintf("%s\n%s\nType its path to shred it: ", l.Path, l.What)
	switch {
	case doubt != "":
		want, what = unneeded(l.Path), "that sentence"
		if m.flags.yes {
			l.Left = append(l.Left, "nothing proves that it is a copy ("+doubt+"), so --yes does not shred it: "+
				"call this again without --yes, and type the sentence that is asked for")
			return false, nil
		}
		question = fmt.Sprintf("%s\n%s, as it seems: nothing proves that it is a copy (%s). If a Key Trustee KMS "+
			"still uses this folder, all keys of that KMS are lost with it.\nTo shred it, type: %s\n",
			l.Path, l.What, doubt, want)
	case m.flags.yes:
		return true, nil
	}
	typed, err := prompt.Ask("%s", question)
	if err != nil {
		return false, err
	}
	if typed != want {
		l.Left = append(l.Left, fmt.Sprintf("%q is not %s, so it was not touched", typed, what))
		return false, nil
	}
	return true, nil
}

// unneeded is the sentence that an operator types to take responsibility for a folder.
func unneeded(dir string) string { return "no KMS needs the private key in " + dir }
