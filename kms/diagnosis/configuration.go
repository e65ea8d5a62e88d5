package diagnosis

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/provider/builtin"
	"claviger/secret"
	"claviger/shellword"
	"claviger/sqlitedb"
)

// configuration returns the checks of the configuration's files.
func (s *site) configuration() doctor.Group {
	return doctor.Group{Title: "configuration", Checks: []doctor.Check{
		{ID: "D-conf-read", Title: "the configuration is read",
			Measures: "core-site.xml and kms-site.xml of the folder are read as the server reads them",
			Why:      "a server without a configuration that it can read does not start",
			Cure:     "name the folder of kms-site.xml with --conf, and correct the line that the message names",
			Run:      s.confRead},
		{ID: "D-conf-user", Title: "the service's user", Needs: []string{"D-conf-read"},
			Measures: "the user of --user is compared with the user of this process and with the owner of the store, " +
				"the keystore and the PIN file",
			Why: "rights to files are those of the service's user; a check as root or as another user does not show " +
				"what the service may do",
			Cure: "run the doctor as the service's user, or name that user with --user",
			Run:  s.confUser},
		{ID: "D-conf-names", Title: "names of properties", Needs: []string{"D-conf-read"},
			Measures: "each property is compared with the table of docs/settings.md",
			Why:      "a property that is misspelt, or in the wrong file, has no effect, and the default counts",
			Cure:     "correct the name, or remove the line",
			Run:      s.confNames},
		{ID: "D-conf-values", Title: "values of properties", Needs: []string{"D-conf-read"},
			Measures: "each property and each file that a start reads is read, and values that contradict each other " +
				"are found; nothing is opened or written",
			Why:  "the server does not start with a value that it cannot use",
			Cure: "correct the value in the line that the message names",
			Run:  s.confValues},
		{ID: "D-conf-files", Title: "rights to files", Needs: []string{"D-conf-user"},
			Measures: "for each file that the server reads or writes, and each folder above it, the rights of the " +
				"service's user are judged",
			Why:  "the server fails when it needs the file: at its start, at a reload, or at the next change of a key",
			Cure: "give the service's user the right that is missing",
			Run:  s.confFiles},
		{ID: "D-conf-secrets", Title: "files with secrets", Needs: []string{"D-conf-user"},
			Measures: "owner and mode of each file that holds a secret or decides on rights, and of the folders " +
				"above it",
			Why:  "another user of this host who reads or replaces such a file gets the rights of the server",
			Cure: "correct owner and mode",
			Run:  s.confSecrets},
	}}
}

func (s *site) confRead(context.Context) []doctor.Finding {
	conf, err := hadoopconf.LoadKMS(s.options.Conf, os.LookupEnv)
	if err != nil {
		return doctor.Error(err, "")
	}
	s.conf, s.service = conf, kms.NewStages(conf, "claviger doctor", slog.New(slog.DiscardHandler))
	s.closers = append(s.closers, s.service.Close)
	files := map[string]int{}
	for _, name := range conf.Names() {
		if p, _ := conf.Lookup(name); p.File != "" {
			files[filepath.Base(p.File)]++
		}
	}
	text := ""
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text += fmt.Sprintf(", %s sets %d properties", name, files[name])
	}
	return doctor.Pass("%s", text[2:])
}

func (s *site) confUser(context.Context) []doctor.Finding {
	var judged []doctor.Finding
	var err error
	if s.user, judged, err = s.options.UserOf(builtin.Files(s.conf)...); err != nil {
		return doctor.Error(err, "")
	}
	self := secret.Self()
	switch {
	case len(judged) > 0:
		return judged
	case s.user.IsSelf():
		return doctor.Pass("%s, the user of this process", s.user.Name)
	case self.IsRoot():
		return doctor.Pass("%s; this process runs as root, so it judges the rights of %[1]s by owner and mode, and "+
			"tries nothing as %[1]s", s.user.Name)
	}
	return doctor.Warn(fmt.Sprintf("%s; this process runs as user %s: it judges rights by owner and mode, and files "+
		"that it may not see count as correct", s.user.Name, self.Name),
		fmt.Sprintf("run the doctor as %s, or as root", s.user.Name))
}

func (s *site) confNames(context.Context) []doctor.Finding {
	var list []doctor.Finding
	for _, w := range s.conf.Warnings() {
		list = append(list, doctor.WithCure(doctor.Warning, w))
	}
	if len(list) == 0 {
		return doctor.Pass("every property is known, and in its file")
	}
	return list
}

func (s *site) confValues(context.Context) []doctor.Finding {
	log, warnings := collect()
	var list []doctor.Finding
	for _, err := range kms.Faults(s.conf, log) {
		list = append(list, doctor.Error(err, "")...)
	}
	for _, text := range *warnings {
		list = append(list, doctor.WithCure(doctor.Warning, text))
	}
	if len(list) == 0 {
		return doctor.Pass("every value can be used")
	}
	return list
}

func (s *site) confFiles(context.Context) []doctor.Finding {
	var list []doctor.Finding
	lacking := map[string]bool{}
	add := func(l *secret.Lacking, what string) {
		if l != nil && !lacking[l.Text] {
			lacking[l.Text] = true
			list = append(list, doctor.Finding{Status: doctor.Failure, Measured: l.Text + what, Cure: l.Cure})
		}
	}
	add(s.user.LacksList(s.conf.Dir()), "")
	read := kms.ReadFiles(s.conf)
	for _, path := range read {
		add(s.user.LacksRead(path), "")
	}
	written := kms.WrittenFiles(s.conf)
	for _, property := range slices.Sorted(maps.Keys(written)) {
		path := written[property]
		folder, why := filepath.Dir(path), " ("+property+")"
		if _, err := os.Stat(folder); err != nil {
			list = append(list, doctor.Finding{Status: doctor.Failure, Measured: err.Error() + why,
				Cure: fmt.Sprintf("install -d -o %s -m 0700 %s", s.user.Name, shellword.Quote(folder))})
			continue
		}
		add(s.user.LacksMake(folder), why)
		add(s.user.LacksWrite(path), why)
		for _, beside := range existing(sqlitedb.Files(path)[1:]) { // only a metastore has such files
			add(s.user.LacksWrite(beside), why)
		}
	}
	if len(list) == 0 {
		return doctor.Pass("user %s may read %d files, and write %d", s.user.Name, len(existing(read)), len(written))
	}
	return list
}

// existing returns the files that exist.
func existing(files []string) (list []string) {
	for _, path := range slices.Compact(slices.Sorted(slices.Values(files))) {
		if _, err := os.Stat(path); err == nil {
			list = append(list, path)
		}
	}
	return list
}

func (s *site) confSecrets(context.Context) []doctor.Finding {
	return doctor.Exposed(s.user, kms.SecretFiles(s.conf))
}
